# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from virtiofs.virtqueue.memory cimport GuestMemory
from virtiofs.virtqueue.split cimport virtq_desc

cdef extern from "<sys/epoll.h>" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLLIN
        EPOLLET
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int milliseconds)

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(__i386__)
    #define vfs_spin_hint() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define vfs_spin_hint() __asm__ __volatile__("isb")
    #else
    #define vfs_spin_hint() ((void)0)
    #endif
    """
    void spin_hint "vfs_spin_hint"() noexcept nogil

cdef uint64_t now() noexcept nogil

# A piece of a chain: guest address and length.
cdef struct Piece:
    uint64_t address
    uint32_t length

# What the driver remembers of a chain in flight, by its head; the device can not reach it.
cdef struct Flight:
    bint busy
    uint32_t descriptors   # of the ring itself
    uint64_t room          # writable bytes

cdef uint64_t now() noexcept nogil

cdef class DriverQueue:
    cdef readonly GuestMemory memory
    cdef readonly uint32_t size
    cdef readonly bint event_idx
    cdef readonly uint32_t table_entries
    cdef readonly uint64_t desc_address
    cdef readonly uint64_t avail_address
    cdef readonly uint64_t used_address
    cdef readonly int kick_fd
    cdef readonly int call_fd
    cdef int epoll_fd
    cdef uint64_t tables_address
    cdef virtq_desc* desc
    cdef uint8_t* avail
    cdef uint8_t* used
    cdef virtq_desc* tables
    cdef uint16_t* following      # the free list, and the order of a chain: never read back from guest memory
    cdef Flight* flights
    cdef Piece* scratch
    cdef uint16_t free_head
    cdef readonly uint32_t free_count
    cdef readonly uint16_t next_avail
    cdef readonly uint16_t next_used
    cdef uint16_t kicked
    cdef uint32_t taken_head      # what `take` found; 32 bits, as the device wrote it
    cdef uint32_t taken_length

    cdef int64_t place(self, const Piece* pieces, uint32_t readable, uint32_t writable) noexcept nogil
    cdef bint wants_kick(self) noexcept nogil
    cdef int take(self) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef void disarm(self) noexcept nogil
    cdef int sleep(self, int milliseconds) noexcept nogil

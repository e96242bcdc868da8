# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec
from virtiofs.virtqueue.memory cimport GuestMemory, MemoryMap

cdef enum:
    VIRTQ_DESC_F_NEXT = 1
    VIRTQ_DESC_F_WRITE = 2
    VIRTQ_DESC_F_INDIRECT = 4
    VIRTQ_AVAIL_F_NO_INTERRUPT = 1
    VIRTQ_USED_F_NO_NOTIFY = 1

cdef extern from *:
    """
    #define ALL_PLAIN UINT64_MAX
    """
    const uint64_t ALL_PLAIN     # no piece lies in the DAX window

cdef struct virtq_desc:
    uint64_t addr
    uint32_t len
    uint16_t flags
    uint16_t next

cdef struct virtq_used_elem:
    uint32_t id
    uint32_t len

cdef struct Chain:
    uint16_t head
    uint32_t readable_count
    uint32_t writable_count
    uint64_t readable_bytes
    uint64_t writable_bytes
    uint64_t readable_plain  # bytes before the first piece that lies in the DAX window, which must not be touched
    uint64_t writable_plain
    iovec* readable
    iovec* writable

cdef class SplitQueue:
    cdef GuestMemory memory
    cdef MemoryMap* map
    cdef uint32_t size
    cdef bint event_idx
    cdef bint indirect
    cdef virtq_desc* desc
    cdef uint8_t* avail
    cdef uint8_t* used
    cdef uint16_t next_avail
    cdef uint16_t next_used
    cdef uint16_t signalled_used
    cdef bint signalled
    cdef readonly int broken
    cdef Chain chain
    cdef virtq_desc* table
    cdef uint8_t* in_flight          # by head: 1 from `pop` to `push`

    cdef int pop(self) noexcept nogil
    cdef int walk(self, uint16_t head) noexcept nogil
    cdef int fail(self, int reason) noexcept nogil
    cdef void leave(self) noexcept nogil
    cdef void push(self, uint16_t head, uint32_t length) noexcept nogil
    cdef bint notify_needed(self) noexcept nogil
    cdef bint arm(self) noexcept nogil
    cdef bint available(self) noexcept nogil
    cdef uint32_t depth(self) noexcept nogil

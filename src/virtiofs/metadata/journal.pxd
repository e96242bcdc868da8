# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from posix.time cimport timespec
from virtiofs.metadata.layout cimport Header, Member, Record, Slot

cdef extern from "<linux/futex.h>" nogil:
    enum: FUTEX_WAIT, FUTEX_WAKE

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_futex

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<time.h>" nogil:
    enum: CLOCK_BOOTTIME, CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* time)

cdef struct View:            # a table as one process has it mapped; nothing here is read from the shared memory again
    Header* header
    Member* members
    Slot* slots
    Record* records
    uint64_t slot_mask
    uint64_t record_mask
    uint64_t key[2]
    uint32_t member          # our number

cdef struct Change:
    uint16_t kind
    uint16_t name_size
    uint64_t dev
    uint64_t ino
    uint64_t child_dev
    uint64_t child_ino
    const char* name

cdef uint64_t boot_time() noexcept nogil
cdef bint any_member(uint64_t* mask) noexcept nogil
cdef void mark_member(uint64_t* mask, uint32_t member, bint on) noexcept nogil
cdef void wake_sleepers(View* view) noexcept nogil
cdef void wake_all(View* view) noexcept nogil
cdef void change_everything(View* view) noexcept nogil
cdef void journal_write(View* view, Change* change, uint64_t word, uint64_t time) noexcept nogil
cdef int journal_read(View* view, uint64_t ticket, Record* copy) noexcept nogil
cdef bint journal_void(View* view, uint32_t member) noexcept nogil

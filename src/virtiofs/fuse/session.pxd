# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t
from posix.uio cimport iovec
from virtiofs.fuse.request cimport Handlers, Operation, Request

cdef enum:
    INTERRUPTS = 64                  # remembered: as many as could come between two looks at them
    MAX_WRITE = 1 << 20              # bytes of data of one READ or WRITE
    WAITING = 0xFFFFFFFF             # what `serve` returns for a request that is not finished
    BLOCKED = 0xFFFFFFFE             # and for one that has to be called `again` where it may block
    LEFT = 0xFFFFFFFD                # and for one that was not begun

cdef class Session:
    cdef Handlers handlers
    cdef readonly bint initialised
    cdef readonly uint32_t minor
    cdef readonly uint64_t flags
    cdef uint64_t interrupts         # how many INTERRUPTs came, ever
    cdef uint64_t interrupted[INTERRUPTS]


    cdef uint32_t serve(
        self, Request* request, iovec* readable, uint32_t readable_count, uint64_t readable_size,
        iovec* writable, uint32_t writable_count, uint64_t writable_size
    ) noexcept nogil
    cdef int handle(self, Request* request, const Operation* operation) noexcept nogil
    cdef uint32_t finish(self, Request* request, int error) noexcept nogil
    cdef int again(self, Request* request) noexcept nogil
    cdef void interrupt(self, uint64_t unique) noexcept nogil
    cdef bint was_interrupted(self, uint64_t unique) noexcept nogil
    cdef int init(self, Request* request) noexcept nogil
    cdef int destroy(self) noexcept nogil

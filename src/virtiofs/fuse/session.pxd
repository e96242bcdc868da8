# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t
from posix.uio cimport iovec
from virtiofs.fuse.request cimport Handlers, Operation, Request

cdef class Session:
    cdef Handlers handlers
    cdef readonly bint initialised
    cdef readonly uint32_t minor
    cdef readonly uint64_t flags

    cdef uint32_t serve(
        self, Request* request, iovec* readable, uint32_t readable_count, uint64_t readable_size,
        iovec* writable, uint32_t writable_count, uint64_t writable_size
    ) noexcept nogil
    cdef int handle(self, Request* request, const Operation* operation) noexcept nogil
    cdef int init(self, Request* request) noexcept nogil
    cdef int destroy(self) noexcept nogil

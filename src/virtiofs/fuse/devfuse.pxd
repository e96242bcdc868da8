# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec
from virtiofs.fuse.layout cimport fuse_out_header
from virtiofs.fuse.request cimport Request
from virtiofs.fuse.readers cimport Readers
from virtiofs.fuse.serving cimport Counters, Loop

cdef struct Wire:            # what `send_data` needs of a loop
    int fd
    Counters* counted

cdef void send_data(void* wire, Request* request, const void* data, uint64_t size) noexcept nogil

cdef class DevFuseLoop(Loop):
    cdef int fd
    cdef Wire wire
    cdef bint shared         # with other loops, by `readers`
    cdef Readers readers
    cdef uint32_t place
    cdef uint32_t thread     # the one in `run`; 0: none
    cdef uint8_t* memory     # both buffers
    cdef uint8_t* message
    cdef uint8_t* reply
    cdef uint64_t room       # for a message: Linux refuses to read into less than its largest
    cdef iovec readable
    cdef iovec writable

    cdef void set_blocking(self, bint blocking) noexcept nogil
    cdef int serve_until_ended(self) noexcept nogil
    cdef void wait(self) noexcept nogil
    cdef void serve(self, uint64_t size) noexcept nogil

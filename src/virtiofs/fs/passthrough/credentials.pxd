# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fuse.request cimport Request

cdef extern from "<errno.h>" nogil:
    int* __errno_location()

cdef int become(Share* share, Request* request) noexcept nogil
cdef void become_self(Share* share, Request* request) noexcept nogil
cdef uint64_t permitted_capabilities() noexcept nogil

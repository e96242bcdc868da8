# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.python.calls cimport Calls
from virtiofs.fuse.request cimport Request

cdef class Listing:
    cdef uint64_t node
    cdef uint64_t handle         # the file system's
    cdef list entries            # what it yielded, or None before it is read

cdef uint64_t handle_of(Calls calls, uint64_t handle) except? 0
cdef int opendir(Calls calls, Request* request) except? -1
cdef int releasedir(Calls calls, Request* request) except? -1
cdef int fsyncdir(Calls calls, Request* request) except? -1
cdef int readdir(Calls calls, Request* request) except? -1

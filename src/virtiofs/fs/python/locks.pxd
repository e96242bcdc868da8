# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.python.calls cimport Calls
from virtiofs.fuse.request cimport Request

cdef int getlk(Calls calls, Request* request) except? -1
cdef int setlk(Calls calls, Request* request) except? -1
cdef int unlock(Calls calls, uint64_t node, uint64_t handle, uint64_t owner) except? -1
cdef int unlock_file(Calls calls, uint64_t node, uint64_t handle, uint64_t owner) except? -1

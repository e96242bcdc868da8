# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.filesystem cimport Filesystem as Served
from virtiofs.fuse.request cimport Request

cdef class Calls(Served):
    cdef object fs               # what answers: a python.Filesystem
    cdef object log
    cdef object awaiting         # or None where nothing is `async def`
    cdef frozenset absent        # operations it has no method for
    cdef dict listings           # by the handle the guest knows
    cdef uint64_t next_listing
    cdef uint64_t listed         # entries in all of them
    cdef dict told               # what was logged, and when

    cdef object result(self, object found)
    cdef int tell(self, Request* request, object error) except? -1
    cdef str describe(self, Request* request)

ctypedef int (*Step)(Calls calls, Request* request) except? -1

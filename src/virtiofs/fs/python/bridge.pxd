# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.python.calls cimport Calls, Step
from virtiofs.fuse.request cimport OPCODES, Request

cdef class Bridge(Calls):
    cdef object life             # what is told of beginning and end: a Filesystem or a PathFilesystem
    cdef bint told_who           # it has `asked_by`
    cdef Step steps[OPCODES]

    cdef int serve(self, Request* request) noexcept

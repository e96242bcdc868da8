# SPDX-License-Identifier: Apache-2.0
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.marks cimport Policing
from virtiofs.fs.policy.matcher cimport Matcher
from virtiofs.fuse.request cimport Handler

cdef class Verdicts:
    cdef Policing policing
    cdef Matcher matcher
    cdef readonly object policy
    cdef object asker

    cdef int begin(self, Share* share, Handler* inner, bint late) except? -1
    cdef int follow_files(self) except? -1
    cdef int look_through(self) except? -1

# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fs.passthrough.context cimport Share
from virtiofs.fs.passthrough.marks cimport Policing
from virtiofs.fs.passthrough.verdicts cimport Verdicts
from virtiofs.fuse.request cimport OPCODES, Handler

cdef enum:
    GENERATIONS = 4          # policies that requests may work by at a time
    SLOTS = 16               # a power of two

cdef struct Users:           # 64 bytes, so that no two threads write to one line
    uint64_t count
    uint64_t unused[7]

cdef struct Generation:      # a place for a policy
    Policing* policing
    Users users[SLOTS]       # requests that work by it

cdef struct Ruling:
    Generation* now          # in force
    Generation generations[GENERATIONS]
    Handler guards[OPCODES]
    Handler inner[OPCODES]   # what they stand in front of

cdef class Policies:
    cdef Ruling ruling
    cdef Share* share
    cdef object log
    cdef list held           # the `Verdicts` in each place
    cdef Verdicts prepared

    cdef int begin(self, Share* share, Handler* table, object policy) except? -1
    cdef int free_place(self) noexcept
    cdef void give_up(self)
    cdef Verdicts in_force(self)

# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t
from virtiofs.fuse.request cimport OPCODES, Request
from virtiofs.fuse.session cimport Session
from virtiofs.virtqueue.split cimport SplitQueue

cdef enum:
    BUCKETS = 25             # of a latency histogram: up to 1024 ns, 2048 ns, ... 8.6 s, and all above
    SAMPLED = 17             # one request in so many is timed; a prime, so that no pattern of requests hides from it

cdef struct Counters:        # by opcode; 0 is whatever has none
    uint64_t requests[OPCODES]
    uint64_t errors[OPCODES]
    uint64_t nanoseconds[OPCODES]            # that the timed requests took
    uint64_t buckets[OPCODES][BUCKETS]

cdef class QueueLoop:
    cdef readonly SplitQueue queue
    cdef Session session
    cdef Request request
    cdef int kick
    cdef int call
    cdef int wake
    cdef int poll
    cdef bint open       # the descriptors above are ours to close
    cdef int stopping
    cdef int enabled
    cdef readonly uint64_t requests
    cdef Counters counted

    cdef void rouse(self)
    cdef int serve_until_stopped(self) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef void time(self, uint32_t opcode, uint64_t began) noexcept nogil

# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from virtiofs.fuse.request cimport OPCODES, Request
from virtiofs.fuse.session cimport Session
from virtiofs.fuse.tracing cimport Ring, Trace
from virtiofs.fuse.waiting cimport Waiting

cdef enum:
    BUCKETS = 25             # of a latency histogram: up to 1024 ns, 2048 ns, ... 8.6 s, and all above
    SAMPLED = 17             # one request in so many is timed; a prime, so that no pattern of requests hides from it
    BATCH = 64               # requests served in a row while others wait for a lock

cdef struct Counters:        # by opcode; 0 is whatever has none
    uint64_t requests[OPCODES]
    uint64_t errors[OPCODES]
    uint64_t nanoseconds[OPCODES]            # that the timed requests took
    uint64_t buckets[OPCODES][BUCKETS]

cdef class Loop:
    cdef Session session
    cdef Request request
    cdef int stopping
    cdef readonly uint64_t requests
    cdef Counters counted
    cdef Waiting* waiting            # MOST_WAITING of them, made when the first is needed
    cdef readonly uint32_t waiting_count
    cdef int64_t wait_limit          # ns
    cdef int pause                   # ms until the waiting are asked again
    cdef Trace* trace                # where each request is written down; NULL: nowhere
    cdef Ring ring                   # what keeps that mapped
    cdef uint16_t index              # of the queue, as the trace says it

    cdef void complete(self, Request* request, uint16_t head, uint32_t length, int64_t began) noexcept nogil
    cdef bint hold(self, uint16_t head) noexcept nogil
    cdef void ask_again(self, bint give_up) noexcept nogil
    cdef void count(self, Request* request) noexcept nogil
    cdef void time(self, Request* request, uint32_t length, int64_t began) noexcept nogil

# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from virtiofs.fuse.request cimport OPCODES, Request
from virtiofs.fuse.session cimport Session
from virtiofs.fuse.waiting cimport Waiting
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
    cdef Waiting* waiting            # MOST_WAITING of them, made when the first is needed
    cdef readonly uint32_t waiting_count
    cdef int64_t wait_limit          # ns
    cdef int pause                   # ms until the waiting are asked again
    cdef bint owing                  # the guest was not yet told of what was given back
    cdef int64_t owing_since
    cdef int64_t span                # ns to look at the ring before sleeping; 0: not at all
    cdef bint vain                   # that was done, and no chain came
    cdef int64_t allowance           # ns that may still be spent in vain
    cdef int64_t accounted           # when the allowance was last added to
    cdef uint32_t patience           # sleeps until it is tried again
    cdef uint32_t penalty            # what `patience` becomes when it was in vain at full length

    cdef void rouse(self)
    cdef int serve_until_stopped(self) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef bint spin(self) noexcept nogil
    cdef int sleep(self) noexcept nogil
    cdef void learn(self, int64_t began) noexcept nogil
    cdef void complete(self, uint16_t head, uint32_t length) noexcept nogil
    cdef bint may_owe(self) noexcept nogil
    cdef bint takes_long(self) noexcept nogil
    cdef void notify(self) noexcept nogil
    cdef bint hold(self) noexcept nogil
    cdef void ask_again(self, bint give_up) noexcept nogil
    cdef void count(self) noexcept nogil
    cdef void time(self, int64_t began) noexcept nogil

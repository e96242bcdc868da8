# SPDX-License-Identifier: Apache-2.0
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from virtiofs.fuse.pool cimport Job, Pool, pthread_mutex_t
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
    cdef bint spinning               # look at the ring for a while before sleeping
    cdef uint32_t patience           # sleeps until spinning is tried again
    cdef uint32_t penalty            # what `patience` becomes when it was in vain
    cdef Pool pool
    cdef readonly uint32_t outstanding   # requests that the pool has
    cdef pthread_mutex_t shared      # over used ring and counters while there are any

    cdef void rouse(self)
    cdef int serve_until_stopped(self) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef bint spin(self) noexcept nogil
    cdef int sleep(self) noexcept nogil
    cdef bint hand_over(self, int64_t began) noexcept nogil
    cdef uint32_t serve_waiting(self) noexcept nogil
    cdef void wait_for_jobs(self) noexcept nogil
    cdef void complete(self, Request* request, uint16_t head, uint32_t length, int64_t began) noexcept nogil
    cdef bint hold(self) noexcept nogil
    cdef void ask_again(self, bint give_up) noexcept nogil
    cdef void count(self, Request* request) noexcept nogil
    cdef void time(self, Request* request, int64_t began) noexcept nogil

cdef void perform(QueueLoop loop, Job* job) noexcept nogil

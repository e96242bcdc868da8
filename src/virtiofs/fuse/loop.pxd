# SPDX-License-Identifier: Apache-2.0
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from virtiofs.fuse.pool cimport Job, Pool, pthread_mutex_t
from virtiofs.fuse.request cimport Request
from virtiofs.fuse.serving cimport Loop
from virtiofs.virtqueue.split cimport SplitQueue

cdef class QueueLoop(Loop):
    cdef readonly SplitQueue queue
    cdef int kick
    cdef int call
    cdef int wake
    cdef int poll
    cdef bint open       # the descriptors above are ours to close
    cdef int enabled
    cdef bint owing                  # the guest was not yet told of what was given back
    cdef int64_t owing_since
    cdef int64_t span                # ns to look at the ring before sleeping; 0: not at all
    cdef bint vain                   # that was done, and no chain came
    cdef int64_t allowance           # ns that may still be spent in vain
    cdef int64_t accounted           # when the allowance was last added to
    cdef uint32_t patience           # sleeps until it is tried again
    cdef uint32_t penalty            # what `patience` becomes when it was in vain at full length
    cdef readonly uint64_t looks         # at the ring before sleeping
    cdef readonly uint64_t vain_looks    # of them
    cdef readonly uint64_t sleeps
    cdef readonly uint64_t kicks         # that ended a sleep
    cdef readonly uint64_t notifications
    cdef Pool pool
    cdef readonly uint32_t outstanding   # requests that the pool has
    cdef pthread_mutex_t shared      # over used ring and counters while there are any

    cdef void rouse(self)
    cdef int serve_until_stopped(self) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef bint spin(self) noexcept nogil
    cdef int sleep(self) noexcept nogil
    cdef void learn(self, int64_t began) noexcept nogil
    cdef bint may_owe(self) noexcept nogil
    cdef bint takes_long(self) noexcept nogil
    cdef void notify(self) noexcept nogil
    cdef void tell(self) noexcept nogil
    cdef void give_back(self, Request* request, uint16_t head, uint32_t length, int64_t began) noexcept nogil
    cdef bint hand_over(self, int64_t began) noexcept nogil
    cdef uint32_t serve_waiting(self) noexcept nogil
    cdef void wait_for_jobs(self) noexcept nogil

cdef void perform(QueueLoop loop, Job* job) noexcept nogil

# SPDX-License-Identifier: Apache-2.0
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec
from virtiofs.fuse.request cimport ARGS_ROOM, Request

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_cond_init(pthread_cond_t* condition, void* attributes)
    int pthread_cond_destroy(pthread_cond_t* condition)
    int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex)
    int pthread_cond_signal(pthread_cond_t* condition)
    int pthread_cond_broadcast(pthread_cond_t* condition)

cdef enum:
    MOST_JOBS = 1024         # in a pool, waiting or being done: with their pieces, 18 MiB at most, and with values 86
    MOST_PIECES = 1024       # of a request that is handed over
    MOST_REST = 68 * 1024    # bytes of names and of a value: an extended attribute's has 64 KiB
    RESULT_ROOM = 160        # for a reply that is not data: the largest, of CREATE, has 144 bytes

cdef struct Job
ctypedef void (*Finish)(PyObject* queue, Job* job) noexcept nogil

cdef struct Job:
    Request request          # its buffers are those below
    uint16_t head            # of the chain
    int64_t began            # when it was taken, or 0 if that is not counted
    Finish finish            # does it and gives the chain back, with `queue`
    PyObject* queue          # whose job it is; borrowed, as a queue outlives its jobs
    uint32_t* outstanding    # how many jobs that queue has
    Job* next
    uint8_t args[ARGS_ROOM]
    uint8_t reply[RESULT_ROOM]
    iovec pieces[1]          # as many as there are: data, then room for the reply; then names and value

cdef class Pool:
    cdef pthread_mutex_t lock        # over all that follows, and each `outstanding`
    cdef pthread_cond_t offered      # a job waits, or the end has come
    cdef pthread_cond_t finished     # a queue has no job any more
    cdef Job* first
    cdef Job* last
    cdef readonly uint32_t threads
    cdef readonly uint32_t idle      # of them
    cdef readonly uint32_t jobs
    cdef readonly uint64_t taken     # jobs, ever
    cdef readonly uint64_t refused
    cdef bint called                 # an idle thread was woken, and has not come yet
    cdef bint ending

    cdef bint take(self, Request* request, uint16_t head, int64_t began, Finish finish, PyObject* queue,
                   uint32_t* outstanding) noexcept nogil
    cdef void call_one(self) noexcept nogil
    cdef void work(self) noexcept nogil
    cdef void wait_for(self, uint32_t* outstanding) noexcept nogil

# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint64_t
from virtiofs.fs.passthrough.host cimport pthread_mutex_t

cdef enum:
    LANES = 128
    INODE_BYTES_EACH = 1024  # what an inode costs besides its blocks

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutexattr_t:
        pass
    enum: PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST, PTHREAD_MUTEX_RECURSIVE
    int pthread_mutexattr_init(pthread_mutexattr_t* attributes)
    int pthread_mutexattr_setpshared(pthread_mutexattr_t* attributes, int shared)
    int pthread_mutexattr_settype(pthread_mutexattr_t* attributes, int type)
    int pthread_mutexattr_setrobust(pthread_mutexattr_t* attributes, int robust)
    int pthread_mutex_init_with "pthread_mutex_init"(pthread_mutex_t* mutex, pthread_mutexattr_t* attributes)
    int pthread_mutex_consistent(pthread_mutex_t* mutex)

cdef struct Account:         # in memory that all workers of a share have in common
    uint64_t limit
    uint64_t used            # bytes that are there because of the guest
    uint64_t reserved        # bytes that requests in flight may come to need
    pthread_mutex_t lanes[LANES]

cdef class Quota:
    cdef Account* account

cdef bint reserve(Account* account, uint64_t size) noexcept nogil
cdef void settle(Account* account, uint64_t reserved, int64_t growth) noexcept nogil
cdef void give_back(Account* account, uint64_t size) noexcept nogil
cdef void lock_lanes(Account* account, uint64_t one, uint64_t two) noexcept nogil
cdef void unlock_lanes(Account* account, uint64_t one, uint64_t two) noexcept nogil
cdef void close_removed(Account* account, int fd) noexcept nogil

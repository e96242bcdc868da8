# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from virtiofs.virtqueue.driver cimport DriverQueue

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef enum:
    SMALL = 4096                  # bytes of a slot

cdef void kick(DriverQueue ring) noexcept nogil

cdef class Hiprio:
    cdef readonly DriverQueue ring
    cdef uint64_t address
    cdef uint8_t *host
    cdef uint32_t *owners         # head -> slot
    cdef uint32_t *free
    cdef uint32_t free_count
    cdef pthread_mutex_t mutex

    cdef int send(self, const uint8_t *message, uint32_t length, uint32_t room, uint32_t *stopping) noexcept nogil
    cdef int reap(self) noexcept nogil

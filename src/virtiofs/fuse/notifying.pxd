# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.virtqueue.split cimport SplitQueue

cdef class NotificationRing:
    cdef readonly SplitQueue queue
    cdef int kick
    cdef int call
    cdef int wake
    cdef object watch
    cdef bint enabled
    cdef bint stopping
    cdef readonly uint64_t requests

    cdef bint fill(self, bytes message)

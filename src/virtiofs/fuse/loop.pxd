# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.fuse.request cimport Request
from virtiofs.fuse.session cimport Session
from virtiofs.virtqueue.split cimport SplitQueue

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

    cdef void rouse(self)
    cdef int serve_until_stopped(self) noexcept nogil
    cdef int drain(self) noexcept nogil

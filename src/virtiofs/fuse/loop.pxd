# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint16_t, uint32_t
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
    cdef bint spinning               # look at the ring for a while before sleeping
    cdef uint32_t patience           # sleeps until spinning is tried again
    cdef uint32_t penalty            # what `patience` becomes when it was in vain

    cdef void rouse(self)
    cdef int serve_until_stopped(self) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef bint spin(self) noexcept nogil
    cdef int sleep(self) noexcept nogil

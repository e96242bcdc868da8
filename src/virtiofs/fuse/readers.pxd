# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    MOST_READERS = 64

cdef struct Place:
    uint64_t taken       # requests
    uint32_t busy        # its thread has one
    uint32_t spare       # in a row, for which it was not needed
    int bell             # an eventfd
    uint8_t apart[44]    # from the next thread's cache line

cdef class Readers:
    cdef uint32_t count
    cdef uint32_t wanted             # places below this read
    cdef uint32_t asleep             # the next one is to be called
    cdef Place places[MOST_READERS]

    cdef void ring(self, uint32_t place) noexcept nogil
    cdef bint reads(self, uint32_t place) noexcept nogil
    cdef void took(self, uint32_t place) noexcept nogil
    cdef void gave(self, uint32_t place, bint keep) noexcept nogil
    cdef uint64_t all_taken(self) noexcept nogil
    cdef bint all_busy(self, uint32_t place) noexcept nogil
    cdef void stand_by(self, uint32_t place, int fd, int* stopping) noexcept nogil

# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.metadata.layout cimport Record
from virtiofs.metadata.table cimport Table

cdef class Follower:
    cdef Table table
    cdef uint64_t position   # the ticket to read next
    cdef uint64_t everything # the word, when we last looked
    cdef bint open
    cdef Record record
    cdef readonly int lagged # how often we had to start again from now
    cdef void leave(self) noexcept
    cdef int look(self) noexcept nogil
    cdef void sleep(self, long nanoseconds) noexcept nogil

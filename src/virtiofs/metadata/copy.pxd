# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t
from virtiofs.metadata.journal cimport View
from virtiofs.metadata.table cimport Table

cdef extern from *:
    """
    #define SHOWN (1ULL << 63)
    """
    const uint64_t SHOWN     # of a word: the guest was told of the slot (region.SHOWN)

cdef struct Shown:           # what a worker's threads need of a copy
    uint64_t* words          # SHOWN and the table's word, for each slot; 0: the guest was not told of it
    View* view               # of the table

cdef class Copy:
    cdef Table table
    cdef uint64_t* header
    cdef Shown shown
    cdef readonly int fd
    cdef readonly size_t size

cdef uint64_t show_slot(Shown* copy, uint64_t slot) noexcept nogil
cdef void renew_slot(Shown* copy, uint64_t slot) noexcept nogil

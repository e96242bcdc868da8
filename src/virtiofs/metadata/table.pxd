# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from virtiofs.metadata.journal cimport Change, View

cdef extern from *:
    """
    static __thread int table_pending_hint;
    static inline int *table_hint(void) { return &table_pending_hint; }
    """
    int* hint "table_hint"() noexcept nogil  # where this thread last found room for what it begins

cdef extern from "<sys/mman.h>" nogil:
    enum: MADV_DONTFORK

cdef class Table:
    cdef View view
    cdef size_t size         # of the mapping; 0: closed
    cdef readonly object path
    cdef readonly int fd     # of the file, whose description holds our locks; -1: the mapping alone holds them
    cdef readonly object pid # who attached: in another process there is only the mapping
    cdef readonly uint32_t slots
    cdef public uint32_t following  # followers of this table, and those that sleep
    cdef public uint32_t sleeping
    cdef int check(self) except? -1
    cdef int check_slot(self, object slot) except? -1

cdef uint64_t slot_of(View* view, uint64_t dev, uint64_t ino) noexcept nogil
cdef uint64_t word_of(View* view, uint64_t slot) noexcept nogil
cdef int begin_(View* view, uint64_t slot) noexcept nogil
cdef void end_(View* view, int entry, Change* change) noexcept nogil

# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    SLOT_LIVE = 1 << 30
    SLOT_EVICTING = 1 << 29
    SLOT_REFERENCES = (1 << 29) - 1

cdef bint slot_pin(uint64_t* word, uint32_t generation) noexcept nogil
cdef bint slot_unpin(uint64_t* word) noexcept nogil
cdef void slot_open(uint64_t* word) noexcept nogil
cdef void slot_close(uint64_t* word) noexcept nogil
cdef void slot_renew(uint64_t* word) noexcept nogil
cdef bint slot_begin_evict(uint64_t* word) noexcept nogil
cdef void slot_end_evict(uint64_t* word) noexcept nogil

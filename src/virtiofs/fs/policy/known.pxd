# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t
from virtiofs.fs.policy.matcher cimport Tables, Verdict

cdef uint32_t hash_of(const char* name, uint32_t size) noexcept nogil
cdef uint32_t place_of(uint32_t state, const char* name, uint32_t size) noexcept nogil
cdef bint recall(Tables* tables, uint32_t place, uint32_t state, const char* name, uint32_t size, Verdict* verdict,
                 uint32_t* below) noexcept nogil
cdef void remember(Tables* tables, uint32_t place, uint32_t state, const char* name, uint32_t size, Verdict* verdict,
                   uint32_t below) noexcept nogil

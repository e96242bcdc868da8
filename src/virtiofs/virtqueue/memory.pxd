# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    MAX_REGIONS = 512

cdef struct Region:
    uint64_t guest
    uint64_t size
    uint8_t* host
    void* mapped       # what mmap returned, and its length, for munmap
    uint64_t mapped_size

cdef struct MemoryMap:
    uint32_t count
    Region regions[MAX_REGIONS]

cdef uint8_t* translate(MemoryMap* map, uint64_t address, uint64_t length) noexcept nogil

cdef class GuestMemory:
    cdef MemoryMap map

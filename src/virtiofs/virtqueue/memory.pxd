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
    uint64_t window_guest  # 0: not known
    uint64_t window_size
    uint8_t* window_host

cdef inline bint holds(Region* region, uint64_t address, uint64_t length) noexcept nogil:
    """Whether `length` bytes at guest address `address` are all in one region."""
    # The subtractions can not wrap: the first test guards the second, the second the third.
    return address >= region.guest and length <= region.size and address - region.guest <= region.size - length

cdef Region* region_of(MemoryMap* map, uint64_t address, uint64_t length) noexcept nogil
cdef uint8_t* translate(MemoryMap* map, uint64_t address, uint64_t length) noexcept nogil

cdef uint8_t* translate_window(MemoryMap* map, uint64_t address, uint64_t length) noexcept nogil

cdef class GuestMemory:
    cdef MemoryMap map
    cdef int window_access

    cdef uint64_t in_window(self, object offset, object length) except? 0

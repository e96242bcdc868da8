# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint32_t

cdef enum RangeAction:
    ACTION_SHIFT
    ACTION_SQUASH
    ACTION_FORBID

cdef struct IdRange:
    uint32_t base
    uint32_t count
    uint32_t target
    uint32_t action

cdef struct IdMap:           # one direction, for users or for groups
    IdRange* ranges
    uint32_t count
    bint keep                # an id without a range stays as it is

cdef int id_map_init(IdMap* map, object ranges, bint keep) except? -1
cdef void id_map_free(IdMap* map) noexcept nogil
cdef int64_t translate(const IdMap* map, uint32_t id) noexcept nogil

# SPDX-License-Identifier: Apache-2.0
"""Translation of ids by ranges, one direction of one kind of id at a time.

`idrules.py` says what the rules are.  Ranges are sorted and do not overlap, so a binary search finds the one.
"""

import cython
from cython.cimports.libc.errno import EPERM
from cython.cimports.libc.stdint import int64_t, uint32_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.virtiofs.fs.passthrough.host import EOVERFLOW


@cython.cfunc
@cython.exceptval(-1)
def id_map_init(map: cython.pointer(IdMap), ranges: object, keep: cython.bint) -> cython.int:
    """Make the table of `ranges` (`idrules.Range`).  A direction without rules changes nothing.

    Raises `MemoryError`.
    """
    range_: cython.pointer(IdRange)
    map.count = len(ranges)
    map.keep = keep or map.count == 0
    map.ranges = cython.cast(cython.pointer(IdRange), calloc(map.count + 1, cython.sizeof(IdRange)))
    if map.ranges == cython.NULL:
        raise MemoryError
    for i, (base, count, target, action) in enumerate(ranges):
        range_ = cython.address(map.ranges[cython.cast(cython.int, i)])
        range_.base = base
        range_.count = count
        range_.target = target
        range_.action = action
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def id_map_free(map: cython.pointer(IdMap)) -> cython.void:
    free(map.ranges)
    map.ranges = cython.NULL
    map.count = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def translate(map: cython.pointer(cython.const[IdMap]), id: uint32_t) -> int64_t:
    """The id that `id` becomes; -EPERM for a forbidden one, -EOVERFLOW for one without a range."""
    low: uint32_t = 0
    high: uint32_t = map.count
    middle: uint32_t
    range_: cython.pointer(cython.const[IdRange])
    while low < high:
        middle = (low + high) // 2
        range_ = cython.address(map.ranges[middle])
        if id < range_.base:
            high = middle
        elif id - range_.base >= range_.count:
            low = middle + 1
        elif range_.action == ACTION_FORBID:
            return -EPERM
        elif range_.action == ACTION_SQUASH:
            return range_.target
        else:
            return cython.cast(int64_t, range_.target) + (id - range_.base)
    if map.keep:
        return id
    return -EOVERFLOW


class Translator:
    """One direction for plain Python: what tests ask it."""

    def __init__(self, ranges: list, keep: bool = False):
        self.ranges = ranges
        self.keep = keep

    def translate(self, id: int) -> int:
        """The id that `id` becomes.  Raises `OSError` for one that is forbidden or has no range."""
        map: IdMap
        id_map_init(cython.address(map), self.ranges, self.keep)
        result: int64_t = translate(cython.address(map), id)
        id_map_free(cython.address(map))
        if result < 0:
            raise OSError(-result, f"id {id} is not translated")
        return result

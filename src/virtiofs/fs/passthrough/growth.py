# SPDX-License-Identifier: Apache-2.0
"""What one request changes of the disk: setting aside what it may need, and measuring what it did need.

Room for blocks of the host's own (extents, directories) is set aside with it: ROOM where data or files are added,
LITTLE_ROOM where something that is there changes.
"""

import cython
from cython.cimports.libc.errno import ENOSPC, errno
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.virtiofs.fs.passthrough.account import lock_lanes, reserve, settle, unlock_lanes
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
    SEEK_DATA,
    SEEK_HOLE,
    STATX_BASIC_STATS,
    lseek,
    statx,
    statx_t,
)

SMALLEST_BLOCK = cython.declare(uint64_t, 4096)
LARGEST_BLOCK = cython.declare(uint64_t, 4 << 20)
# How often the host is asked for the extents of one range; the rest counts as not there.
MOST_ROUNDS = cython.declare(cython.int, 64)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def begin(
    growth: cython.pointer(Growth), share: cython.pointer(Share), one: uint64_t, two: uint64_t
) -> cython.void:
    """Keep others from changing the two files with these inode numbers until `end`."""
    growth.share = share
    growth.reserved = 0
    growth.bytes = 0
    growth.one = one
    growth.two = two
    lock_lanes(share.account, one, two)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def end(growth: cython.pointer(Growth)) -> cython.void:
    settle(growth.share.account, growth.reserved, growth.bytes)
    unlock_lanes(growth.share.account, growth.one, growth.two)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_aside(growth: cython.pointer(Growth), size: uint64_t) -> cython.int:
    """0, or -ENOSPC."""
    if not reserve(growth.share.account, size):
        return -ENOSPC
    growth.reserved += size
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def look(fd: cython.int, status: cython.pointer(statx_t)) -> cython.int:
    """The state of an open file: 0 or a negative errno."""
    return 0 if statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, status) == 0 else -errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def add_change(
    growth: cython.pointer(Growth), fd: cython.int, before: cython.pointer(statx_t)
) -> cython.void:
    """Count by how much the file has grown or shrunk since `before`."""
    after: statx_t
    if look(fd, cython.address(after)) == 0:
        growth.bytes += (
            cython.cast(int64_t, after.stx_blocks) - cython.cast(int64_t, before.stx_blocks)
        ) * 512


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def block_of(status: cython.pointer(statx_t)) -> uint64_t:
    """The unit in which the host gives room to this file; a power of two."""
    size: uint64_t = SMALLEST_BLOCK
    while size < status.stx_blksize and size < LARGEST_BLOCK:
        size *= 2
    return size


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_aside_range(
    growth: cython.pointer(Growth),
    fd: cython.int,
    status: cython.pointer(statx_t),
    offset: uint64_t,
    size: uint64_t,
) -> cython.int:
    """Set aside what `size` bytes of data at `offset` may take: 0 or -ENOSPC.

    First as if nothing were there yet.  Only if there is not that much left, the host is asked what is there.
    """
    block: uint64_t = block_of(status)
    missing: uint64_t
    unwritten: cython.bint = False
    if size == 0:
        return 0
    if size <= growth.share.account.limit and set_aside(growth, size + 2 * block + ROOM) == 0:
        return 0
    begins: uint64_t = offset & ~(block - 1)
    ends: uint64_t = (offset + size + block - 1) & ~(block - 1)
    missing = unallocated(fd, begins, ends - begins, cython.address(unwritten))
    if missing:
        return set_aside(growth, missing + ROOM) if missing <= growth.share.account.limit else -ENOSPC
    return set_aside(growth, LITTLE_ROOM) if unwritten else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def unallocated(
    fd: cython.int, offset: uint64_t, size: uint64_t, unwritten: cython.pointer(cython.bint)
) -> uint64_t:
    """How many bytes of a range have no place on the disk.  `unwritten`: some have one that was never written to."""
    map: Extents
    extent: cython.pointer(fiemap_extent)
    at: uint64_t = offset
    stop: uint64_t = offset + size
    missing: uint64_t = 0
    last: uint64_t
    _round: cython.int
    i: uint32_t
    for _round in range(MOST_ROUNDS):
        map.head.fm_start = at
        map.head.fm_length = stop - at
        map.head.fm_flags = 0
        map.head.fm_extent_count = EXTENTS
        map.head.fm_mapped_extents = 0
        if ioctl(fd, FS_IOC_FIEMAP, cython.address(map)) != 0:
            return missing + holes(fd, at, stop)
        if map.head.fm_mapped_extents == 0:
            return missing + (stop - at)
        for i in range(map.head.fm_mapped_extents):
            extent = cython.address(map.extents[i])
            last = extent.fe_logical + extent.fe_length
            if last <= at:
                continue
            if extent.fe_logical > at:
                missing += (extent.fe_logical if extent.fe_logical < stop else stop) - at
            # What is compressed is not overwritten in place.
            if extent.fe_flags & FIEMAP_EXTENT_ENCODED:
                missing += (last if last < stop else stop) - (
                    extent.fe_logical if extent.fe_logical > at else at
                )
            if extent.fe_flags & FIEMAP_EXTENT_UNWRITTEN:
                unwritten[0] = True
            at = last
            if at >= stop:
                return missing
            if extent.fe_flags & FIEMAP_EXTENT_LAST:
                return missing + (stop - at)
    return missing + (stop - at)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def holes(fd: cython.int, offset: uint64_t, stop: uint64_t) -> uint64_t:
    """As `unallocated`, where the host tells no extents: what was set aside but never written counts as missing."""
    at: uint64_t = offset
    data: int64_t
    hole: int64_t
    missing: uint64_t = 0
    _round: cython.int
    for _round in range(MOST_ROUNDS):
        data = lseek(fd, at, SEEK_DATA)
        if data < 0 or cython.cast(uint64_t, data) >= stop:
            return missing + (stop - at)
        missing += data - at
        hole = lseek(fd, data, SEEK_HOLE)
        if hole < 0:
            return missing + (stop - data)
        at = hole
        if at >= stop:
            return missing
    return missing + (stop - at)

# SPDX-License-Identifier: Apache-2.0
"""Steps of operations on attributes, plain and extended."""

import errno as errors
import time

import cython
from cython.cimports.cpython.bytes import PyBytes_FromStringAndSize
from cython.cimports.libc.errno import EINVAL, ERANGE
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.virtiofs.fs.python.calls import Calls
from cython.cimports.virtiofs.fs.python.packing import (
    caller_of,
    name_of,
    put_attr,
    put_data,
    put_time,
    put_valid,
    reply_attributes,
)
from cython.cimports.virtiofs.fs.python.replies import Attributes, Changes, Statistics
from cython.cimports.virtiofs.fuse.layout import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_FH,
    FATTR_GID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FUSE_GETATTR_FH,
    fuse_access_in,
    fuse_attr_out,
    fuse_getattr_in,
    fuse_getxattr_in,
    fuse_getxattr_out,
    fuse_kstatfs,
    fuse_setattr_in,
    fuse_setxattr_in,
    fuse_statx_in,
    fuse_statx_out,
    fuse_sx_time,
)
from cython.cimports.virtiofs.fuse.request import Request, scatter

# In nanoseconds: the year 2262, to which later ones are cut.
LATEST = (1 << 63) - 1
# STATX_* of <linux/stat.h>: what `mask` says is there.
STATX_BASIC = cython.declare(uint32_t, 0x7FF)
STATX_BTIME = cython.declare(uint32_t, 0x800)


@cython.cfunc
@cython.exceptval(-1)
def getattr_(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_getattr_in) = cython.cast(cython.pointer(fuse_getattr_in), request.args)
    handle = asked.fh if asked.getattr_flags & FUSE_GETATTR_FH else None
    return reply_attributes(request, calls.result(calls.fs.getattr(request.header.nodeid, handle)), "getattr")


@cython.cfunc
def time_of(
    asked: cython.pointer(fuse_setattr_in), given: uint32_t, now: uint32_t, seconds: uint64_t, rest: uint32_t
) -> object:
    if asked.valid & now:
        return time.time_ns()
    if asked.valid & given:
        ns = cython.cast(object, cython.cast(int64_t, seconds)) * 1000000000 + rest % 1000000000
        return max(-LATEST, min(LATEST, ns))
    return None


@cython.cfunc
@cython.exceptval(-1)
def setattr_(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_setattr_in) = cython.cast(cython.pointer(fuse_setattr_in), request.args)
    changes = Changes(
        asked.mode & 0o7777 if asked.valid & FATTR_MODE else None,
        asked.uid if asked.valid & FATTR_UID else None,
        asked.gid if asked.valid & FATTR_GID else None,
        asked.size if asked.valid & FATTR_SIZE else None,
        time_of(asked, FATTR_ATIME, FATTR_ATIME_NOW, asked.atime, asked.atimensec),
        time_of(asked, FATTR_MTIME, FATTR_MTIME_NOW, asked.mtime, asked.mtimensec),
    )
    if asked.valid & FATTR_SIZE and asked.size >> 63:
        raise OSError(EINVAL, "a size below 0")
    handle = asked.fh if asked.valid & FATTR_FH else None
    found = calls.result(calls.fs.setattr(request.header.nodeid, changes, handle))
    return reply_attributes(request, found, "setattr")


@cython.cfunc
@cython.exceptval(check=False)
def put_sx_time(out: cython.pointer(fuse_sx_time), seconds: uint64_t, nanoseconds: uint32_t) -> cython.void:
    out.tv_sec = cython.cast(int64_t, seconds)
    out.tv_nsec = nanoseconds


@cython.cfunc
@cython.exceptval(-1)
def statx(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    """What GETATTR says, and the time of birth: `getattr` answers both."""
    asked: cython.pointer(fuse_statx_in) = cython.cast(cython.pointer(fuse_statx_in), request.args)
    attr: fuse_attr_out
    out: fuse_statx_out
    seconds: uint64_t = 0
    nanoseconds: uint32_t = 0
    handle = asked.fh if asked.getattr_flags & FUSE_GETATTR_FH else None
    found: object = calls.result(calls.fs.getattr(request.header.nodeid, handle))
    if not isinstance(found, Attributes):
        raise TypeError(f"getattr returns Attributes, not {found!r}")
    attributes: Attributes = found
    memset(cython.address(out), 0, cython.sizeof(fuse_statx_out))
    memset(cython.address(attr), 0, cython.sizeof(fuse_attr_out))
    put_attr(cython.address(attr.attr), attributes, request.header.nodeid)
    put_valid(cython.address(out.attr_valid), cython.address(out.attr_valid_nsec), attributes.valid)
    out.stat.mask = STATX_BASIC
    out.stat.blksize = attr.attr.blksize
    out.stat.nlink = attr.attr.nlink
    out.stat.uid = attr.attr.uid
    out.stat.gid = attr.attr.gid
    out.stat.mode = attr.attr.mode
    out.stat.ino = attr.attr.ino
    out.stat.size = attr.attr.size
    out.stat.blocks = attr.attr.blocks
    out.stat.rdev_major = attr.attr.rdev >> 8 & 0xFFF
    out.stat.rdev_minor = attr.attr.rdev & 0xFF | attr.attr.rdev >> 12 & 0xFFF00
    put_sx_time(cython.address(out.stat.atime), attr.attr.atime, attr.attr.atimensec)
    put_sx_time(cython.address(out.stat.mtime), attr.attr.mtime, attr.attr.mtimensec)
    put_sx_time(cython.address(out.stat.ctime), attr.attr.ctime, attr.attr.ctimensec)
    if attributes.btime_ns:
        put_time(cython.address(seconds), cython.address(nanoseconds), attributes.btime_ns)
        put_sx_time(cython.address(out.stat.btime), seconds, nanoseconds)
        out.stat.mask |= STATX_BTIME
    # In place: it is larger than what else a thread of the pool has room for.
    request.in_place = True
    request.reply_size = scatter(
        cython.address(out),
        cython.address(request.out),
        cython.address(request.out_count),
        cython.sizeof(fuse_statx_out),
    )
    return 0


@cython.cfunc
@cython.exceptval(-1)
def access(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_access_in) = cython.cast(cython.pointer(fuse_access_in), request.args)
    calls.result(calls.fs.access(request.header.nodeid, asked.mask, caller_of(request)))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def statfs(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    out: cython.pointer(fuse_kstatfs) = cython.cast(cython.pointer(fuse_kstatfs), request.reply)
    found = Statistics() if "statfs" in calls.absent else calls.result(calls.fs.statfs(request.header.nodeid))
    if not isinstance(found, Statistics):
        raise TypeError(f"statfs returns Statistics, not {found!r}")
    statistics: Statistics = found
    memset(out, 0, cython.sizeof(fuse_kstatfs))
    out.blocks = statistics.blocks
    out.bfree = statistics.free
    out.bavail = statistics.available
    out.files = statistics.files
    out.ffree = statistics.free_files
    out.bsize = out.frsize = statistics.block_size
    out.namelen = statistics.name_length
    request.reply_size = cython.sizeof(fuse_kstatfs)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def setxattr(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_setxattr_in) = cython.cast(cython.pointer(fuse_setxattr_in), request.args)
    if asked.size != request.tail_size:
        raise OSError(EINVAL, "the value has another length than it says")
    if asked.size > 65536:
        raise OSError(errors.E2BIG, "the value is too long")
    value = PyBytes_FromStringAndSize(cython.cast(cython.p_char, request.tail), request.tail_size)
    calls.result(calls.fs.setxattr(request.header.nodeid, name_of(request, 0), value, asked.flags))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def reply_value(request: cython.pointer(Request), value: object) -> cython.int:
    """A value, or with room 0 asked for, its size."""
    asked: cython.pointer(fuse_getxattr_in) = cython.cast(cython.pointer(fuse_getxattr_in), request.args)
    size: uint64_t = len(value)
    if size > 65536:
        raise ValueError(f"an extended attribute, and the names of all, have at most 65536 bytes, not {size}")
    if asked.size == 0:
        memset(request.reply, 0, cython.sizeof(fuse_getxattr_out))
        cython.cast(cython.pointer(fuse_getxattr_out), request.reply).size = size
        request.reply_size = cython.sizeof(fuse_getxattr_out)
        return 0
    if size > asked.size or size > request.out_size:
        raise OSError(ERANGE, "the value is longer than the room for it")
    return put_data(request, value, asked.size)


@cython.cfunc
@cython.exceptval(-1)
def getxattr(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    return reply_value(request, calls.result(calls.fs.getxattr(request.header.nodeid, name_of(request, 0))))


@cython.cfunc
@cython.exceptval(-1)
def listxattr(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    names = list(calls.result(calls.fs.listxattr(request.header.nodeid)))
    return reply_value(request, b"".join([name + b"\0" for name in names]))


@cython.cfunc
@cython.exceptval(-1)
def removexattr(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    calls.result(calls.fs.removexattr(request.header.nodeid, name_of(request, 0)))
    return 0

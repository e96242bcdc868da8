# SPDX-License-Identifier: Apache-2.0
"""Steps of operations on names.

A step unpacks the structure of its operation, calls the method and packs the result.  What it raises `Bridge.serve`
turns into an errno.
"""

import stat

import cython
from cython.cimports.libc.errno import EINVAL
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.virtiofs.fs.python.calls import Calls
from cython.cimports.virtiofs.fs.python.packing import (
    caller_of,
    is_stale,
    name_of,
    node_of,
    put_data,
    reply_entry,
)
from cython.cimports.virtiofs.fuse.layout import (
    fuse_batch_forget_in,
    fuse_forget_in,
    fuse_forget_one,
    fuse_link_in,
    fuse_mkdir_in,
    fuse_mknod_in,
    fuse_rename2_in,
    fuse_rename_in,
)
from cython.cimports.virtiofs.fuse.request import Request

S_IFMT = cython.declare(uint32_t, stat.S_IFMT(0xFFFF))
S_IFREG = cython.declare(uint32_t, stat.S_IFREG)
# What MKNOD makes; directories and links have requests of their own.
KINDS = (stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)


@cython.cfunc
@cython.exceptval(-1)
def lookup(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    found = calls.result(calls.fs.lookup(request.header.nodeid, name_of(request, 0)))
    return reply_entry(request, found, "lookup", False)


@cython.cfunc
@cython.exceptval(-1)
def forget(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_forget_in) = cython.cast(cython.pointer(fuse_forget_in), request.args)
    calls.result(calls.fs.forget(request.header.nodeid, asked.nlookup))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def batch_forget(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_batch_forget_in) = cython.cast(
        cython.pointer(fuse_batch_forget_in), request.args
    )
    one: fuse_forget_one
    i: uint32_t
    count: uint32_t = request.tail_size // cython.sizeof(fuse_forget_one)
    if asked.count < count:
        count = asked.count
    for i in range(count):
        memcpy(
            cython.address(one),
            request.tail + cython.cast(uint64_t, i) * cython.sizeof(fuse_forget_one),
            cython.sizeof(fuse_forget_one),
        )
        if is_stale(one.nodeid):
            continue
        try:
            calls.result(calls.fs.forget(node_of(one.nodeid), one.nlookup))
        except Exception as error:  # the others are to be forgotten all the same
            calls.tell(request, error)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def readlink(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    return put_data(request, calls.result(calls.fs.readlink(request.header.nodeid)), 4095)


@cython.cfunc
@cython.exceptval(-1)
def symlink(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    found = calls.result(
        calls.fs.symlink(request.header.nodeid, name_of(request, 0), name_of(request, 1), caller_of(request))
    )
    return reply_entry(request, found, "symlink", True)


@cython.cfunc
@cython.exceptval(-1)
def mknod(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_mknod_in) = cython.cast(cython.pointer(fuse_mknod_in), request.args)
    mode: uint32_t = asked.mode & (S_IFMT | 0o7777)
    if not mode & S_IFMT:
        mode |= S_IFREG  # mknod(2) says so; a guest's kernel has done it already
    if mode & S_IFMT not in KINDS:
        raise OSError(EINVAL, "no kind of file that can be made so")
    found = calls.result(
        calls.fs.mknod(request.header.nodeid, name_of(request, 0), mode, asked.rdev, caller_of(request))
    )
    return reply_entry(request, found, "mknod", True)


@cython.cfunc
@cython.exceptval(-1)
def mkdir(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_mkdir_in) = cython.cast(cython.pointer(fuse_mkdir_in), request.args)
    found = calls.result(
        calls.fs.mkdir(request.header.nodeid, name_of(request, 0), asked.mode & 0o7777, caller_of(request))
    )
    return reply_entry(request, found, "mkdir", True)


@cython.cfunc
@cython.exceptval(-1)
def unlink(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    calls.result(calls.fs.unlink(request.header.nodeid, name_of(request, 0)))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def rmdir(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    calls.result(calls.fs.rmdir(request.header.nodeid, name_of(request, 0)))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def rename(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_rename_in) = cython.cast(cython.pointer(fuse_rename_in), request.args)
    calls.result(
        calls.fs.rename(
            request.header.nodeid, name_of(request, 0), node_of(asked.newdir), name_of(request, 1), 0
        )
    )
    return 0


@cython.cfunc
@cython.exceptval(-1)
def rename2(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_rename2_in) = cython.cast(cython.pointer(fuse_rename2_in), request.args)
    calls.result(
        calls.fs.rename(
            request.header.nodeid,
            name_of(request, 0),
            node_of(asked.newdir),
            name_of(request, 1),
            asked.flags,
        )
    )
    return 0


@cython.cfunc
@cython.exceptval(-1)
def link(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_link_in) = cython.cast(cython.pointer(fuse_link_in), request.args)
    found = calls.result(calls.fs.link(node_of(asked.oldnodeid), request.header.nodeid, name_of(request, 0)))
    return reply_entry(request, found, "link", True)

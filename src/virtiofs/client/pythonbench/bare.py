# SPDX-License-Identifier: Apache-2.0
"""The file system that is measured, without Python: a program that calls `main` with a mount point mounts it.

Requests are answered by compiled functions behind the loop that serves /dev/fuse for all others of ours.  So it is
what the kernel, the calling program and that loop take; the others' difference to it is what a file system in Python
costs.
"""

import os
import stat
import sys

import cython
from cython.cimports.libc.errno import EINVAL, ENOENT
from cython.cimports.libc.stdint import uint8_t, uint64_t
from cython.cimports.libc.string import memset, strcmp
from cython.cimports.virtiofs.fuse import layout
from cython.cimports.virtiofs.fuse.layout import (
    FOPEN_DIRECT_IO,
    FUSE_ROOT_ID,
    fuse_attr,
    fuse_attr_out,
    fuse_entry_out,
    fuse_open_out,
    fuse_read_in,
    fuse_write_in,
    fuse_write_out,
)
from cython.cimports.virtiofs.fuse.request import Handlers, Request, gather, scatter

from virtiofs.fuse.devfuse import DevFuseLoop
from virtiofs.fuse.mountpoint import Mountpoint
from virtiofs.fuse.session import Session

DIRECTORY = cython.declare(cython.uint, stat.S_IFDIR | 0o755)
FILE = cython.declare(cython.uint, stat.S_IFREG | 0o644)
# Less is copied into the room for the reply, as that is quicker.
WORTH_SENDING = cython.declare(uint64_t, 16384)
contents = cython.declare(uint8_t[SIZE])
called = cython.declare(uint64_t, 0)  # requests that came: what the others count as calls of methods


@cython.cclass
class Bare(Handlers):
    """Node 2 is "null", which is empty, node 3 "data", with `SIZE` bytes, and 4 "calls", whose size is `called`.

    Nothing is kept by the kernel.
    """

    def __cinit__(self):
        memset(contents, 1, SIZE)  # as pages that nobody wrote take the kernel longer to find
        self.table[layout.FUSE_LOOKUP] = lookup
        self.table[layout.FUSE_GETATTR] = self.table[layout.FUSE_SETATTR] = attributes
        self.table[layout.FUSE_OPEN] = opened
        self.table[layout.FUSE_READ] = read
        self.table[layout.FUSE_WRITE] = write
        self.table[layout.FUSE_RELEASE] = nothing
        self.init_flags = layout.FUSE_ASYNC_READ | layout.FUSE_BIG_WRITES | layout.FUSE_PARALLEL_DIROPS


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def count() -> cython.void:
    global called
    called += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def put(attr: cython.pointer(fuse_attr), node: uint64_t) -> cython.void:
    attr.ino = node
    attr.mode = DIRECTORY if node == FUSE_ROOT_ID else FILE
    attr.nlink = 1
    attr.size = SIZE if node == DATA else called if node == CALLS else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lookup(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    out: cython.pointer(fuse_entry_out) = cython.cast(cython.pointer(fuse_entry_out), request.reply)
    memset(out, 0, cython.sizeof(fuse_entry_out))
    count()
    if strcmp(request.names[0], b"null") == 0:
        out.nodeid = EMPTY
    elif strcmp(request.names[0], b"data") == 0:
        out.nodeid = DATA
    elif strcmp(request.names[0], b"calls") == 0:
        out.nodeid = CALLS
    else:
        return -ENOENT
    put(cython.address(out.attr), out.nodeid)
    request.reply_size = cython.sizeof(fuse_entry_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def attributes(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    out: cython.pointer(fuse_attr_out) = cython.cast(cython.pointer(fuse_attr_out), request.reply)
    count()
    memset(out, 0, cython.sizeof(fuse_attr_out))
    put(cython.address(out.attr), request.header.nodeid)
    request.reply_size = cython.sizeof(fuse_attr_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def opened(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    out: cython.pointer(fuse_open_out) = cython.cast(cython.pointer(fuse_open_out), request.reply)
    memset(out, 0, cython.sizeof(fuse_open_out))
    out.open_flags = FOPEN_DIRECT_IO
    request.reply_size = cython.sizeof(fuse_open_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def read(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_read_in) = cython.cast(cython.pointer(fuse_read_in), request.args)
    size: uint64_t = asked.size
    count()
    request.in_place = True
    if request.header.nodeid != DATA or asked.offset >= SIZE:
        return 0
    if size > SIZE - asked.offset:
        size = SIZE - asked.offset
    if size >= WORTH_SENDING:
        request.send(request.carrier, request, contents + asked.offset, size)
    else:
        request.reply_size = scatter(
            contents + asked.offset, cython.address(request.out), cython.address(request.out_count), size
        )
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_write_in) = cython.cast(cython.pointer(fuse_write_in), request.args)
    out: cython.pointer(fuse_write_out) = cython.cast(cython.pointer(fuse_write_out), request.reply)
    count()
    if asked.offset >= SIZE or request.data_size > SIZE - asked.offset:
        return -EINVAL
    memset(out, 0, cython.sizeof(fuse_write_out))
    out.size = gather(
        contents + asked.offset,
        cython.address(request.data),
        cython.address(request.data_count),
        request.data_size,
    )
    request.reply_size = cython.sizeof(fuse_write_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def nothing(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    return 0


def main() -> None:
    """Serve until unmounted."""
    with Mountpoint(sys.argv[1], name="bench") as mountpoint:
        DevFuseLoop(Session(Bare()), os.dup(mountpoint.fd)).run()

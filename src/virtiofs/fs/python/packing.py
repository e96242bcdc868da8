# SPDX-License-Identifier: Apache-2.0
"""Packing what methods return into the structures of the protocol.

What a method returns is as little trusted as what a guest sends: it is packed by C types, and what the guest's kernel
would choke on is refused by `TypeError`, `ValueError` or `OverflowError`.
"""

import cython
from cython.cimports.cpython.buffer import PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cython.cimports.cpython.bytes import PyBytes_FromStringAndSize
from cython.cimports.libc.errno import ESTALE
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.virtiofs.fs.python.replies import Attributes, Caller, Entry, Opened
from cython.cimports.virtiofs.fuse.layout import (
    FOPEN_CACHE_DIR,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_PARALLEL_DIRECT_WRITES,
    FUSE_ROOT_ID,
    fuse_attr,
    fuse_attr_out,
    fuse_entry_out,
    fuse_open_out,
)
from cython.cimports.virtiofs.fuse.request import Request, scatter

# No validity is longer: enough for ever, and what the kernel converts does not overflow (seconds).
MOST_VALID = cython.declare(cython.double, 1e9)
# Copying less than this costs less than letting go of the GIL once more while the carrier takes it.
WORTH_SENDING = cython.declare(cython.Py_ssize_t, 16384)


# With --reload, node ids say in their upper bits which file system gave them out; 0: there is only one.
EPOCH_SHIFT = cython.declare(cython.int, 48)
EPOCH_MASK = cython.declare(uint64_t, (1 << 48) - 1)
epoch = cython.declare(uint64_t, 0)


@cython.cfunc
@cython.exceptval(check=False)
def set_epoch(number: uint64_t) -> cython.void:
    """The file system of this process is the `number`th of its mount.  The guest's kernel then keeps nothing."""
    global epoch
    epoch = number


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_stale(node: uint64_t) -> cython.bint:
    """Whether an earlier file system of this mount gave the number out."""
    return epoch != 0 and node != FUSE_ROOT_ID and node >> EPOCH_SHIFT != epoch


@cython.cfunc
@cython.exceptval(0)
def node_of(number: uint64_t) -> uint64_t:
    """The file system's node id of what the guest says.  Raises ESTALE for one of an earlier file system."""
    if is_stale(number):
        raise OSError(ESTALE, "given out before the file system was loaded again")
    return number & EPOCH_MASK if epoch else number


@cython.cfunc
def name_of(request: cython.pointer(Request), i: cython.int) -> bytes:
    return PyBytes_FromStringAndSize(request.names[i], request.name_sizes[i])


@cython.cfunc
def caller_of(request: cython.pointer(Request)) -> Caller:
    return Caller(request.header.uid, request.header.gid, request.header.pid)


@cython.cfunc
@cython.exceptval(check=False)
def put_time(seconds: cython.pointer(uint64_t), rest: cython.pointer(uint32_t), ns: int64_t) -> cython.void:
    """Split nanoseconds since 1970, of which there may be less than none."""
    whole: int64_t = ns // 1000000000
    left: int64_t = ns % 1000000000
    if left < 0:
        left += 1000000000
        whole -= 1
    seconds[0] = cython.cast(uint64_t, whole)
    rest[0] = cython.cast(uint32_t, left)


@cython.cfunc
@cython.exceptval(-1)
def put_valid(
    seconds: cython.pointer(uint64_t), rest: cython.pointer(uint32_t), valid: cython.double
) -> cython.int:
    if not valid >= 0:
        raise ValueError(f"`valid` is a number of seconds, 0 or more, not {valid}")
    if valid > MOST_VALID:
        valid = MOST_VALID
    if epoch:
        valid = 0
    seconds[0] = cython.cast(uint64_t, valid)
    rest[0] = cython.cast(uint32_t, (valid - cython.cast(cython.double, seconds[0])) * 1e9)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def put_attr(out: cython.pointer(fuse_attr), attributes: Attributes, node: uint64_t) -> cython.int:
    if attributes is None:
        raise TypeError("an Attributes is due, not None")
    if not attributes.mode & 0o170000:
        raise ValueError(f"`mode` has no type, as in stat.S_IFREG | 0o644: {attributes.mode:#o}")
    if attributes.size >> 63:
        raise ValueError(f"`size` is too large: {attributes.size}")
    out.ino = attributes.ino if attributes.ino else node
    out.size = attributes.size
    out.blocks = attributes.blocks if attributes.blocks >= 0 else (attributes.size + 511) // 512
    put_time(cython.address(out.atime), cython.address(out.atimensec), attributes.atime_ns)
    put_time(cython.address(out.mtime), cython.address(out.mtimensec), attributes.mtime_ns)
    put_time(cython.address(out.ctime), cython.address(out.ctimensec), attributes.ctime_ns)
    out.mode = attributes.mode
    out.nlink = attributes.nlink
    out.uid = attributes.uid
    out.gid = attributes.gid
    out.rdev = attributes.rdev
    out.blksize = attributes.blksize
    out.flags = 0
    return 0


@cython.cfunc
@cython.exceptval(-1)
def put_entry(out: cython.pointer(fuse_entry_out), entry: Entry) -> cython.int:
    if entry is None:
        raise TypeError("an Entry is due, not None")
    if entry.node == FUSE_ROOT_ID:
        raise ValueError("node 1 is the root, which has no name")
    memset(out, 0, cython.sizeof(fuse_entry_out))
    out.nodeid = entry.node
    if epoch and entry.node:
        if entry.node >> EPOCH_SHIFT:
            raise ValueError(f"with --reload, node ids are below 2**48: {entry.node}")
        out.nodeid |= epoch << EPOCH_SHIFT
    out.generation = entry.generation
    put_valid(cython.address(out.entry_valid), cython.address(out.entry_valid_nsec), entry.valid)
    if entry.node:
        put_attr(cython.address(out.attr), entry.attributes, entry.node)
        put_valid(cython.address(out.attr_valid), cython.address(out.attr_valid_nsec), entry.attributes.valid)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def put_opened(out: cython.pointer(fuse_open_out), found: object) -> cython.int:
    memset(out, 0, cython.sizeof(fuse_open_out))
    if isinstance(found, Opened):
        opened: Opened = found
        out.fh = opened.handle
        if opened.direct_io:
            out.open_flags |= FOPEN_DIRECT_IO
        if opened.keep_cache and not epoch:
            out.open_flags |= FOPEN_KEEP_CACHE
        if opened.cache_directory and not epoch:
            out.open_flags |= FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE
        if opened.parallel_direct_writes:
            out.open_flags |= FOPEN_PARALLEL_DIRECT_WRITES
    elif isinstance(found, int):
        out.fh = found
    else:
        raise TypeError(f"a handle (int) or an Opened is due, not {found!r}")
    return 0


@cython.cfunc
@cython.exceptval(-1)
def put_data(
    request: cython.pointer(Request), data: object, most: uint64_t, alone: cython.bint = False
) -> cython.int:
    """Reply with bytes: copy them into the room there is, or have the carrier take them from where they are.

    The carrier takes them without the GIL.  So what can be changed, and meanwhile could not be resized, is copied
    unless no other thread calls methods (`alone`).
    Raises `TypeError` for what is no bytes, and `BufferError` for bytes that do not lie one after the other.
    """
    view: Py_buffer
    PyObject_GetBuffer(data, cython.address(view), PyBUF_SIMPLE)
    try:
        if cython.cast(uint64_t, view.len) > most:
            raise ValueError(f"{view.len} bytes are more than the {most} that are asked for")
        if request.send != cython.NULL and view.len >= WORTH_SENDING and (view.readonly or alone):
            with cython.nogil:
                request.send(request.carrier, request, view.buf, view.len)
        else:
            request.in_place = True
            request.reply_size = scatter(
                view.buf, cython.address(request.out), cython.address(request.out_count), view.len
            )
    finally:
        PyBuffer_Release(cython.address(view))
    return 0


@cython.cfunc
def is_entry(found: object, asked: str) -> Entry:
    if not isinstance(found, Entry):
        raise TypeError(f"{asked} returns an Entry, not {found!r}")
    return found


@cython.cfunc
@cython.exceptval(-1)
def reply_entry(request: cython.pointer(Request), found: object, asked: str, made: cython.bint) -> cython.int:
    entry: Entry = is_entry(found, asked)
    if made and not entry.node:
        raise ValueError(f"{asked} made something, which has a node id other than 0")
    put_entry(cython.cast(cython.pointer(fuse_entry_out), request.reply), entry)
    request.reply_size = cython.sizeof(fuse_entry_out)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def reply_attributes(request: cython.pointer(Request), found: object, asked: str) -> cython.int:
    out: cython.pointer(fuse_attr_out) = cython.cast(cython.pointer(fuse_attr_out), request.reply)
    if not isinstance(found, Attributes):
        raise TypeError(f"{asked} returns Attributes, not {found!r}")
    attributes: Attributes = found
    memset(out, 0, cython.sizeof(fuse_attr_out))
    put_valid(cython.address(out.attr_valid), cython.address(out.attr_valid_nsec), attributes.valid)
    put_attr(cython.address(out.attr), attributes, request.header.nodeid)
    request.reply_size = cython.sizeof(fuse_attr_out)
    return 0

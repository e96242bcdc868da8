# SPDX-License-Identifier: Apache-2.0
"""Steps of operations on files.

Data of WRITE is copied out of guest memory before the method sees it: a slice of a view can not be taken back, and
the guest may change its memory while the method looks at it.
"""

import errno as errors

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.libc.errno import EINVAL, EROFS
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.virtiofs.fs.python.calls import Calls
from cython.cimports.virtiofs.fs.python.directories import handle_of
from cython.cimports.virtiofs.fs.python.locks import unlock, unlock_file
from cython.cimports.virtiofs.fs.python.packing import (
    caller_of,
    name_of,
    node_of,
    put_data,
    put_opened,
    reply_entry,
)
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_COPY_FILE_RANGE_64,
    FUSE_FSYNC_FDATASYNC,
    FUSE_IOCTL_DIR,
    FUSE_POLL_SCHEDULE_NOTIFY,
    FUSE_RELEASE_FLOCK_UNLOCK,
    fuse_bmap_in,
    fuse_bmap_out,
    fuse_copy_file_range_in,
    fuse_copy_file_range_out,
    fuse_create_in,
    fuse_create_out,
    fuse_fallocate_in,
    fuse_flush_in,
    fuse_fsync_in,
    fuse_ioctl_in,
    fuse_ioctl_out,
    fuse_lseek_in,
    fuse_lseek_out,
    fuse_open_in,
    fuse_open_out,
    fuse_poll_in,
    fuse_poll_out,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
    fuse_write_out,
)
from cython.cimports.virtiofs.fuse.request import Request, gather, scatter
from cython.cimports.virtiofs.fuse.session import MAX_WRITE

# Bytes of one copy: what the older reply can say, and a method should not work for minutes.
MOST_COPIED = cython.declare(uint64_t, 1 << 30)


@cython.cfunc
@cython.exceptval(-1)
def refuse_writing(calls: Calls, flags: uint32_t) -> cython.int:
    if calls.read_only and flags & 3:  # O_ACCMODE; O_RDONLY is 0
        raise OSError(EROFS, "read-only")
    return 0


@cython.cfunc
@cython.exceptval(-1)
def open_(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_open_in) = cython.cast(cython.pointer(fuse_open_in), request.args)
    refuse_writing(calls, asked.flags)
    found = 0 if "open" in calls.absent else calls.result(calls.fs.open(request.header.nodeid, asked.flags))
    put_opened(cython.cast(cython.pointer(fuse_open_out), request.reply), found)
    request.reply_size = cython.sizeof(fuse_open_out)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def create(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_create_in) = cython.cast(cython.pointer(fuse_create_in), request.args)
    entry, opened = calls.result(
        calls.fs.create(
            request.header.nodeid, name_of(request, 0), asked.flags, asked.mode & 0o7777, caller_of(request)
        )
    )
    return reply_created(request, entry, opened, "create")


@cython.cfunc
@cython.exceptval(-1)
def tmpfile(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_create_in) = cython.cast(cython.pointer(fuse_create_in), request.args)
    entry, opened = calls.result(
        calls.fs.tmpfile(request.header.nodeid, asked.flags, asked.mode & 0o7777, caller_of(request))
    )
    return reply_created(request, entry, opened, "tmpfile")


@cython.cfunc
@cython.exceptval(-1)
def reply_created(request: cython.pointer(Request), entry: object, opened: object, asked: str) -> cython.int:
    out: cython.pointer(fuse_create_out) = cython.cast(cython.pointer(fuse_create_out), request.reply)
    reply_entry(request, entry, asked, True)
    put_opened(cython.address(out.open), opened)
    request.reply_size = cython.sizeof(fuse_create_out)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def read(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_read_in) = cython.cast(cython.pointer(fuse_read_in), request.args)
    size: uint64_t = asked.size
    if size > request.out_size:
        size = request.out_size
    if size > MAX_WRITE:
        size = MAX_WRITE
    if asked.offset >> 63:
        raise OSError(EINVAL, "an offset below 0")
    found = calls.result(calls.fs.read(request.header.nodeid, asked.fh, asked.offset, size))
    return put_data(request, found, size, calls.one_thread)


@cython.cfunc
@cython.exceptval(-1)
def write(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_write_in) = cython.cast(cython.pointer(fuse_write_in), request.args)
    out: cython.pointer(fuse_write_out) = cython.cast(cython.pointer(fuse_write_out), request.reply)
    if asked.size != request.data_size or asked.size > MAX_WRITE or asked.offset >> 63:
        raise OSError(EINVAL, "the data has another length than it says")
    data: bytes = PyBytes_FromStringAndSize(cython.NULL, asked.size)
    gather(
        PyBytes_AS_STRING(data), cython.address(request.data), cython.address(request.data_count), asked.size
    )
    view = memoryview(data)
    try:
        written: object = calls.result(calls.fs.write(request.header.nodeid, asked.fh, asked.offset, view))
    finally:
        try:
            view.release()
        except BufferError:
            pass  # an array, for one, was laid over it: that keeps a copy of ours alive, and nothing of the guest's
    if not isinstance(written, int) or not 0 <= written <= asked.size:
        raise ValueError(f"write returns how many of {asked.size} bytes it wrote, not {written!r}")
    memset(out, 0, cython.sizeof(fuse_write_out))
    out.size = written
    request.reply_size = cython.sizeof(fuse_write_out)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def flush(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_flush_in) = cython.cast(cython.pointer(fuse_flush_in), request.args)
    if "setlk" not in calls.absent:
        unlock(calls, request.header.nodeid, asked.fh, asked.lock_owner)
    if "flush" not in calls.absent:
        calls.result(calls.fs.flush(request.header.nodeid, asked.fh))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def release(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_release_in) = cython.cast(cython.pointer(fuse_release_in), request.args)
    if asked.release_flags & FUSE_RELEASE_FLOCK_UNLOCK and "flock" not in calls.absent:
        unlock_file(calls, request.header.nodeid, asked.fh, asked.lock_owner)
    if "release" not in calls.absent:
        calls.result(calls.fs.release(request.header.nodeid, asked.fh))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def fsync(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_fsync_in) = cython.cast(cython.pointer(fuse_fsync_in), request.args)
    datasync = bool(asked.fsync_flags & FUSE_FSYNC_FDATASYNC)
    calls.result(calls.fs.fsync(request.header.nodeid, asked.fh, datasync))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def fallocate(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_fallocate_in) = cython.cast(cython.pointer(fuse_fallocate_in), request.args)
    if asked.offset >> 63 or asked.length >> 63 or (asked.offset + asked.length) >> 63:
        raise OSError(errors.EFBIG, "a file is not that large")
    calls.result(calls.fs.fallocate(request.header.nodeid, asked.fh, asked.mode, asked.offset, asked.length))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def lseek(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_lseek_in) = cython.cast(cython.pointer(fuse_lseek_in), request.args)
    out: cython.pointer(fuse_lseek_out) = cython.cast(cython.pointer(fuse_lseek_out), request.reply)
    if asked.offset >> 63:
        raise OSError(EINVAL, "an offset below 0")
    out.offset = calls.result(calls.fs.lseek(request.header.nodeid, asked.fh, asked.offset, asked.whence))
    request.reply_size = cython.sizeof(fuse_lseek_out)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def bmap(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_bmap_in) = cython.cast(cython.pointer(fuse_bmap_in), request.args)
    out: cython.pointer(fuse_bmap_out) = cython.cast(cython.pointer(fuse_bmap_out), request.reply)
    if asked.blocksize == 0:
        raise OSError(EINVAL, "blocks of no bytes")
    out.block = calls.result(calls.fs.bmap(request.header.nodeid, asked.block, asked.blocksize))
    request.reply_size = cython.sizeof(fuse_bmap_out)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def syncfs(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    calls.result(calls.fs.syncfs(request.header.nodeid))
    return 0


@cython.cfunc
@cython.exceptval(-1)
def copy_file_range(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    """COPY_FILE_RANGE and COPY_FILE_RANGE_64, which differ in the reply; the first can say no more than 32 bits."""
    asked: cython.pointer(fuse_copy_file_range_in) = cython.cast(
        cython.pointer(fuse_copy_file_range_in), request.args
    )
    size: uint64_t = asked.len
    if asked.flags or asked.off_in >> 63 or asked.off_out >> 63:
        raise OSError(EINVAL, "a flag, or an offset below 0")
    if size > MOST_COPIED:
        size = MOST_COPIED
    copied: object = calls.result(
        calls.fs.copy_file_range(
            request.header.nodeid,
            asked.fh_in,
            asked.off_in,
            node_of(asked.nodeid_out),
            asked.fh_out,
            asked.off_out,
            size,
        )
    )
    if not isinstance(copied, int) or not 0 <= copied <= size:
        raise ValueError(f"copy_file_range returns how many of {size} bytes it copied, not {copied!r}")
    if request.header.opcode == FUSE_COPY_FILE_RANGE_64:
        cython.cast(cython.pointer(fuse_copy_file_range_out), request.reply).bytes_copied = copied
        request.reply_size = cython.sizeof(fuse_copy_file_range_out)
    else:
        memset(request.reply, 0, cython.sizeof(fuse_write_out))
        cython.cast(cython.pointer(fuse_write_out), request.reply).size = copied
        request.reply_size = cython.sizeof(fuse_write_out)
    return 0


@cython.cfunc
@cython.exceptval(-1)
def ioctl(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_ioctl_in) = cython.cast(cython.pointer(fuse_ioctl_in), request.args)
    out: fuse_ioctl_out
    view: cython.const[cython.uchar][::1]
    handle: uint64_t = handle_of(calls, asked.fh) if asked.flags & FUSE_IOCTL_DIR else asked.fh
    room: uint64_t = request.out_size - cython.sizeof(fuse_ioctl_out)
    if asked.in_size != request.tail_size:
        raise OSError(EINVAL, "the data has another length than it says")
    if asked.out_size < room:
        room = asked.out_size
    given: bytes = PyBytes_FromStringAndSize(cython.cast(cython.p_char, request.tail), request.tail_size)
    data: object = calls.result(calls.fs.ioctl(request.header.nodeid, handle, asked.cmd, given, room))
    memset(cython.address(out), 0, cython.sizeof(fuse_ioctl_out))
    if isinstance(data, tuple):
        out.result, data = data
    if data is None:
        raise TypeError("ioctl returns bytes, not None")
    view = data
    if cython.cast(uint64_t, view.shape[0]) > room:
        raise ValueError(f"{view.shape[0]} bytes are more than the {room} there is room for")
    request.in_place = True
    request.reply_size = cython.sizeof(fuse_ioctl_out)
    scatter(
        cython.address(out),
        cython.address(request.out),
        cython.address(request.out_count),
        cython.sizeof(fuse_ioctl_out),
    )
    if view.shape[0]:
        request.reply_size += scatter(
            cython.address(view[0]),
            cython.address(request.out),
            cython.address(request.out_count),
            view.shape[0],
        )
    return 0


@cython.cfunc
@cython.exceptval(-1)
def poll(calls: Calls, request: cython.pointer(Request)) -> cython.int:
    asked: cython.pointer(fuse_poll_in) = cython.cast(cython.pointer(fuse_poll_in), request.args)
    out: cython.pointer(fuse_poll_out) = cython.cast(cython.pointer(fuse_poll_out), request.reply)
    wake: object = asked.kh if asked.flags & FUSE_POLL_SCHEDULE_NOTIFY else None
    found: uint32_t = calls.result(calls.fs.poll(request.header.nodeid, asked.fh, asked.events, wake))
    memset(out, 0, cython.sizeof(fuse_poll_out))
    out.revents = found
    request.reply_size = cython.sizeof(fuse_poll_out)
    return 0

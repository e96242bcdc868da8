# SPDX-License-Identifier: Apache-2.0
"""Operations on open files.

File data moves between the host's page cache and the guest's memory in one copy: the pieces of the chain are
the vector of preadv and pwritev.

A read asks the host not to wait (RWF_NOWAIT) where the request must not.  Many file systems can not tell, tmpfs and
overlayfs among them: their answers are timed instead, and after a slow one the next reads may wait elsewhere.
"""

import cython
from cython.cimports.libc.errno import EAGAIN, EBADF, EINVAL, ENOSYS, errno
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.posix.types import off_t
from cython.cimports.posix.uio import iovec
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.credentials import guard, may_not_keep
from cython.cimports.virtiofs.fs.passthrough.handles import Handle, handle_pin, handle_release, handle_unpin
from cython.cimports.virtiofs.fs.passthrough.host import (
    EOPNOTSUPP,
    O_APPEND,
    O_DIRECT,
    O_DSYNC,
    RWF_APPEND,
    RWF_NOWAIT,
    SEEK_DATA,
    SEEK_HOLE,
    close,
    copy_file_range,
    dup,
    fallocate,
    fdatasync,
    fsync,
    lseek,
    preadv2,
    pwritev2,
    syncfs,
)
from cython.cimports.virtiofs.fs.passthrough.locks import owner_gone, owners_by_handle_gone
from cython.cimports.virtiofs.fs.passthrough.unopened import File, file_pin, file_unpin
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_FSYNC_FDATASYNC,
    FUSE_NO_OPEN_SUPPORT,
    FUSE_WRITE_KILL_SUIDGID,
    FUSE_WRITEBACK_CACHE,
    fuse_copy_file_range_in,
    fuse_copy_file_range_out,
    fuse_fallocate_in,
    fuse_flush_in,
    fuse_fsync_in,
    fuse_lseek_in,
    fuse_lseek_out,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
    fuse_write_out,
)
from cython.cimports.virtiofs.fuse.request import WOULD_BLOCK, Request
from cython.cimports.virtiofs.fuse.waiting import now
from cython.cimports.virtiofs.virtqueue.atomics import load_u32, store_u32

IOV_MAX = cython.declare(cython.int, 1024)
FALLOCATE_MODES = cython.declare(uint32_t, 0x01 | 0x02 | 0x10)  # KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
# The reply of the older COPY_FILE_RANGE has 32 bits for the length.
MAX_COPY = cython.declare(uint64_t, 0x7FFFF000)
# A read that took longer than this, and a nanosecond for each byte, was not from memory (ns).
SLOW_READ = cython.declare(int64_t, 250_000)
# How many quick reads show that a slow one was an exception.
SLOW_READS = cython.declare(uint32_t, 64)
PAGE = cython.declare(uint64_t, 4096)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def trim_out(request: cython.pointer(Request), size: uint64_t) -> cython.void:
    """Cut the reply's pieces to `size` bytes."""
    left: uint64_t = size
    i: uint32_t = 0
    while left and i < request.out_count:
        if request.out[i].iov_len > left:
            request.out[i].iov_len = left
        left -= request.out[i].iov_len
        i += 1
    request.out_count = i


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def read_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_read_in) = cython.cast(cython.pointer(fuse_read_in), request.args)
    size: uint64_t = args.size
    done: uint64_t = 0
    got: cython.Py_ssize_t = 0
    expected: uint64_t
    pieces: cython.pointer(iovec) = request.out
    count: cython.int
    left: uint32_t
    flags: cython.int = 0
    error: cython.int = 0
    began: int64_t = 0
    file: File
    if size > request.out_size:
        size = request.out_size
    if args.offset >> 63 or (args.offset + size) >> 63:
        return -EINVAL
    error = file_pin(share, request, args.fh, False, cython.address(file))
    if error:
        return error
    if request.no_wait and (
        waits(share, file.flags, O_DIRECT) or (file.silent[0] and load_u32(cython.address(share.slow)))
    ):
        file_unpin(share, cython.address(file))
        return WOULD_BLOCK
    trim_out(request, size)
    left = request.out_count
    if file.silent[0]:
        began = now()
    elif request.no_wait:
        flags = RWF_NOWAIT
    while left:
        count = IOV_MAX if left > IOV_MAX else left
        expected = length_of(pieces, count)
        got = preadv2(file.fd, pieces, count, args.offset + done, flags)
        if got < 0 and flags and errno == EOPNOTSUPP:
            file.silent[0] = True
            flags = 0
            began = now()
            continue
        if got < 0:
            # What was read before the error counts; the guest meets the error at its next READ.
            error = 0 if done else -errno
            break
        done += got
        if cython.cast(uint64_t, got) < expected:
            break
        pieces += count
        left -= count
    if flags and left and not ended(file.fd, args.offset + done, got):
        error = WOULD_BLOCK
    if began:
        judge(share, now() - began, done)
    file_unpin(share, cython.address(file))
    request.in_place = True
    request.reply_size = done
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def waits(share: cython.pointer(Share), opened: uint32_t, flags: uint32_t) -> cython.bint:
    """Whether a file `opened` so has, on the host, one of `flags`, which make every request wait for the disk."""
    return opened & share.guest_flags & flags != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ended(fd: cython.int, offset: off_t, got: cython.Py_ssize_t) -> cython.bint:
    """Whether a read with RWF_NOWAIT, whose last part returned `got` and which ends at `offset`, was short for any
    other reason than that it would have had to wait: the end of the file, mostly.

    What would have to be waited for begins at a page; only where the file ends at one, too, another call must tell.
    """
    byte: cython.char = 0
    piece: iovec
    if got < 0:
        return errno != EAGAIN
    if got == 0 or cython.cast(uint64_t, offset) % PAGE:
        return True
    piece.iov_base = cython.address(byte)
    piece.iov_len = 1
    return preadv2(fd, cython.address(piece), 1, offset, RWF_NOWAIT) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def judge(share: cython.pointer(Share), took: int64_t, size: uint64_t) -> cython.void:
    """Decide from how long a read of a silent handle took where the next ones are tried."""
    slow: uint32_t = load_u32(cython.address(share.slow))
    if took > SLOW_READ + cython.cast(int64_t, size):
        store_u32(cython.address(share.slow), SLOW_READS)
    elif slow:
        store_u32(cython.address(share.slow), slow - 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def length_of(pieces: cython.pointer(iovec), count: cython.int) -> uint64_t:
    total: uint64_t = 0
    i: cython.int
    for i in range(count):
        total += pieces[i].iov_len
    return total


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_write_in) = cython.cast(cython.pointer(fuse_write_in), request.args)
    out: cython.pointer(fuse_write_out) = cython.cast(cython.pointer(fuse_write_out), request.reply)
    done: uint64_t = 0
    put: cython.Py_ssize_t
    expected: uint64_t
    pieces: cython.pointer(iovec) = request.data
    left: uint32_t = request.data_count
    count: cython.int
    flags: cython.int
    error: cython.int = 0
    handle: cython.pointer(Handle)
    if args.size != request.data_size:
        return -EINVAL
    if args.offset >> 63 or (args.offset + args.size) >> 63:
        return -EINVAL
    handle = handle_pin(cython.address(share.handles), args.fh, False)
    if handle == cython.NULL:
        return -EBADF
    if request.no_wait and waits(share, handle.flags, O_DIRECT | O_DSYNC):  # O_SYNC includes O_DSYNC
        handle_unpin(cython.address(share.handles), handle)
        return WOULD_BLOCK
    # Another guest may have appended since this one last saw the size: the host knows where the end is.  But a
    # guest that caches what it writes owns the size, and says where each page belongs.
    flags = RWF_APPEND if args.flags & O_APPEND and not request.session_flags & FUSE_WRITEBACK_CACHE else 0
    if share.guarded:
        error = guard(share, handle.fd, args.write_flags & FUSE_WRITE_KILL_SUIDGID != 0)
        if error:
            left = 0
    while left:
        count = IOV_MAX if left > IOV_MAX else left
        expected = length_of(pieces, count)
        put = pwritev2(handle.fd, pieces, count, args.offset + done, flags)
        if put < 0:
            error = 0 if done else -errno
            break
        done += put
        if cython.cast(uint64_t, put) < expected:
            break
        pieces += count
        left -= count
    handle_unpin(cython.address(share.handles), handle)
    if error:
        return error
    out.size = done
    out.padding = 0
    request.reply_size = cython.sizeof(fuse_write_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def flush(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """What close(2) would report: file systems such as NFS write back, and fail, at that moment.

    It is also the moment at which a process loses its POSIX locks on the file.
    """
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_flush_in) = cython.cast(cython.pointer(fuse_flush_in), request.args)
    fd: cython.int
    error: cython.int = 0
    handle: cython.pointer(Handle)
    if request.session_flags & FUSE_NO_OPEN_SUPPORT:
        return -ENOSYS  # nothing was written, and locks are the guest's own: it is not asked again
    handle = handle_pin(cython.address(share.handles), args.fh, False)
    if handle == cython.NULL:
        return -EBADF
    fd = dup(handle.fd)
    if fd < 0 or close(fd) != 0:
        error = -errno
    handle_unpin(cython.address(share.handles), handle)
    owner_gone(share, request.header.nodeid, args.lock_owner)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def release_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_release_in) = cython.cast(cython.pointer(fuse_release_in), request.args)
    error: cython.int = handle_release(cython.address(share.handles), args.fh, False)
    if not error:
        owners_by_handle_gone(share, args.fh)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fsync_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_fsync_in) = cython.cast(cython.pointer(fuse_fsync_in), request.args)
    error: cython.int
    file: File
    if request.no_wait:
        return WOULD_BLOCK
    error = file_pin(share, request, args.fh, False, cython.address(file))
    if error:
        return error
    error = fdatasync(file.fd) if args.fsync_flags & FUSE_FSYNC_FDATASYNC else fsync(file.fd)
    if error:
        error = -errno
    file_unpin(share, cython.address(file))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fallocate_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_fallocate_in) = cython.cast(cython.pointer(fuse_fallocate_in), request.args)
    error: cython.int = 0
    handle: cython.pointer(Handle)
    if args.mode & ~FALLOCATE_MODES:
        return -EOPNOTSUPP
    if args.offset >> 63 or args.length >> 63:
        return -EINVAL
    if request.no_wait:
        return WOULD_BLOCK
    handle = handle_pin(cython.address(share.handles), args.fh, False)
    if handle == cython.NULL:
        return -EBADF
    if share.guarded:
        error = guard(share, handle.fd, may_not_keep(request))
    if not error and fallocate(handle.fd, args.mode, args.offset, args.length) != 0:
        error = -errno
    handle_unpin(cython.address(share.handles), handle)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lseek_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """SEEK_DATA and SEEK_HOLE; the guest's kernel does the others itself."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_lseek_in) = cython.cast(cython.pointer(fuse_lseek_in), request.args)
    out: cython.pointer(fuse_lseek_out) = cython.cast(cython.pointer(fuse_lseek_out), request.reply)
    found: off_t
    error: cython.int
    file: File
    if args.whence != SEEK_DATA and args.whence != SEEK_HOLE:
        return -EINVAL
    error = file_pin(share, request, args.fh, False, cython.address(file))
    if error:
        return error
    found = lseek(file.fd, args.offset, args.whence)
    if found < 0:
        error = -errno
    file_unpin(share, cython.address(file))
    if error:
        return error
    out.offset = found
    request.reply_size = cython.sizeof(fuse_lseek_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def copy_range(context: cython.p_void, request: cython.pointer(Request)) -> int64_t:
    """Copy between two open files of the share: bytes copied or a negative errno, where the request may wait."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_copy_file_range_in) = cython.cast(
        cython.pointer(fuse_copy_file_range_in), request.args
    )
    source_offset: off_t = args.off_in
    target_offset: off_t = args.off_out
    copied: int64_t
    source: cython.pointer(Handle)
    target: cython.pointer(Handle)
    if args.flags or args.off_in >> 63 or args.off_out >> 63:
        return -EINVAL
    source = handle_pin(cython.address(share.handles), args.fh_in, False)
    if source == cython.NULL:
        return -EBADF
    target = handle_pin(cython.address(share.handles), args.fh_out, False)
    copied = -EBADF
    if target != cython.NULL and share.guarded:
        copied = guard(share, target.fd, may_not_keep(request))
        if copied < 0:
            handle_unpin(cython.address(share.handles), target)
            handle_unpin(cython.address(share.handles), source)
            return copied
    if target != cython.NULL:
        copied = copy_file_range(
            source.fd,
            cython.address(source_offset),
            target.fd,
            cython.address(target_offset),
            args.len if args.len < MAX_COPY else MAX_COPY,
            0,
        )
        if copied < 0:
            copied = -errno
        handle_unpin(cython.address(share.handles), target)
    handle_unpin(cython.address(share.handles), source)
    return copied


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def copy_file_range_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    out: cython.pointer(fuse_write_out) = cython.cast(cython.pointer(fuse_write_out), request.reply)
    copied: int64_t
    if request.no_wait:
        return WOULD_BLOCK
    copied = copy_range(context, request)
    if copied < 0:
        return copied
    out.size = copied
    out.padding = 0
    request.reply_size = cython.sizeof(fuse_write_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def copy_file_range_64(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    out: cython.pointer(fuse_copy_file_range_out) = cython.cast(
        cython.pointer(fuse_copy_file_range_out), request.reply
    )
    copied: int64_t
    if request.no_wait:
        return WOULD_BLOCK
    copied = copy_range(context, request)
    if copied < 0:
        return copied
    out.bytes_copied = copied
    request.reply_size = cython.sizeof(fuse_copy_file_range_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def syncfs_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    if request.no_wait:
        return WOULD_BLOCK
    return 0 if syncfs(share.root) == 0 else -errno

# SPDX-License-Identifier: Apache-2.0
"""Reading directories.

The cookies a guest gets are the host's own (d_off), so a listing goes on correctly while entries come and go.
No entry is ever left out: one whose attributes can not be had is listed without them, and the guest meets the
error when it looks the name up.
"""

import cython
from cython.cimports.libc.errno import EINVAL, ENOSYS, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcmp, memcpy, memset, strlen
from cython.cimports.virtiofs.fs.passthrough.attributes import fill_entry
from cython.cimports.virtiofs.fs.passthrough.context import OWNERS_STORED, Share
from cython.cimports.virtiofs.fs.passthrough.descriptors import is_submount
from cython.cimports.virtiofs.fs.passthrough.handles import (
    Handle,
    handle_open,
    handle_release,
)
from cython.cimports.virtiofs.fs.passthrough.host import (
    EOVERFLOW,
    ESTALE,
    SEEK_SET,
    SYS_getdents64,
    fdatasync,
    fsync,
    lseek,
    sched_yield,
    statx_t,
    syscall,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    Inode,
    inode_lookup,
    inode_pin,
    inode_unpin,
)
from cython.cimports.virtiofs.fs.passthrough.opening import open_directory
from cython.cimports.virtiofs.fs.passthrough.unopened import File, file_pin, file_unpin
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_ATTR_SUBMOUNT,
    FUSE_FSYNC_FDATASYNC,
    FUSE_NO_OPENDIR_SUPPORT,
    FUSE_SUBMOUNTS,
    fuse_dirent,
    fuse_entry_out,
    fuse_fsync_in,
    fuse_open_out,
    fuse_read_in,
    fuse_release_in,
)
from cython.cimports.virtiofs.fuse.request import REPLY_ROOM, WOULD_BLOCK, Request
from cython.cimports.virtiofs.virtqueue.atomics import cas_u32, store_release_u32

# One getdents64 buffer; the kernel refuses one that can not hold the longest entry.
CHUNK = cython.declare(cython.int, 32768)
SMALLEST_CHUNK = cython.declare(cython.int, 280)
NAME_OFFSET = cython.declare(cython.int, 19)  # of d_name in struct linux_dirent64
DT_REG = cython.declare(uint32_t, 8)
UNKNOWN_POSITION = cython.declare(int64_t, -1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def opendir(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    out: cython.pointer(fuse_open_out) = cython.cast(cython.pointer(fuse_open_out), request.reply)
    fd: cython.int
    inode: cython.pointer(Inode)
    if request.session_flags & FUSE_NO_OPENDIR_SUPPORT:
        return -ENOSYS  # it is not asked again: see unopened.py
    inode = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode == cython.NULL:
        return -ESTALE
    fd = open_directory(share, inode)
    inode_unpin(cython.address(share.inodes), inode)
    if fd < 0:
        return fd
    memset(out, 0, cython.sizeof(fuse_open_out))
    out.open_flags = share.open_directory
    request.reply_size = cython.sizeof(fuse_open_out)
    return handle_open(
        cython.address(share.handles), fd, request.header.nodeid, 0, True, cython.address(out.fh)
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def readdir(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    return list_directory(cython.cast(cython.pointer(Share), context), request, False)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def readdirplus(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    return list_directory(cython.cast(cython.pointer(Share), context), request, True)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def list_directory(
    share: cython.pointer(Share), request: cython.pointer(Request), plus: cython.bint
) -> cython.int:
    args: cython.pointer(fuse_read_in) = cython.cast(cython.pointer(fuse_read_in), request.args)
    room: uint64_t = args.size
    error: cython.int
    inode: cython.pointer(Inode) = cython.NULL
    file: File
    once: Handle
    handle: cython.pointer(Handle)
    if room > request.out_size:
        room = request.out_size
    if room > REPLY_ROOM:
        room = REPLY_ROOM
    error = file_pin(share, request, args.fh, True, cython.address(file))
    if error:
        return error
    handle = file.handle
    if handle == cython.NULL:
        once.fd = file.fd
        once.position = 0
        error = fill(
            share, request, cython.address(once), file.inode if plus else cython.NULL, args.offset, room
        )
        file_unpin(share, cython.address(file))
        return error
    if plus:
        inode = inode_pin(cython.address(share.inodes), handle.nodeid)
        if inode == cython.NULL:
            file_unpin(share, cython.address(file))
            return -ESTALE
    # One descriptor has one position: two readers of one handle take turns.
    while not cas_u32(cython.address(handle.lock), 0, 1):
        sched_yield()
    error = fill(share, request, handle, inode, args.offset, room)
    store_release_u32(cython.address(handle.lock), 0)
    if inode != cython.NULL:
        inode_unpin(cython.address(share.inodes), inode)
    file_unpin(share, cython.address(file))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fill(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    handle: cython.pointer(Handle),
    inode: cython.pointer(Inode),
    offset: uint64_t,
    room: uint64_t,
) -> cython.int:
    """Put entries from cookie `offset` on into the reply, with attributes if `inode` is given: 0 or an errno."""
    chunk: uint8_t[32768]
    name: cython.p_char
    entry: linux_dirent64
    got: cython.long
    at: cython.long
    want: uint64_t
    size: uint64_t
    head: uint64_t = cython.sizeof(fuse_entry_out) if inode != cython.NULL else 0
    length: uint32_t
    used: uint64_t = 0
    if cython.cast(int64_t, offset) != handle.position:
        if lseek(handle.fd, cython.cast(int64_t, offset), SEEK_SET) < 0:
            return -EINVAL if errno == EOVERFLOW else -errno
        handle.position = offset
    while True:
        # Not much more than fits: what is read and not used has to be read again.
        want = room - used
        if inode != cython.NULL:
            want = want // 4
        if want < SMALLEST_CHUNK:
            want = SMALLEST_CHUNK
        if want > CHUNK:
            want = CHUNK
        got = syscall(SYS_getdents64, handle.fd, cython.address(chunk[0]), want)
        if got < 0:
            handle.position = UNKNOWN_POSITION
            return 0 if used else -errno
        if got == 0:
            break
        at = 0
        while at < got:
            memcpy(cython.address(entry), cython.address(chunk[at]), NAME_OFFSET)
            name = cython.cast(cython.p_char, cython.address(chunk[at + NAME_OFFSET]))
            length = strlen(name)
            if not shown(share, name, length):
                at += entry.d_reclen
                handle.position = entry.d_off
                continue
            size = (head + cython.sizeof(fuse_dirent) + length + 7) & ~cython.cast(uint64_t, 7)
            if size > room - used:
                # The descriptor stands behind entries that were not taken.
                handle.position = UNKNOWN_POSITION
                request.reply_size = used
                return 0 if used else -EINVAL
            put(share, request, request.reply + used, inode, cython.address(entry), name, length, size)
            used += size
            at += entry.d_reclen
            handle.position = entry.d_off
        if room - used < head + SMALLEST_CHUNK + 8:
            break
    request.reply_size = used
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def shown(share: cython.pointer(Share), name: cython.p_char, length: uint32_t) -> cython.bint:
    """Whether the guest may know of an entry: of any, or of the one file that is shared."""
    if not share.only_size or is_dots(name, length):
        return True
    return length == share.only_size and memcmp(name, share.only, length) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_dots(name: cython.p_char, length: uint32_t) -> cython.bint:
    return name[0] == ord(".") and (length == 1 or (length == 2 and name[1] == ord(".")))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def put(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    where: cython.pointer(uint8_t),
    inode: cython.pointer(Inode),
    entry: cython.pointer(linux_dirent64),
    name: cython.p_char,
    length: uint32_t,
    size: uint64_t,
) -> cython.void:
    """Write one record of `size` bytes, padding included."""
    plus: cython.pointer(fuse_entry_out) = cython.cast(cython.pointer(fuse_entry_out), where)
    dirent: cython.pointer(fuse_dirent)
    status: statx_t
    nodeid: uint64_t = 0
    type: uint32_t = entry.d_type
    if share.ownership == OWNERS_STORED and type == DT_REG:
        type = 0  # unknown: a regular file may stand for a node of any type
    memset(where, 0, size)
    if inode != cython.NULL:
        # Node id 0 means "look it up yourself"; "." and ".." are never counted as look-ups.
        if (
            not is_dots(name, length)
            and not inode_lookup(
                cython.address(share.inodes),
                inode,
                name,
                length,
                cython.address(status),
                cython.address(nodeid),
            )
            and not fill_entry(share, plus, nodeid, cython.address(status), request.session_flags, inode)
        ):
            type = status.stx_mode >> 12 & 0xF
            if request.session_flags & FUSE_SUBMOUNTS and is_submount(
                cython.address(share.inodes), inode, cython.address(status)
            ):
                plus.attr.flags |= FUSE_ATTR_SUBMOUNT
        where += cython.sizeof(fuse_entry_out)
    dirent = cython.cast(cython.pointer(fuse_dirent), where)
    dirent.ino = entry.d_ino
    dirent.off = entry.d_off
    dirent.namelen = length
    dirent.type = type
    memcpy(where + cython.sizeof(fuse_dirent), name, length)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def releasedir(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_release_in) = cython.cast(cython.pointer(fuse_release_in), request.args)
    return handle_release(cython.address(share.handles), args.fh, True)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fsyncdir(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_fsync_in) = cython.cast(cython.pointer(fuse_fsync_in), request.args)
    error: cython.int
    file: File
    if request.no_wait:
        return WOULD_BLOCK
    error = file_pin(share, request, args.fh, True, cython.address(file))
    if error:
        return error
    error = fdatasync(file.fd) if args.fsync_flags & FUSE_FSYNC_FDATASYNC else fsync(file.fd)
    if error:
        error = -errno
    file_unpin(share, cython.address(file))
    return error

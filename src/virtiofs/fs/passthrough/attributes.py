# SPDX-License-Identifier: Apache-2.0
"""GETATTR, SETATTR, STATX, ACCESS and STATFS of a shared directory."""

import cython
from cython.cimports.libc.errno import EACCES, EBADF, EINVAL, EISDIR, errno
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.string import memset
from cython.cimports.virtiofs.fs.passthrough.context import OWNERS_AS_IS, OWNERS_MAPPED, OWNERS_STORED
from cython.cimports.virtiofs.fs.passthrough.credentials import guard, keep_set_ids
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.handles import Handle, handle_pin, handle_unpin
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
    AT_SYMLINK_NOFOLLOW,
    EOPNOTSUPP,
    ESTALE,
    O_CLOEXEC,
    O_NONBLOCK,
    O_WRONLY,
    S_IFDIR,
    S_IFLNK,
    S_IFREG,
    S_ISGID,
    STATX_BASIC_STATS,
    UTIME_NOW,
    UTIME_OMIT,
    close,
    fchmodat,
    fchownat,
    fstatfs,
    ftruncate,
    openat,
    statfs_t,
    statx,
    statx_t,
    timespec,
    utimensat,
)
from cython.cimports.virtiofs.fs.passthrough.idmap import translate
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    Inode,
    inode_forget,
    inode_pin,
    inode_unpin,
)
from cython.cimports.virtiofs.fs.passthrough.mappings import tell_of_file
from cython.cimports.virtiofs.fs.passthrough.owners import as_guest_sees, store_change
from cython.cimports.virtiofs.fs.passthrough.unopened import unopened
from cython.cimports.virtiofs.fs.passthrough.validity import attr_validity, entry_validity
from cython.cimports.virtiofs.fuse.layout import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_FH,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FUSE_GETATTR_FH,
    fuse_access_in,
    fuse_attr_out,
    fuse_getattr_in,
    fuse_kstatfs,
    fuse_setattr_in,
    fuse_statx_in,
    fuse_statx_out,
)
from cython.cimports.virtiofs.fuse.request import Request

NANOSECONDS = cython.declare(uint64_t, 1000000000)
# Synchronisation bits of statx(2) that a guest may ask for.
SYNC_TYPE = cython.declare(uint32_t, 0x6000)
# Masks beyond this have a meaning for the host only (mount ids, direct I/O alignment).
GUEST_MASK = cython.declare(uint32_t, 0xFFF)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def encode_device(major: uint32_t, minor: uint32_t) -> uint32_t:
    """The kernel's 32-bit form of a device number (new_encode_dev)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~cython.cast(uint32_t, 0xFF)) << 12)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fill_attr(attr: cython.pointer(fuse_attr), status: cython.pointer(cython.const[statx_t])) -> cython.void:
    attr.ino = status.stx_ino
    attr.size = status.stx_size
    attr.blocks = status.stx_blocks
    attr.atime = status.stx_atime.tv_sec
    attr.mtime = status.stx_mtime.tv_sec
    attr.ctime = status.stx_ctime.tv_sec
    attr.atimensec = status.stx_atime.tv_nsec
    attr.mtimensec = status.stx_mtime.tv_nsec
    attr.ctimensec = status.stx_ctime.tv_nsec
    attr.mode = status.stx_mode
    attr.nlink = status.stx_nlink
    attr.uid = status.stx_uid
    attr.gid = status.stx_gid
    attr.rdev = encode_device(status.stx_rdev_major, status.stx_rdev_minor)
    attr.blksize = status.stx_blksize
    attr.flags = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fill_entry(
    share: cython.pointer(Share),
    entry: cython.pointer(fuse_entry_out),
    nodeid: uint64_t,
    status: cython.pointer(statx_t),
    session_flags: uint64_t,
    parent: cython.pointer(Inode),
) -> cython.int:
    """Answer with an inode that was looked up: 0, or a negative errno and the look-up is given back.

    `parent`: where it was looked up; NULL: it has no name.
    `status` is the host's, and becomes what the guest is told.
    """
    error: cython.int
    valid: uint64_t
    if share.ownership != OWNERS_AS_IS:
        error = node_as_guest_sees(share, nodeid, status)
        if error:
            inode_forget(cython.address(share.inodes), nodeid, 1)
            return error
    entry.nodeid = nodeid
    entry.generation = 0  # node ids are never used twice
    valid = entry_validity(share, parent)
    entry.entry_valid = valid // NANOSECONDS
    entry.entry_valid_nsec = valid % NANOSECONDS
    valid = attr_validity(share, status)
    entry.attr_valid = valid // NANOSECONDS
    entry.attr_valid_nsec = valid % NANOSECONDS
    fill_attr(cython.address(entry.attr), status)
    tell_of_file(share, session_flags, nodeid, status, cython.address(entry.attr))
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def node_as_guest_sees(
    share: cython.pointer(Share), nodeid: uint64_t, status: cython.pointer(statx_t)
) -> cython.int:
    fd: cython.int = -1
    error: cython.int
    inode: cython.pointer(Inode)
    if share.ownership == OWNERS_MAPPED:
        return as_guest_sees(share, fd, status)
    inode = inode_pin(cython.address(share.inodes), nodeid)
    if inode == cython.NULL:
        return -ESTALE
    fd = inode_descriptor(cython.address(share.inodes), inode)
    error = fd if fd < 0 else as_guest_sees(share, fd, status)
    inode_unpin(cython.address(share.inodes), inode)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def status_of(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    use_handle: cython.bint,
    fh: uint64_t,
    flags: cython.int,
    mask: uint32_t,
    status: cython.pointer(statx_t),
) -> cython.int:
    """statx the request's inode, or the handle `fh` if it is to be used and is one: 0 or a negative errno."""
    handle: cython.pointer(Handle)
    inode: cython.pointer(Inode)
    fd: cython.int
    error: cython.int = 0
    if share.ownership != OWNERS_AS_IS or share.adaptive:
        mask |= STATX_BASIC_STATS
    if use_handle and not unopened(request, fh, False):
        handle = handle_pin(cython.address(share.handles), fh, False)
        if handle == cython.NULL:
            return -EBADF
        if statx(handle.fd, b"", AT_EMPTY_PATH | flags, mask, status) != 0:
            error = -errno
        elif share.ownership != OWNERS_AS_IS:
            error = as_guest_sees(share, handle.fd, status)
        handle_unpin(cython.address(share.handles), handle)
        return error
    inode = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode == cython.NULL:
        return -ESTALE
    fd = inode_descriptor(cython.address(share.inodes), inode)
    if fd < 0:
        error = fd
    elif statx(fd, b"", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | flags, mask, status) != 0:
        error = -errno
    elif share.ownership != OWNERS_AS_IS:
        error = as_guest_sees(share, fd, status)
    inode_unpin(cython.address(share.inodes), inode)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reply_attr(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    status: cython.pointer(statx_t),
) -> cython.int:
    out: cython.pointer(fuse_attr_out) = cython.cast(cython.pointer(fuse_attr_out), request.reply)
    valid: uint64_t = attr_validity(share, status)
    out.attr_valid = valid // NANOSECONDS
    out.attr_valid_nsec = valid % NANOSECONDS
    out.dummy = 0
    fill_attr(cython.address(out.attr), status)
    tell_of_file(share, request.session_flags, request.header.nodeid, status, cython.address(out.attr))
    request.reply_size = cython.sizeof(fuse_attr_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def getattr(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_getattr_in) = cython.cast(cython.pointer(fuse_getattr_in), request.args)
    status: statx_t
    error: cython.int = status_of(
        share,
        request,
        args.getattr_flags & FUSE_GETATTR_FH,
        args.fh,
        0,
        STATX_BASIC_STATS,
        cython.address(status),
    )
    return error if error else reply_attr(share, request, cython.address(status))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def statx_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_statx_in) = cython.cast(cython.pointer(fuse_statx_in), request.args)
    out: cython.pointer(fuse_statx_out) = cython.cast(cython.pointer(fuse_statx_out), request.reply)
    status: statx_t
    valid: uint64_t
    error: cython.int = status_of(
        share,
        request,
        args.getattr_flags & FUSE_GETATTR_FH,
        args.fh,
        args.sx_flags & SYNC_TYPE,
        args.sx_mask & GUEST_MASK,
        cython.address(status),
    )
    if error:
        return error
    tell_of_file(share, 0, request.header.nodeid, cython.address(status), cython.NULL)
    memset(out, 0, cython.sizeof(fuse_statx_out))
    valid = attr_validity(share, cython.address(status))
    out.attr_valid = valid // NANOSECONDS
    out.attr_valid_nsec = valid % NANOSECONDS
    out.stat.mask = status.stx_mask & GUEST_MASK
    out.stat.blksize = status.stx_blksize
    out.stat.attributes = status.stx_attributes
    out.stat.attributes_mask = status.stx_attributes_mask
    out.stat.nlink = status.stx_nlink
    out.stat.uid = status.stx_uid
    out.stat.gid = status.stx_gid
    out.stat.mode = status.stx_mode
    out.stat.ino = status.stx_ino
    out.stat.size = status.stx_size
    out.stat.blocks = status.stx_blocks
    out.stat.atime.tv_sec = status.stx_atime.tv_sec
    out.stat.atime.tv_nsec = status.stx_atime.tv_nsec
    out.stat.btime.tv_sec = status.stx_btime.tv_sec
    out.stat.btime.tv_nsec = status.stx_btime.tv_nsec
    out.stat.ctime.tv_sec = status.stx_ctime.tv_sec
    out.stat.ctime.tv_nsec = status.stx_ctime.tv_nsec
    out.stat.mtime.tv_sec = status.stx_mtime.tv_sec
    out.stat.mtime.tv_nsec = status.stx_mtime.tv_nsec
    out.stat.rdev_major = status.stx_rdev_major
    out.stat.rdev_minor = status.stx_rdev_minor
    out.stat.dev_major = status.stx_dev_major
    out.stat.dev_minor = status.stx_dev_minor
    request.reply_size = cython.sizeof(fuse_statx_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def setattr(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_setattr_in) = cython.cast(cython.pointer(fuse_setattr_in), request.args)
    status: statx_t
    error: cython.int
    fd: cython.int
    handle: cython.pointer(Handle) = cython.NULL
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode == cython.NULL:
        return -ESTALE
    if args.valid & FATTR_FH:
        handle = handle_pin(cython.address(share.handles), args.fh, False)
        if handle == cython.NULL:
            inode_unpin(cython.address(share.inodes), inode)
            return -EBADF
    fd = handle.fd if handle != cython.NULL else inode_descriptor(cython.address(share.inodes), inode)
    if fd < 0:
        error = fd
    else:
        error = change(share, args, inode, handle, fd)
        if not error and statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, cython.address(status)) != 0:
            error = -errno
        if not error and share.ownership != OWNERS_AS_IS:
            error = as_guest_sees(share, fd, cython.address(status))
    if handle != cython.NULL:
        handle_unpin(cython.address(share.handles), handle)
    inode_unpin(cython.address(share.inodes), inode)
    return error if error else reply_attr(share, request, cython.address(status))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def change(
    share: cython.pointer(Share),
    args: cython.pointer(fuse_setattr_in),
    inode: cython.pointer(Inode),
    handle: cython.pointer(Handle),
    fd: cython.int,
) -> cython.int:
    """Make the changes that SETATTR names: 0 or a negative errno."""
    name: cython.char[16]
    error: cython.int
    valid: uint32_t = args.valid
    times: timespec[2]
    snprintf(name, 16, b"%d", fd)
    if share.guarded and valid & (FATTR_UID | FATTR_GID) and inode.type == S_IFREG:
        error = guard(share, fd, valid & FATTR_KILL_SUIDGID != 0)
        if error:
            return error
    if share.ownership == OWNERS_STORED:
        error = store_change(share, args, fd)
        if error:
            return error
        valid &= ~cython.cast(uint32_t, FATTR_UID | FATTR_GID | FATTR_MODE)
    if valid & (FATTR_UID | FATTR_GID):
        error = change_owner(share, args, fd)
        if error:
            return error
    # After the owner: a change of owner may take the set-id bits away that the mode asks for.
    if valid & FATTR_MODE:
        if inode.type == S_IFLNK:
            return -EOPNOTSUPP
        if args.mode & S_ISGID:
            keep_set_ids(share, True)
        if fchmodat(share.proc, name, args.mode & 0o7777, 0) != 0:
            return -errno
    if valid & FATTR_SIZE:
        error = truncate(share, inode, handle, name, args.size, valid & FATTR_KILL_SUIDGID != 0)
        if error:
            return error
    if valid & (FATTR_ATIME | FATTR_MTIME):
        times[0].tv_sec = args.atime
        times[0].tv_nsec = args.atimensec
        times[1].tv_sec = args.mtime
        times[1].tv_nsec = args.mtimensec
        if not valid & FATTR_ATIME:
            times[0].tv_nsec = UTIME_OMIT
        elif valid & FATTR_ATIME_NOW:
            times[0].tv_nsec = UTIME_NOW
        if not valid & FATTR_MTIME:
            times[1].tv_nsec = UTIME_OMIT
        elif valid & FATTR_MTIME_NOW:
            times[1].tv_nsec = UTIME_NOW
        # The name is a magic link to this very inode, symbolic link or not.
        if utimensat(share.proc, name, times, 0) != 0:
            return -errno
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def change_owner(
    share: cython.pointer(Share),
    args: cython.pointer(fuse_setattr_in),
    fd: cython.int,
) -> cython.int:
    """The part of SETATTR that is chown(2); the host takes set-id bits away."""
    unset: uint32_t = 0xFFFFFFFF  # to the host this means "keep"
    uid: int64_t = unset
    gid: int64_t = unset
    if args.valid & FATTR_UID:
        if args.uid == unset:
            return -EINVAL
        uid = translate(cython.address(share.user_to_host), args.uid)
    if args.valid & FATTR_GID:
        if args.gid == unset:
            return -EINVAL
        gid = translate(cython.address(share.group_to_host), args.gid)
    if uid < 0 or gid < 0:
        return uid if uid < 0 else gid
    if (
        fchownat(
            fd,
            b"",
            cython.cast(uint32_t, uid),
            cython.cast(uint32_t, gid),
            AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW,
        )
        != 0
    ):
        return -errno
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def truncate(
    share: cython.pointer(Share),
    inode: cython.pointer(Inode),
    handle: cython.pointer(Handle),
    name: cython.p_char,
    size: uint64_t,
    kill: cython.bint,
) -> cython.int:
    fd: cython.int
    error: cython.int = 0
    if size >> 63:
        return -EINVAL
    if handle != cython.NULL:
        if share.guarded:
            error = guard(share, handle.fd, kill)
            if error:
                return error
        return 0 if ftruncate(handle.fd, size) == 0 else -errno
    if inode.type != S_IFREG:
        return -EISDIR if inode.type == S_IFDIR else -EINVAL
    fd = openat(share.proc, name, O_WRONLY | O_NONBLOCK | O_CLOEXEC)
    if fd < 0:
        return -errno
    if share.guarded:
        error = guard(share, fd, kill)
    if not error and ftruncate(fd, size) != 0:
        error = -errno
    close(fd)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def access(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """ACCESS by mode bits.  Linux never sends it over virtio-fs; other drivers may."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_access_in) = cython.cast(cython.pointer(fuse_access_in), request.args)
    status: statx_t
    wanted: uint32_t = args.mask & 7
    granted: uint32_t
    error: cython.int = status_of(share, request, False, 0, 0, STATX_BASIC_STATS, cython.address(status))
    if error:
        return error
    if request.header.uid == 0:
        granted = 7 if status.stx_mode & 0o111 or status.stx_mode & 0o170000 == S_IFDIR else 6
    elif request.header.uid == status.stx_uid:
        granted = status.stx_mode >> 6
    elif request.header.gid == status.stx_gid:
        granted = status.stx_mode >> 3
    else:
        granted = status.stx_mode
    return -EACCES if wanted & ~granted else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def statfs(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    out: cython.pointer(fuse_kstatfs) = cython.cast(cython.pointer(fuse_kstatfs), request.reply)
    status: statfs_t
    fd: cython.int
    error: cython.int = 0
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode == cython.NULL:
        return -ESTALE
    fd = inode_descriptor(cython.address(share.inodes), inode)
    if fd < 0:
        error = fd
    elif fstatfs(fd, cython.address(status)) != 0:
        error = -errno
    inode_unpin(cython.address(share.inodes), inode)
    if error:
        return error
    memset(out, 0, cython.sizeof(fuse_kstatfs))
    out.blocks = status.f_blocks
    out.bfree = status.f_bfree
    out.bavail = status.f_bavail
    out.files = status.f_files
    out.ffree = status.f_ffree
    out.bsize = status.f_bsize
    out.namelen = status.f_namelen
    out.frsize = status.f_frsize
    request.reply_size = cython.sizeof(fuse_kstatfs)
    return 0

# SPDX-License-Identifier: Apache-2.0
"""OPEN, CREATE and TMPFILE: how a guest comes to a handle, and what it may not open."""

import cython
from cython.cimports.libc.errno import (
    EEXIST,
    EINVAL,
    EISDIR,
    ENOENT,
    ENOSYS,
    ENOTDIR,
    ENXIO,
    EPERM,
    EROFS,
    errno,
)
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.string import memset
from cython.cimports.virtiofs.fs.passthrough.attributes import fill_entry
from cython.cimports.virtiofs.fs.passthrough.context import OWNERS_STORED, Share
from cython.cimports.virtiofs.fs.passthrough.credentials import User, become, become_self, guard
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor, open_by_handle
from cython.cimports.virtiofs.fs.passthrough.handles import handle_open, handle_release
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
    ELOOP,
    ESTALE,
    O_ACCMODE,
    O_CLOEXEC,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_NOATIME,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    O_TMPFILE,
    O_TRUNC,
    O_WRONLY,
    S_IFDIR,
    S_IFLNK,
    S_IFREG,
    STATX_BASIC_STATS,
    close,
    openat,
    statx,
    statx_t,
    unlinkat,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    HANDLE_SURE,
    WAY_HANDLE,
    Inode,
    inode_adopt,
    inode_forget,
    inode_lookup,
    inode_pin,
    inode_unpin,
)
from cython.cimports.virtiofs.fs.passthrough.names import dress
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_NO_OPEN_SUPPORT,
    FUSE_OPEN_KILL_SUIDGID,
    FUSE_WRITEBACK_CACHE,
    fuse_create_in,
    fuse_create_out,
    fuse_open_in,
    fuse_open_out,
)
from cython.cimports.virtiofs.fuse.request import COHERENT_DIRECT_IO, Request
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u8


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_flags(share: cython.pointer(Share), request: cython.pointer(Request), flags: uint32_t) -> cython.int:
    """The host's flags for a guest's: or a negative errno."""
    if flags & O_ACCMODE == O_ACCMODE:
        return -EINVAL
    if share.read_only and (flags & O_ACCMODE != O_RDONLY or flags & O_TRUNC):
        return -EROFS
    if request.session_flags & FUSE_WRITEBACK_CACHE and flags & O_ACCMODE == O_WRONLY:
        flags ^= O_WRONLY ^ O_RDWR  # the guest reads the rest of a page that is written in part
    return (flags & share.guest_flags) | O_CLOEXEC | O_NONBLOCK


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_inode(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    inode: cython.pointer(Inode),
    flags: uint32_t,
    open_flags_: uint32_t,
) -> cython.int:
    """Open a pinned inode for a guest: a descriptor or a negative errno.  `open_flags_`: FUSE_OPEN_*.

    Only regular files: opening a device, a FIFO or a socket would act on the host (CVE-2020-35517); a guest
    opens its own.
    """
    name: cython.char[16]
    fd: cython.int
    opened: cython.int
    host_flags: cython.int = open_flags(share, request, flags)
    if host_flags < 0:
        return host_flags
    if inode.type != S_IFREG:
        return -EISDIR if inode.type == S_IFDIR else -ELOOP if inode.type == S_IFLNK else -ENXIO
    if (
        inode.way == WAY_HANDLE
        and load_acquire_u8(cython.address(inode.trust)) == HANDLE_SURE
        and not flags & O_TRUNC
    ):
        # Half the host's work for a walk through /proc.  Where a handle does not lead to an open file, that may.
        opened = open_by_handle(
            cython.address(share.inodes), inode, host_flags | (O_NOATIME if share.read_only else 0)
        )
        if opened >= 0:
            return opened
    fd = inode_descriptor(cython.address(share.inodes), inode)
    if fd < 0:
        return fd
    snprintf(name, 16, b"%d", fd)
    if share.guarded and flags & O_TRUNC:
        opened = guard(share, fd, open_flags_ & FUSE_OPEN_KILL_SUIDGID != 0)
        if opened < 0:
            return opened
    opened = -1
    if share.read_only:
        # Not even an access time: but only the owner may ask for that.
        opened = openat(share.proc, name, host_flags | O_NOATIME)
        if opened < 0 and errno != EPERM:
            return -errno
    if opened < 0:
        opened = openat(share.proc, name, host_flags)
    return opened if opened >= 0 else -errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_directory(share: cython.pointer(Share), inode: cython.pointer(Inode)) -> cython.int:
    """Open a pinned inode, if it is a directory, to read its entries: a descriptor or a negative errno."""
    fd: cython.int = -1
    flags: cython.int = O_RDONLY | O_DIRECTORY | O_CLOEXEC
    directory: cython.int
    if inode.type != S_IFDIR:
        return -ENOTDIR
    directory = inode_descriptor(cython.address(share.inodes), inode)
    if directory < 0:
        return directory
    if share.read_only:
        fd = openat(directory, b".", flags | O_NOATIME)
    if fd < 0:
        fd = openat(directory, b".", flags)
    return fd if fd >= 0 else -errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reply_open(
    share: cython.pointer(Share),
    session_flags: uint64_t,
    out: cython.pointer(fuse_open_out),
    fd: cython.int,
    nodeid: uint64_t,
    flags: uint32_t,
) -> cython.int:
    memset(out, 0, cython.sizeof(fuse_open_out))
    out.open_flags = share.open_file
    if flags & O_ACCMODE == O_RDONLY:
        out.open_flags |= share.open_to_read
    elif flags & O_ACCMODE == O_WRONLY and session_flags & COHERENT_DIRECT_IO:
        out.open_flags |= share.open_to_write
    return handle_open(cython.address(share.handles), fd, nodeid, flags, False, cython.address(out.fh))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_open_in) = cython.cast(cython.pointer(fuse_open_in), request.args)
    fd: cython.int
    inode: cython.pointer(Inode)
    if request.session_flags & FUSE_NO_OPEN_SUPPORT:
        return -ENOSYS  # it is not asked again: see unopened.py
    inode = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode == cython.NULL:
        return -ESTALE
    fd = open_inode(share, request, inode, args.flags, args.open_flags)
    inode_unpin(cython.address(share.inodes), inode)
    if fd < 0:
        return fd
    request.reply_size = cython.sizeof(fuse_open_out)
    return reply_open(
        share,
        request.session_flags,
        cython.cast(cython.pointer(fuse_open_out), request.reply),
        fd,
        request.header.nodeid,
        args.flags,
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def create(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_create_in) = cython.cast(cython.pointer(fuse_create_in), request.args)
    directory: cython.int
    error: cython.int
    _tries: cython.int
    parent: cython.pointer(Inode)
    host_flags: cython.int = open_flags(share, request, args.flags)
    if host_flags < 0:
        return host_flags
    parent = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if parent == cython.NULL:
        return -ESTALE
    directory = inode_descriptor(cython.address(share.inodes), parent)
    error = directory
    if directory >= 0:
        # The name may come and go on the host between the two attempts; a few rounds settle it.
        for _tries in range(3):
            error = create_new(share, request, parent, directory, host_flags)
            if error != -EEXIST or args.flags & O_EXCL:
                break
            error = create_existing(share, request, parent)
            if error != -ENOENT:
                break
    inode_unpin(cython.address(share.inodes), parent)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def create_new(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    parent: cython.pointer(Inode),
    directory: cython.int,
    host_flags: cython.int,
) -> cython.int:
    """Create the file exclusively, as the request's user, and answer with entry and handle."""
    args: cython.pointer(fuse_create_in) = cython.cast(cython.pointer(fuse_create_in), request.args)
    fd: cython.int
    user: User
    error: cython.int = become(share, request, args.umask, cython.address(user))
    if error:
        return error
    fd = openat(
        directory,
        request.names[0],
        host_flags | O_CREAT | O_EXCL | O_NOFOLLOW,
        host_mode(share, args.mode),
    )
    error = -errno if fd < 0 else 0
    become_self(share, cython.address(user))
    if error:
        return error
    if share.ownership == OWNERS_STORED or request.context_name != cython.NULL:
        error = dress(share, request, directory, fd, S_IFREG, args.mode, 0)
        if error:
            unlinkat(directory, request.names[0], 0)
            close(fd)
            return error
    return reply_create(share, request, parent, request.names[0], request.name_sizes[0], fd, args.flags)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def host_mode(share: cython.pointer(Share), mode: uint32_t) -> uint32_t:
    """The mode that a new file gets on the host: nobody else's business where the guest's is stored."""
    return 0o600 if share.ownership == OWNERS_STORED else mode & 0o7777


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reply_create(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    parent: cython.pointer(Inode),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    fd: cython.int,
    flags: uint32_t,
) -> cython.int:
    """Entry and handle of the file that was just created as `fd`, which is used up."""
    out: cython.pointer(fuse_create_out) = cython.cast(cython.pointer(fuse_create_out), request.reply)
    status: statx_t
    nodeid: uint64_t = 0
    error: cython.int = inode_adopt(
        cython.address(share.inodes), fd, parent, name, size, cython.address(status), cython.address(nodeid)
    )
    if error:
        close(fd)
        return error
    error = fill_entry(
        share, cython.address(out.entry), nodeid, cython.address(status), request.session_flags, parent
    )
    if error:
        close(fd)
        return error
    error = reply_open(share, request.session_flags, cython.address(out.open), fd, nodeid, flags)
    if error:
        inode_forget(cython.address(share.inodes), nodeid, 1)
        return error
    request.reply_size = cython.sizeof(fuse_create_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def create_existing(
    share: cython.pointer(Share), request: cython.pointer(Request), parent: cython.pointer(Inode)
) -> cython.int:
    """CREATE of a name that exists: look it up and open it, by the rules of OPEN."""
    args: cython.pointer(fuse_create_in) = cython.cast(cython.pointer(fuse_create_in), request.args)
    out: cython.pointer(fuse_create_out) = cython.cast(cython.pointer(fuse_create_out), request.reply)
    status: statx_t
    nodeid: uint64_t = 0
    fd: cython.int
    inode: cython.pointer(Inode)
    error: cython.int = inode_lookup(
        cython.address(share.inodes),
        parent,
        request.names[0],
        request.name_sizes[0],
        cython.address(status),
        cython.address(nodeid),
    )
    if error:
        return error
    inode = inode_pin(cython.address(share.inodes), nodeid)
    fd = -ESTALE
    if inode != cython.NULL:
        fd = open_inode(share, request, inode, args.flags, args.open_flags)
        inode_unpin(cython.address(share.inodes), inode)
    # Truncation changed size, times, and perhaps the mode.
    if (
        fd >= 0
        and args.flags & O_TRUNC
        and statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, cython.address(status)) != 0
    ):
        error = -errno
        close(fd)
        fd = error
    error = (
        fd
        if fd < 0
        else reply_open(share, request.session_flags, cython.address(out.open), fd, nodeid, args.flags)
    )
    if error:
        inode_forget(cython.address(share.inodes), nodeid, 1)
        return error
    error = fill_entry(
        share, cython.address(out.entry), nodeid, cython.address(status), request.session_flags, parent
    )
    if error:
        handle_release(cython.address(share.handles), out.open.fh, False)
        return error
    request.reply_size = cython.sizeof(fuse_create_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tmpfile(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_create_in) = cython.cast(cython.pointer(fuse_create_in), request.args)
    fd: cython.int
    directory: cython.int
    error: cython.int
    user: User
    parent: cython.pointer(Inode)
    host_flags: cython.int = open_flags(share, request, args.flags)
    if host_flags < 0:
        return host_flags
    parent = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if parent == cython.NULL:
        return -ESTALE
    directory = inode_descriptor(cython.address(share.inodes), parent)
    error = directory if directory < 0 else become(share, request, args.umask, cython.address(user))
    if not error:
        # Without O_EXCL: the guest may give the file a name later.
        fd = openat(directory, b".", (host_flags & ~O_TRUNC) | O_TMPFILE, host_mode(share, args.mode))
        error = -errno if fd < 0 else 0
        become_self(share, cython.address(user))
        if not error and (share.ownership == OWNERS_STORED or request.context_name != cython.NULL):
            error = dress(share, request, directory, fd, S_IFREG, args.mode, 0)
            if error:
                close(fd)
        if not error:
            error = reply_create(share, request, cython.NULL, cython.NULL, 0, fd, args.flags)
    inode_unpin(cython.address(share.inodes), parent)
    return error

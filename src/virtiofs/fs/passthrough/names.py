# SPDX-License-Identifier: Apache-2.0
"""Operations on names: looking up, creating, linking, renaming and removing entries of directories.

A name that arrives here is one component (`fuse.request.check_name`); the host sees it only beside a
directory's descriptor.
"""

import cython
from cython.cimports.libc.errno import EINVAL, EPERM, errno
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.string import memcpy
from cython.cimports.virtiofs.fs.passthrough.attributes import fill_entry
from cython.cimports.virtiofs.fs.passthrough.context import OWNERS_STORED, Share
from cython.cimports.virtiofs.fs.passthrough.credentials import User, become, become_self
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor, is_submount
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_REMOVEDIR,
    AT_SYMLINK_FOLLOW,
    ESTALE,
    O_CLOEXEC,
    O_CREAT,
    O_EXCL,
    O_NOFOLLOW,
    O_PATH,
    O_WRONLY,
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFIFO,
    S_IFLNK,
    S_IFMT,
    S_IFREG,
    S_IFSOCK,
    close,
    linkat,
    mkdirat,
    mknodat,
    openat,
    readlinkat,
    renameat2,
    statx_t,
    symlinkat,
    unlinkat,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    Inode,
    inode_forget,
    inode_keep,
    inode_lookup,
    inode_pin,
    inode_renamed,
    inode_unpin,
)
from cython.cimports.virtiofs.fs.passthrough.owners import store_new
from cython.cimports.virtiofs.fs.passthrough.xattrs import set_context
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_ATTR_SUBMOUNT,
    FUSE_SUBMOUNTS,
    fuse_batch_forget_in,
    fuse_entry_out,
    fuse_forget_in,
    fuse_forget_one,
    fuse_link_in,
    fuse_mkdir_in,
    fuse_mknod_in,
    fuse_rename2_in,
    fuse_rename_in,
)
from cython.cimports.virtiofs.fuse.request import Request

RENAME_FLAGS = cython.declare(uint32_t, 7)  # NOREPLACE, EXCHANGE, WHITEOUT
RENAME_EXCHANGE = cython.declare(uint32_t, 2)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reply_lookup(
    share: cython.pointer(Share), request: cython.pointer(Request), parent: cython.pointer(Inode)
) -> cython.int:
    """Look the request's first name up in `parent` and answer with its entry."""
    entry: cython.pointer(fuse_entry_out) = cython.cast(cython.pointer(fuse_entry_out), request.reply)
    status: statx_t
    nodeid: uint64_t = 0
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
    error = fill_entry(share, entry, nodeid, cython.address(status), request.session_flags, parent)
    if error:
        return error
    if request.session_flags & FUSE_SUBMOUNTS and is_submount(
        cython.address(share.inodes), parent, cython.address(status)
    ):
        entry.attr.flags |= FUSE_ATTR_SUBMOUNT
    request.reply_size = cython.sizeof(fuse_entry_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lookup(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    error: cython.int
    parent: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if parent == cython.NULL:
        return -ESTALE
    error = reply_lookup(share, request, parent)
    inode_unpin(cython.address(share.inodes), parent)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def forget(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_forget_in) = cython.cast(cython.pointer(fuse_forget_in), request.args)
    inode_forget(cython.address(share.inodes), request.header.nodeid, args.nlookup)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def batch_forget(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_batch_forget_in) = cython.cast(
        cython.pointer(fuse_batch_forget_in), request.args
    )
    one: fuse_forget_one
    i: uint32_t
    count: uint32_t = request.tail_size // cython.sizeof(fuse_forget_one)
    if args.count < count:
        count = args.count
    for i in range(count):
        memcpy(
            cython.address(one),
            request.tail + i * cython.sizeof(fuse_forget_one),
            cython.sizeof(fuse_forget_one),
        )
        inode_forget(cython.address(share.inodes), one.nodeid, one.nlookup)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def readlink(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    fd: cython.int
    size: cython.Py_ssize_t = 4096
    error: cython.int = 0
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode == cython.NULL:
        return -ESTALE
    if inode.type != S_IFLNK:
        inode_unpin(cython.address(share.inodes), inode)
        return -EINVAL
    fd = inode_descriptor(cython.address(share.inodes), inode)
    if fd < 0:
        error = fd
    else:
        size = readlinkat(fd, b"", cython.cast(cython.p_char, request.reply), size)
        if size < 0:
            error = -errno
    inode_unpin(cython.address(share.inodes), inode)
    if error:
        return error
    if cython.cast(uint64_t, size) > request.out_size:
        return -EINVAL
    request.reply_size = size
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def symlink(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    return make(cython.cast(cython.pointer(Share), context), request, S_IFLNK, 0o777, 0, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def mknod(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Regular files, FIFOs, sockets, and the 0/0 character device that overlayfs uses as a whiteout.

    A device node in the share would be one for every program of the host that meets it: EPERM.  Where owners are
    stored, it is one for the guest only.
    """
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_mknod_in) = cython.cast(cython.pointer(fuse_mknod_in), request.args)
    type: uint32_t = args.mode & S_IFMT
    if type == 0:
        type = S_IFREG
    if share.ownership != OWNERS_STORED and (type == S_IFBLK or (type == S_IFCHR and args.rdev != 0)):
        return -EPERM
    if type != S_IFREG and type != S_IFIFO and type != S_IFSOCK and type != S_IFCHR and type != S_IFBLK:
        return -EPERM
    return make(share, request, type, args.mode & 0o7777, args.rdev, args.umask)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def mkdir(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    args: cython.pointer(fuse_mkdir_in) = cython.cast(cython.pointer(fuse_mkdir_in), request.args)
    return make(
        cython.cast(cython.pointer(Share), context), request, S_IFDIR, args.mode & 0o7777, 0, args.umask
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def make(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    type: uint32_t,
    mode: uint32_t,
    rdev: uint32_t,
    umask: uint32_t,
) -> cython.int:
    """Create a file of `type` as the request's user, and answer with its entry."""
    directory: cython.int
    error: cython.int
    user: User
    parent: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if parent == cython.NULL:
        return -ESTALE
    directory = inode_descriptor(cython.address(share.inodes), parent)
    error = directory if directory < 0 else become(share, request, umask, cython.address(user))
    if not error:
        if type == S_IFLNK:
            error = symlinkat(request.names[1], directory, request.names[0])
        elif type == S_IFDIR:
            error = mkdirat(directory, request.names[0], 0o700 if share.ownership == OWNERS_STORED else mode)
        elif share.ownership == OWNERS_STORED:
            error = make_placeholder(directory, request.names[0])
        else:
            error = mknodat(directory, request.names[0], type | mode, 0)
        if error:
            error = -errno
        become_self(share, cython.address(user))
        if not error and (share.ownership == OWNERS_STORED or request.context_name != cython.NULL):
            error = dress_new(share, request, directory, type, mode, rdev)
        if not error:
            error = reply_lookup(share, request, parent)
    inode_unpin(cython.address(share.inodes), parent)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def make_placeholder(directory: cython.int, name: cython.pointer(cython.const[cython.char])) -> cython.int:
    """The regular file that stands for a node whose type is stored.  0, or -1 and errno."""
    fd: cython.int = openat(
        directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, cython.cast(cython.int, 0o600)
    )
    return close(fd) if fd >= 0 else -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def dress_new(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    directory: cython.int,
    type: uint32_t,
    mode: uint32_t,
    rdev: uint32_t,
) -> cython.int:
    """Give what was just made under the request's first name its attributes; if that fails it is removed again."""
    fd: cython.int = openat(directory, request.names[0], O_PATH | O_NOFOLLOW | O_CLOEXEC)
    error: cython.int = -errno if fd < 0 else dress(share, request, directory, fd, type, mode, rdev)
    if fd >= 0:
        close(fd)
    if error:
        unlinkat(directory, request.names[0], AT_REMOVEDIR if type == S_IFDIR else 0)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def dress(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    directory: cython.int,
    fd: cython.int,
    type: uint32_t,
    mode: uint32_t,
    rdev: uint32_t,
) -> cython.int:
    """Give the new file `fd` its stored owner and its security context, where there are such."""
    error: cython.int = 0
    if share.ownership == OWNERS_STORED and type != S_IFLNK:
        error = store_new(share, request, directory, fd, type, mode, rdev)
    if not error and request.context_name != cython.NULL:
        error = set_context(share, request, fd)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def unlink(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    return remove(cython.cast(cython.pointer(Share), context), request, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def rmdir(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    return remove(cython.cast(cython.pointer(Share), context), request, AT_REMOVEDIR)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def remove(share: cython.pointer(Share), request: cython.pointer(Request), flags: cython.int) -> cython.int:
    directory: cython.int
    error: cython.int = 0
    kept: cython.pointer(Inode)
    parent: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if parent == cython.NULL:
        return -ESTALE
    directory = inode_descriptor(cython.address(share.inodes), parent)
    if directory < 0:
        error = directory
    else:
        kept = inode_keep(cython.address(share.inodes), directory, request.names[0])
        if unlinkat(directory, request.names[0], flags) != 0:
            error = -errno
        if kept != cython.NULL:
            if error:
                kept.keep = 0
            inode_unpin(cython.address(share.inodes), kept)
    inode_unpin(cython.address(share.inodes), parent)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def rename(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    args: cython.pointer(fuse_rename_in) = cython.cast(cython.pointer(fuse_rename_in), request.args)
    return move(cython.cast(cython.pointer(Share), context), request, args.newdir, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def rename2(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    args: cython.pointer(fuse_rename2_in) = cython.cast(cython.pointer(fuse_rename2_in), request.args)
    if args.flags & ~RENAME_FLAGS:
        return -EINVAL
    return move(cython.cast(cython.pointer(Share), context), request, args.newdir, args.flags)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def move(
    share: cython.pointer(Share), request: cython.pointer(Request), newdir: uint64_t, flags: uint32_t
) -> cython.int:
    """Rename the request's first name in its directory to the second in `newdir`."""
    source: cython.int
    target: cython.int
    error: cython.int = 0
    kept: cython.pointer(Inode) = cython.NULL
    old: cython.pointer(Inode)
    new: cython.pointer(Inode)
    old = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if old == cython.NULL:
        return -ESTALE
    new = inode_pin(cython.address(share.inodes), newdir)
    if new == cython.NULL:
        inode_unpin(cython.address(share.inodes), old)
        return -ESTALE
    source = inode_descriptor(cython.address(share.inodes), old)
    target = inode_descriptor(cython.address(share.inodes), new)
    if source < 0 or target < 0:
        error = source if source < 0 else target
    else:
        if not flags & RENAME_EXCHANGE:
            kept = inode_keep(cython.address(share.inodes), target, request.names[1])
        if renameat2(source, request.names[0], target, request.names[1], flags) != 0:
            error = -errno
        if kept != cython.NULL:
            if error:
                kept.keep = 0
            inode_unpin(cython.address(share.inodes), kept)
        if not error:
            inode_renamed(cython.address(share.inodes), new, target, request.names[1], request.name_sizes[1])
            if flags & RENAME_EXCHANGE:
                inode_renamed(
                    cython.address(share.inodes), old, source, request.names[0], request.name_sizes[0]
                )
    inode_unpin(cython.address(share.inodes), new)
    inode_unpin(cython.address(share.inodes), old)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def link(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_link_in) = cython.cast(cython.pointer(fuse_link_in), request.args)
    name: cython.char[16]
    source: cython.int
    target: cython.int
    error: cython.int = 0
    inode: cython.pointer(Inode)
    parent: cython.pointer(Inode)
    inode = inode_pin(cython.address(share.inodes), args.oldnodeid)
    if inode == cython.NULL:
        return -ESTALE
    parent = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if parent == cython.NULL:
        inode_unpin(cython.address(share.inodes), inode)
        return -ESTALE
    source = inode_descriptor(cython.address(share.inodes), inode)
    target = inode_descriptor(cython.address(share.inodes), parent)
    if source < 0 or target < 0:
        error = source if source < 0 else target
    else:
        # Followed is our own magic link only: it ends at the inode, be that a symbolic link itself.
        snprintf(name, 16, b"%d", source)
        if linkat(share.proc, name, target, request.names[0], AT_SYMLINK_FOLLOW) != 0:
            error = -errno
        else:
            error = reply_lookup(share, request, parent)
    inode_unpin(cython.address(share.inodes), parent)
    inode_unpin(cython.address(share.inodes), inode)
    return error

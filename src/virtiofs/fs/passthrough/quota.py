# SPDX-License-Identifier: Apache-2.0
"""A quota: what stands in front of the operations of a share whose guest may add only so much to the host's disk.

The rule (docs/quota.md): what a request may come to need at most is set aside before the host is asked, or the
answer is ENOSPC; afterwards what it did need is counted, as the difference of st_blocks before and after.  Room for
blocks of the host's own (extents, directories) is set aside with it: ROOM where data or files are added, LITTLE_ROOM
where something that is there changes, so that renaming and overwriting go on when nothing more can be added.

Without a quota none of this is in a request's way.
"""

import cython
from cython.cimports.libc.errno import EBADF
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.virtiofs.fs.passthrough.account import INODE_BYTES_EACH
from cython.cimports.virtiofs.fs.passthrough.context import OWNERS_STORED, Share
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.growth import (
    LITTLE_ROOM,
    ROOM,
    Growth,
    add_change,
    begin,
    end,
    look,
    set_aside,
    set_aside_range,
)
from cython.cimports.virtiofs.fs.passthrough.handles import Handle, handle_pin, handle_unpin
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_SYMLINK_NOFOLLOW,
    O_ACCMODE,
    O_APPEND,
    O_RDONLY,
    O_TRUNC,
    RENAME_EXCHANGE,
    RENAME_WHITEOUT,
    STATX_BASIC_STATS,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    Inode,
    inode_forget,
    inode_lookup,
    inode_pin,
    inode_unpin,
    node_id,
)
from cython.cimports.virtiofs.fs.passthrough.removed import inode_removed
from cython.cimports.virtiofs.fuse.layout import (
    FATTR_GID,
    FATTR_MODE,
    FATTR_SIZE,
    FATTR_UID,
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_CREATE,
    FUSE_FALLOCATE,
    FUSE_LINK,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_OPEN,
    FUSE_RELEASE,
    FUSE_REMOVEXATTR,
    FUSE_RENAME,
    FUSE_RENAME2,
    FUSE_RMDIR,
    FUSE_SETATTR,
    FUSE_SETXATTR,
    FUSE_STATFS,
    FUSE_SYMLINK,
    FUSE_TMPFILE,
    FUSE_UNLINK,
    FUSE_WRITE,
    fuse_copy_file_range_in,
    fuse_create_in,
    fuse_entry_out,
    fuse_fallocate_in,
    fuse_kstatfs,
    fuse_open_in,
    fuse_release_in,
    fuse_rename2_in,
    fuse_setattr_in,
    fuse_setxattr_in,
    fuse_write_in,
)
from cython.cimports.virtiofs.fuse.request import Handler, Request
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u64

# What one copy_file_range(2) of Linux copies at most.
MOST_COPIED = cython.declare(uint64_t, 0x7FFFF000)
PUNCH_HOLE = cython.declare(uint32_t, 2)


@cython.cfunc
def count_growth(share: cython.pointer(Share), table: cython.pointer(Handler)) -> cython.void:
    """Put the counting in front of those handlers in `table` that change what the share takes of the disk."""
    opcode: cython.int
    for opcode in (
        *(FUSE_WRITE, FUSE_FALLOCATE, FUSE_COPY_FILE_RANGE, FUSE_COPY_FILE_RANGE_64, FUSE_SETATTR),
        *(FUSE_SETXATTR, FUSE_REMOVEXATTR, FUSE_OPEN, FUSE_RELEASE, FUSE_CREATE, FUSE_TMPFILE),
        *(FUSE_MKNOD, FUSE_MKDIR, FUSE_SYMLINK, FUSE_LINK, FUSE_UNLINK, FUSE_RMDIR),
        *(FUSE_RENAME, FUSE_RENAME2, FUSE_STATFS),
    ):
        share.counted[opcode] = table[opcode]
    table[FUSE_WRITE] = write
    table[FUSE_FALLOCATE] = fallocate
    table[FUSE_COPY_FILE_RANGE] = table[FUSE_COPY_FILE_RANGE_64] = copy
    table[FUSE_SETATTR] = setattr
    table[FUSE_SETXATTR] = table[FUSE_REMOVEXATTR] = xattr
    table[FUSE_OPEN] = open_
    table[FUSE_RELEASE] = release
    table[FUSE_CREATE] = table[FUSE_MKNOD] = table[FUSE_MKDIR] = table[FUSE_SYMLINK] = make
    table[FUSE_TMPFILE] = tmpfile
    table[FUSE_LINK] = link
    table[FUSE_UNLINK] = table[FUSE_RMDIR] = remove
    table[FUSE_RENAME] = table[FUSE_RENAME2] = rename
    table[FUSE_STATFS] = statfs


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def go_on(share: cython.pointer(Share), request: cython.pointer(Request)) -> cython.int:
    """Do what was asked for."""
    return share.counted[request.header.opcode](share, request)


# --- open files ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_write_in) = cython.cast(cython.pointer(fuse_write_in), request.args)
    return change_data(share, request, args.fh, args.offset, args.size, args.flags & O_APPEND != 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fallocate(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_fallocate_in) = cython.cast(cython.pointer(fuse_fallocate_in), request.args)
    size: uint64_t = 0 if args.mode & PUNCH_HOLE else args.length
    return change_data(share, request, args.fh, args.offset, size, False)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def copy(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """No more is copied than there is in the source now: it may grow meanwhile."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_copy_file_range_in) = cython.cast(
        cython.pointer(fuse_copy_file_range_in), request.args
    )
    status: statx_t
    left: uint64_t
    source: cython.pointer(Handle) = handle_pin(cython.address(share.handles), args.fh_in, False)
    if source != cython.NULL:
        if look(source.fd, cython.address(status)) == 0:
            left = status.stx_size - args.off_in if status.stx_size > args.off_in else 0
            if args.len > left:
                args.len = left
        handle_unpin(cython.address(share.handles), source)
    if args.len > MOST_COPIED:
        args.len = MOST_COPIED
    return change_data(share, request, args.fh_out, args.off_out, args.len, False)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def change_data(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    fh: uint64_t,
    offset: uint64_t,
    size: uint64_t,
    append: cython.bint,
) -> cython.int:
    """Serve a request that puts at most `size` bytes at `offset` of an open file."""
    growth: Growth
    before: statx_t
    error: cython.int
    handle: cython.pointer(Handle)
    inode: cython.pointer(Inode) = cython.NULL
    if offset >> 63 or size >> 63 or (offset + size) >> 63:
        return go_on(share, request)  # no host has such a file
    handle = handle_pin(cython.address(share.handles), fh, False)
    if handle == cython.NULL:
        return go_on(share, request)  # which says so
    inode = inode_pin(cython.address(share.inodes), handle.nodeid)
    if inode == cython.NULL:
        handle_unpin(cython.address(share.handles), handle)
        return -EBADF
    begin(cython.address(growth), share, inode.ino, inode.ino)
    error = look(handle.fd, cython.address(before))
    if not error:
        error = set_aside_range(
            cython.address(growth),
            handle.fd,
            cython.address(before),
            before.stx_size if append else offset,
            size,
        )
    if not error:
        error = go_on(share, request)
        add_change(cython.address(growth), handle.fd, cython.address(before))
    end(cython.address(growth))
    inode_unpin(cython.address(share.inodes), inode)
    handle_unpin(cython.address(share.handles), handle)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def release(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Closing a file may make it smaller: XFS takes back what it had set aside behind the end."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_release_in) = cython.cast(cython.pointer(fuse_release_in), request.args)
    growth: Growth
    before: statx_t
    error: cython.int
    fd: cython.int = -1
    inode: cython.pointer(Inode) = cython.NULL
    handle: cython.pointer(Handle) = handle_pin(cython.address(share.handles), args.fh, False)
    if handle != cython.NULL:
        if handle.flags & O_ACCMODE != O_RDONLY:
            inode = inode_pin(cython.address(share.inodes), handle.nodeid)
        handle_unpin(cython.address(share.handles), handle)
    if inode == cython.NULL:
        return go_on(share, request)
    begin(cython.address(growth), share, inode.ino, inode.ino)
    fd = inode_descriptor(cython.address(share.inodes), inode)
    if fd >= 0 and look(fd, cython.address(before)) != 0:
        fd = -1
    error = go_on(share, request)
    if fd >= 0:
        add_change(cython.address(growth), fd, cython.address(before))
    end(cython.address(growth))
    inode_unpin(cython.address(share.inodes), inode)
    return error


# --- nodes ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def setattr(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """A larger size adds no blocks, a smaller one frees some; stored owners may take a block for attributes."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_setattr_in) = cython.cast(cython.pointer(fuse_setattr_in), request.args)
    size: uint64_t = 0
    if share.ownership == OWNERS_STORED and args.valid & (FATTR_MODE | FATTR_UID | FATTR_GID):
        size = LITTLE_ROOM
    if not size and not args.valid & FATTR_SIZE:
        return go_on(share, request)
    return change_node(share, request, size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def xattr(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    size: uint64_t = 0
    if request.header.opcode == FUSE_SETXATTR:
        size = LITTLE_ROOM + cython.cast(cython.pointer(fuse_setxattr_in), request.args).size
    return change_node(share, request, size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    if not cython.cast(cython.pointer(fuse_open_in), request.args).flags & O_TRUNC:
        return go_on(share, request)
    return change_node(share, request, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def change_node(share: cython.pointer(Share), request: cython.pointer(Request), size: uint64_t) -> cython.int:
    """Serve a request that adds at most `size` bytes to its node."""
    growth: Growth
    before: statx_t
    fd: cython.int
    error: cython.int
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode == cython.NULL:
        return go_on(share, request)
    fd = inode_descriptor(cython.address(share.inodes), inode)
    if fd < 0:
        inode_unpin(cython.address(share.inodes), inode)
        return fd
    begin(cython.address(growth), share, inode.ino, inode.ino)
    error = look(fd, cython.address(before))
    if not error and size:
        error = set_aside(cython.address(growth), size)
    if not error:
        error = go_on(share, request)
        add_change(cython.address(growth), fd, cython.address(before))
    end(cython.address(growth))
    inode_unpin(cython.address(share.inodes), inode)
    return error


# --- names ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def find(
    directory: cython.int,
    name: cython.pointer(cython.const[cython.char]),
    status: cython.pointer(statx_t),
) -> cython.bint:
    return statx(directory, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, status) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def make(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """CREATE, MKNOD, MKDIR, SYMLINK: a new inode, its first blocks, and what its name takes in the directory.

    CREATE with O_TRUNC of what exists frees what is in it.
    """
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    growth: Growth
    around: statx_t
    before: statx_t
    after: statx_t
    directory: cython.int
    error: cython.int
    there: cython.bint
    truncates: cython.bint = False
    ino: uint64_t
    parent: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if parent == cython.NULL:
        return go_on(share, request)
    directory = inode_descriptor(cython.address(share.inodes), parent)
    if directory < 0:
        inode_unpin(cython.address(share.inodes), parent)
        return directory
    ino = parent.ino
    if request.header.opcode == FUSE_CREATE:
        truncates = cython.cast(cython.pointer(fuse_create_in), request.args).flags & O_TRUNC != 0
        if truncates and find(directory, request.names[0], cython.address(before)):
            ino = before.stx_ino
    begin(cython.address(growth), share, parent.ino, ino)
    error = look(directory, cython.address(around))
    there = find(directory, request.names[0], cython.address(before))
    if not error and not there:
        error = set_aside(cython.address(growth), ROOM)
    if not error:
        error = go_on(share, request)
        if not there and find(directory, request.names[0], cython.address(after)):
            # Also if it failed: then it did at a point where the file was made already.
            growth.bytes += INODE_BYTES_EACH + after.stx_blocks * 512
        elif (
            truncates
            and there
            and before.stx_ino == ino
            and find(directory, request.names[0], cython.address(after))
            and after.stx_ino == ino
            and after.stx_blocks < before.stx_blocks
        ):
            growth.bytes -= (before.stx_blocks - after.stx_blocks) * 512
        add_change(cython.address(growth), directory, cython.address(around))
    end(cython.address(growth))
    inode_unpin(cython.address(share.inodes), parent)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tmpfile(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """A file without a name is removed from the beginning, until it is given one."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    growth: Growth
    status: statx_t
    fd: cython.int
    error: cython.int
    inode: cython.pointer(Inode)
    begin(cython.address(growth), share, 0, 0)
    error = set_aside(cython.address(growth), ROOM)
    if not error:
        error = go_on(share, request)
    if not error:
        growth.bytes = INODE_BYTES_EACH
        inode = inode_pin(
            cython.address(share.inodes),
            cython.cast(cython.pointer(fuse_entry_out), request.reply).nodeid,
        )
        if inode != cython.NULL:
            fd = inode_descriptor(cython.address(share.inodes), inode)
            if fd >= 0 and look(fd, cython.address(status)) == 0:
                growth.bytes += status.stx_blocks * 512
                inode_removed(cython.address(share.inodes), inode)
            inode_unpin(cython.address(share.inodes), inode)
    end(cython.address(growth))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def link(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """Another name takes room in the directory only."""
    return change_node(cython.cast(cython.pointer(Share), context), request, LITTLE_ROOM)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def victim_of(
    share: cython.pointer(Share),
    parent: cython.pointer(Inode),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
) -> cython.pointer(Inode):
    """The inode of a name that may be about to go: pinned, with a look-up to give back, and its descriptor; or NULL.

    Whoever else looks the file up finds this inode, so that no other can hold the file without our knowledge.
    """
    status: statx_t
    nodeid: uint64_t = 0
    inode: cython.pointer(Inode)
    if inode_lookup(
        cython.address(share.inodes), parent, name, size, cython.address(status), cython.address(nodeid)
    ):
        return cython.NULL
    inode = inode_pin(cython.address(share.inodes), nodeid)
    if inode != cython.NULL and inode_descriptor(cython.address(share.inodes), inode) < 0:
        inode_unpin(cython.address(share.inodes), inode)
        inode = cython.NULL
    if inode == cython.NULL:
        inode_forget(cython.address(share.inodes), nodeid, 1)
    return inode


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def let_go(share: cython.pointer(Share), inode: cython.pointer(Inode)) -> cython.void:
    """The end of `victim_of`: a file without a name is counted until nothing of ours holds it any more."""
    status: statx_t
    nodeid: uint64_t = node_id(cython.address(share.inodes), inode)
    fd: cython.int = inode_descriptor(cython.address(share.inodes), inode)
    if fd >= 0 and look(fd, cython.address(status)) == 0 and status.stx_nlink == 0:
        inode_removed(cython.address(share.inodes), inode)
    inode_unpin(cython.address(share.inodes), inode)
    inode_forget(cython.address(share.inodes), nodeid, 1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def remove(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    growth: Growth
    around: statx_t
    directory: cython.int
    error: cython.int
    victim: cython.pointer(Inode)
    parent: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if parent == cython.NULL:
        return go_on(share, request)
    directory = inode_descriptor(cython.address(share.inodes), parent)
    if directory < 0:
        inode_unpin(cython.address(share.inodes), parent)
        return directory
    begin(cython.address(growth), share, parent.ino, parent.ino)
    error = look(directory, cython.address(around))
    if not error:
        victim = victim_of(share, parent, request.names[0], request.name_sizes[0])
        error = go_on(share, request)
        add_change(cython.address(growth), directory, cython.address(around))
        if victim != cython.NULL:
            let_go(share, victim)
    end(cython.address(growth))
    inode_unpin(cython.address(share.inodes), parent)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def rename(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_rename2_in) = cython.cast(cython.pointer(fuse_rename2_in), request.args)
    error: cython.int
    new: cython.pointer(Inode)
    old: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if old == cython.NULL:
        return go_on(share, request)
    new = inode_pin(cython.address(share.inodes), args.newdir)
    if new == cython.NULL:
        error = go_on(share, request)
    else:
        error = move(share, request, old, new, args.flags if request.header.opcode == FUSE_RENAME2 else 0)
        inode_unpin(cython.address(share.inodes), new)
    inode_unpin(cython.address(share.inodes), old)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def move(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    old: cython.pointer(Inode),
    new: cython.pointer(Inode),
    flags: uint32_t,
) -> cython.int:
    """RENAME between two pinned directories: both may change, and what had the new name may go."""
    growth: Growth
    source_before: statx_t
    target_before: statx_t
    victim: cython.pointer(Inode) = cython.NULL
    error: cython.int = 0
    source: cython.int = inode_descriptor(cython.address(share.inodes), old)
    target: cython.int = inode_descriptor(cython.address(share.inodes), new)
    if source < 0 or target < 0:
        return source if source < 0 else target
    begin(cython.address(growth), share, old.ino, new.ino)
    error = look(source, cython.address(source_before))
    if not error:
        error = look(target, cython.address(target_before))
    if not error:
        error = set_aside(cython.address(growth), LITTLE_ROOM)
    if not error:
        if not flags & RENAME_EXCHANGE:
            victim = victim_of(share, new, request.names[1], request.name_sizes[1])
        error = go_on(share, request)
        if not error and flags & RENAME_WHITEOUT:
            growth.bytes += INODE_BYTES_EACH
        add_change(cython.address(growth), source, cython.address(source_before))
        if old != new:
            add_change(cython.address(growth), target, cython.address(target_before))
        if victim != cython.NULL:
            let_go(share, victim)
    end(cython.address(growth))
    return error


# --- what df shows ---


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def statfs(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """A disk of the quota's size, with what is left of it, if the host has as much."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    out: cython.pointer(fuse_kstatfs) = cython.cast(cython.pointer(fuse_kstatfs), request.reply)
    taken: uint64_t
    left: uint64_t = share.account.limit
    error: cython.int = go_on(share, request)
    if error or out.frsize == 0:
        return error
    taken = load_acquire_u64(cython.address(share.account.used)) + ROOM
    left = (left - taken if left > taken else 0) // out.frsize
    out.blocks = share.account.limit // out.frsize
    out.bavail = left if left < out.bavail else out.bavail
    out.bfree = out.bavail
    return 0

# SPDX-License-Identifier: Apache-2.0
"""DAX: SETUPMAPPING and REMOVEMAPPING of a shared directory, and what mapped files ask of the other operations.

What is mapped where is the business of the window (dax/window.py), which this file enters with the interpreter: only
for these two requests, and for others about files that are mapped.  The rules here:

- a file is mapped only as far as the share and the handle allow writing, unless the front end can map read-only;
- a guest is told to use DAX (FUSE_ATTR_DAX) for files of whole pages that it may write, so that a page of the
  guest is a page of the file;
- a request that may change a mapped file's size, or that looks at what was stored in its last page, has the window
  prepared before and put right after it (`watched`);
- a guest learns a size only when its mappings reach that far (`tell_of_file`).
"""

import os

import cython
from cython.cimports.libc.errno import EACCES, EBADF, EEXIST, EINVAL, EIO, ENOSYS, EROFS
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.handles import Handle, handle_pin, handle_unpin
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EACCESS,
    ESTALE,
    O_ACCMODE,
    O_EXCL,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    R_OK,
    S_IFMT,
    S_IFREG,
    STATX_ATTR_APPEND,
    W_OK,
    faccessat,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import Inode, inode_pin, inode_unpin
from cython.cimports.virtiofs.fs.passthrough.opening import open_inode
from cython.cimports.virtiofs.fuse.layout import (
    FATTR_SIZE,
    FUSE_ATTR_DAX,
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_CREATE,
    FUSE_FALLOCATE,
    FUSE_FLUSH,
    FUSE_FSYNC,
    FUSE_HAS_INODE_DAX,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_REMOVEMAPPING,
    FUSE_SETATTR,
    FUSE_SETUPMAPPING,
    FUSE_SETUPMAPPING_FLAG_WRITE,
    FUSE_WRITE,
    fuse_attr,
    fuse_copy_file_range_in,
    fuse_create_in,
    fuse_open_in,
    fuse_removemapping_in,
    fuse_removemapping_one,
    fuse_setattr_in,
    fuse_setupmapping_in,
)
from cython.cimports.virtiofs.fuse.request import Handler, Request

PAGE = cython.declare(uint64_t, 4096)
NO_HANDLE = cython.declare(uint64_t, 0xFFFFFFFFFFFFFFFF)
MOST_REMOVED = cython.declare(uint32_t, 4096)  # records of one REMOVEMAPPING; Linux sends up to 256
WATCHED = (
    *(FUSE_READ, FUSE_WRITE, FUSE_SETATTR, FUSE_OPEN, FUSE_CREATE, FUSE_FALLOCATE),
    *(FUSE_COPY_FILE_RANGE, FUSE_COPY_FILE_RANGE_64, FUSE_FSYNC, FUSE_FLUSH, FUSE_RELEASE),
)


@cython.cfunc
def serve_mappings(share: cython.pointer(Share), table: cython.pointer(Handler)) -> cython.void:
    """Put the operations into `table`, and `watched` in front of those that a mapping concerns."""
    opcode: cython.int
    for opcode in WATCHED:
        share.unwatched[opcode] = table[opcode]
        table[opcode] = watched
    table[FUSE_SETUPMAPPING] = setupmapping
    table[FUSE_REMOVEMAPPING] = removemapping


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def setupmapping(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_setupmapping_in) = cython.cast(
        cython.pointer(fuse_setupmapping_in), request.args
    )
    writable: cython.bint = args.flags & FUSE_SETUPMAPPING_FLAG_WRITE
    error: cython.int = 0
    fd: cython.int
    inode: cython.pointer(Inode)
    if share.window == cython.NULL:
        return -ENOSYS
    if not share.window_exact:
        writable = True
    if share.read_only and writable:
        count_refusal(share, b"read-only")
        return -EROFS
    error = may_map(share, args.fh, request.header.nodeid, writable)
    if error:
        count_refusal(share, b"handle")
        return error
    inode = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode == cython.NULL:
        return -ESTALE
    fd = open_inode(share, request, inode, O_RDWR if writable else O_RDONLY, 0)
    if fd >= 0:
        share.window_used = inode.mapped = True
    inode_unpin(cython.address(share.inodes), inode)
    if fd < 0:
        count_refusal(share, b"open")
        return fd
    with cython.gil:
        error = window_setup(share, request.header.nodeid, fd, args, writable)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def may_map(
    share: cython.pointer(Share), fh: uint64_t, nodeid: uint64_t, writable: cython.bint
) -> cython.int:
    """Whether the handle that a mapping is asked through was opened for that; Linux names none.  0 or an errno."""
    handle: cython.pointer(Handle)
    mode: uint32_t
    error: cython.int = 0
    if fh == NO_HANDLE:
        return 0
    handle = handle_pin(cython.address(share.handles), fh, False)
    if handle == cython.NULL:
        return -EBADF
    mode = handle.flags & O_ACCMODE
    if handle.nodeid != nodeid:
        error = -EBADF
    elif mode == O_WRONLY or (writable and mode == O_RDONLY):
        error = -EACCES
    handle_unpin(cython.address(share.handles), handle)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def removemapping(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_removemapping_in) = cython.cast(
        cython.pointer(fuse_removemapping_in), request.args
    )
    error: cython.int
    if share.window == cython.NULL:
        return -ENOSYS
    if args.count > MOST_REMOVED or request.tail_size != args.count * cython.sizeof(fuse_removemapping_one):
        return -EINVAL
    with cython.gil:
        error = window_remove(share, request)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def watched(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """An operation about a file that may be mapped."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    opcode: uint32_t = request.header.opcode
    inner: Handler = share.unwatched[opcode]
    nodeid: uint64_t = request.header.nodeid
    create: cython.pointer(fuse_create_in)
    cut: int64_t = -1
    error: cython.int
    if share.window == cython.NULL or not share.window_used:
        return inner(context, request)
    if opcode == FUSE_CREATE:
        create = cython.cast(cython.pointer(fuse_create_in), request.args)
        if create.flags & O_TRUNC and not create.flags & O_EXCL:
            # A file that is there after all, and may be mapped, is for the guest to look up and to OPEN.
            create.flags |= O_EXCL
            error = inner(context, request)
            return -ESTALE if error == -EEXIST else error
        return inner(context, request)
    if opcode in (FUSE_COPY_FILE_RANGE, FUSE_COPY_FILE_RANGE_64):
        # The source's last page is synced at every other request; the target is what changes.
        nodeid = cython.cast(cython.pointer(fuse_copy_file_range_in), request.args).nodeid_out
    if not is_mapped(share, nodeid):
        return inner(context, request)
    if opcode == FUSE_SETATTR:
        cut = size_after_setattr(cython.cast(cython.pointer(fuse_setattr_in), request.args))
    elif opcode == FUSE_OPEN and cython.cast(cython.pointer(fuse_open_in), request.args).flags & O_TRUNC:
        cut = 0
    with cython.gil:
        error = window_before(share, nodeid, cut)
    if error:
        return error
    error = inner(context, request)
    if opcode not in (FUSE_READ, FUSE_FSYNC, FUSE_FLUSH, FUSE_RELEASE):
        with cython.gil:
            window_after(share, nodeid)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def size_after_setattr(args: cython.pointer(fuse_setattr_in)) -> int64_t:
    if not args.valid & FATTR_SIZE or args.size >> 63:
        return -1
    return args.size


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_mapped(share: cython.pointer(Share), nodeid: uint64_t) -> cython.bint:
    mapped: cython.bint
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), nodeid)
    if inode == cython.NULL:
        return False
    mapped = inode.mapped
    inode_unpin(cython.address(share.inodes), inode)
    return mapped


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def tell_of_file(
    share: cython.pointer(Share),
    session_flags: uint64_t,
    nodeid: uint64_t,
    status: cython.pointer(statx_t),
    attr: cython.pointer(fuse_attr),
) -> cython.void:
    """A guest is about to be told of a file: `attr` gets FUSE_ATTR_DAX where it is to use DAX (NULL: has no room)."""
    if share.window == cython.NULL or status.stx_mode & S_IFMT != S_IFREG:
        return
    if share.window_used and is_mapped(share, nodeid):
        with cython.gil:
            window_refit(share, nodeid)
    if attr == cython.NULL or not session_flags & FUSE_HAS_INODE_DAX:
        return
    # What is too small for the mode is no refusal; what cannot be mapped soundly is.
    if share.dax_from == 0 or status.stx_size < share.dax_from:
        return
    if share.read_only and not share.window_exact:
        return
    if status.stx_size % PAGE:
        count_refusal(share, b"size")
    elif share.window_used and loses(share, status):
        count_refusal(share, b"thrashing")
    elif may_write(share, nodeid, status):
        attr.flags |= FUSE_ATTR_DAX
    else:
        count_refusal(share, b"open")


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def loses(share: cython.pointer(Share), status: cython.pointer(statx_t)) -> cython.bint:
    """Whether a file turned out to be better served without DAX."""
    answer: cython.bint
    with cython.gil:
        answer = window_loses(share, status)
    return answer


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def may_write(share: cython.pointer(Share), nodeid: uint64_t, status: cython.pointer(statx_t)) -> cython.bint:
    """Whether opening a file for a mapping will work."""
    name: cython.char[16]
    fd: cython.int
    allowed: cython.bint = False
    inode: cython.pointer(Inode) = inode_pin(cython.address(share.inodes), nodeid)
    if inode == cython.NULL:
        return False
    fd = inode_descriptor(cython.address(share.inodes), inode)
    if fd >= 0 and not status.stx_attributes & STATX_ATTR_APPEND:
        snprintf(name, 16, b"%d", fd)
        allowed = faccessat(share.proc, name, R_OK if share.read_only else R_OK | W_OK, AT_EACCESS) == 0
    inode_unpin(cython.address(share.inodes), inode)
    return allowed


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def forget_mappings(share: cython.pointer(Share)) -> cython.void:
    """The session ended."""
    if share.window != cython.NULL:
        share.window_used = False
        with cython.gil:
            window_clear(share)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def count_refusal(share: cython.pointer(Share), reason: cython.p_const_char) -> cython.void:
    with cython.gil:
        window_count(share, reason)


# --- with the interpreter: what the window's methods answer is passed on, what they raise is EIO ---


@cython.cfunc
@cython.exceptval(check=False)
def window_setup(
    share: cython.pointer(Share),
    nodeid: uint64_t,
    fd: cython.int,
    args: cython.pointer(fuse_setupmapping_in),
    writable: cython.bint,
) -> cython.int:
    try:
        return cython.cast(object, share.window).setup(
            nodeid, fd, args.foffset, args.len, args.moffset, bool(writable)
        )
    except Exception:
        return -EIO


@cython.cfunc
@cython.exceptval(check=False)
def window_remove(share: cython.pointer(Share), request: cython.pointer(Request)) -> cython.int:
    try:
        return cython.cast(object, share.window).remove(
            cython.cast(cython.p_char, request.tail)[: request.tail_size]
        )
    except Exception:
        return -EIO


@cython.cfunc
@cython.exceptval(check=False)
def window_before(share: cython.pointer(Share), nodeid: uint64_t, cut: int64_t) -> cython.int:
    try:
        return cython.cast(object, share.window).before(nodeid, cut)
    except Exception:
        return -EIO


@cython.cfunc
@cython.exceptval(check=False)
def window_after(share: cython.pointer(Share), nodeid: uint64_t) -> cython.int:
    try:
        cython.cast(object, share.window).after(nodeid)
    except Exception:
        return -EIO
    return 0


@cython.cfunc
@cython.exceptval(check=False)
def window_refit(share: cython.pointer(Share), nodeid: uint64_t) -> cython.int:
    try:
        cython.cast(object, share.window).refit(nodeid)
    except Exception:
        return -EIO
    return 0


@cython.cfunc
@cython.exceptval(check=False)
def window_clear(share: cython.pointer(Share)) -> cython.int:
    try:
        cython.cast(object, share.window).clear()
    except Exception:
        return -EIO
    return 0


@cython.cfunc
@cython.exceptval(check=False)
def window_loses(share: cython.pointer(Share), status: cython.pointer(statx_t)) -> cython.bint:
    try:
        dev: object = os.makedev(status.stx_dev_major, status.stx_dev_minor)
        return cython.cast(object, share.window).loses(dev, status.stx_ino)
    except Exception:
        return False


@cython.cfunc
@cython.exceptval(check=False)
def window_count(share: cython.pointer(Share), reason: cython.p_const_char) -> cython.int:
    try:
        cython.cast(object, share.window).count_refusal(cython.cast(bytes, reason).decode())
    except Exception:
        return -EIO
    return 0

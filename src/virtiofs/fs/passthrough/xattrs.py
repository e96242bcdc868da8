# SPDX-License-Identifier: Apache-2.0
"""Extended attributes, by the names that the share's map gives them (xattrmap.py).

By default these are the names that begin with "user.": security.*, system.* and trusted.* attributes act on the
host as well (a label, a capability), so a guest may neither set nor see them.  The two attributes that are access
lists are no matter of the map: they go to the host as they are where the guest leaves access lists to the host
(FUSE_POSIX_ACL), and do not exist otherwise, as nobody would heed them.

A file is named "N" from the working directory of the thread, which is /proc/self/fd: the one way to an O_PATH
descriptor's attributes that needs no open.
"""

import cython
from cython.cimports.libc.errno import E2BIG, EINVAL, EPERM, ERANGE, errno
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.string import memcpy, memmove, strcmp, strlen
from cython.cimports.virtiofs.fs.passthrough.context import NAME_ROOM, OWNERS_STORED, Share
from cython.cimports.virtiofs.fs.passthrough.credentials import keep_set_ids
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.host import (
    ENODATA,
    EOPNOTSUPP,
    ESTALE,
    S_ISGID,
    STATX_BASIC_STATS,
    fchmodat,
    getxattr,
    listxattr,
    removexattr,
    setxattr,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    Inode,
    inode_pin,
    inode_unpin,
)
from cython.cimports.virtiofs.fs.passthrough.owners import is_owner_name
from cython.cimports.virtiofs.fs.passthrough.xattrmap import to_guest_name, to_host_name
from cython.cimports.virtiofs.fuse.layout import (
    FUSE_POSIX_ACL,
    FUSE_SETXATTR_ACL_KILL_SGID,
    fuse_getxattr_in,
    fuse_getxattr_out,
    fuse_setxattr_in,
)
from cython.cimports.virtiofs.fuse.request import Request

XATTR_SIZE_MAX = cython.declare(uint32_t, 65536)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_name(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    inode: cython.pointer(cython.pointer(Inode)),
    name: cython.p_char,
) -> cython.int:
    """Pin the request's inode and write its name in /proc/self/fd (16 bytes): 0 or a negative errno, nothing pinned."""
    fd: cython.int
    inode[0] = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode[0] == cython.NULL:
        return -ESTALE
    fd = inode_descriptor(cython.address(share.inodes), inode[0])
    if fd < 0:
        inode_unpin(cython.address(share.inodes), inode[0])
        return fd
    snprintf(name, 16, b"%d", fd)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_access_list(name: cython.pointer(cython.const[cython.char])) -> cython.bint:
    return strcmp(name, b"system.posix_acl_access") == 0 or strcmp(name, b"system.posix_acl_default") == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def host_name(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    host: cython.p_char,
) -> cython.int:
    """Write the host's name of the guest's attribute to `host` (NAME_ROOM bytes).  0 or a negative errno.

    -EPERM: there is no such attribute for the guest, and it can not make one.
    """
    error: cython.int
    if is_access_list(name):
        if not request.session_flags & FUSE_POSIX_ACL:
            return -EOPNOTSUPP
        memcpy(host, name, size + 1)
        return 0
    error = to_host_name(cython.address(share.xattrs), name, size, host)
    if error < 0:
        return error
    if share.ownership == OWNERS_STORED and is_owner_name(host):
        return -EPERM
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reply_value(request: cython.pointer(Request), size: cython.Py_ssize_t, asked: uint32_t) -> cython.int:
    """Answer with the value in `request.reply`, or only with its size if nothing was asked for."""
    out: cython.pointer(fuse_getxattr_out)
    if asked == 0:
        if request.out_size < cython.sizeof(fuse_getxattr_out):
            return -EINVAL
        out = cython.cast(cython.pointer(fuse_getxattr_out), request.reply)
        out.size = size
        out.padding = 0
        request.reply_size = cython.sizeof(fuse_getxattr_out)
        return 0
    if cython.cast(uint32_t, size) > asked or cython.cast(uint32_t, size) > request.out_size:
        return -ERANGE
    request.reply_size = size
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def getxattr_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_getxattr_in) = cython.cast(cython.pointer(fuse_getxattr_in), request.args)
    inode: cython.pointer(Inode) = cython.NULL
    name: cython.char[16]
    host: cython.char[NAME_ROOM]
    size: cython.Py_ssize_t
    error: cython.int = host_name(share, request, request.names[0], request.name_sizes[0], host)
    if error:
        return -ENODATA if error == -EPERM else error
    error = open_name(share, request, cython.address(inode), name)
    if error:
        return error
    size = getxattr(name, host, request.reply, XATTR_SIZE_MAX)
    if size < 0:
        error = -errno
    inode_unpin(cython.address(share.inodes), inode)
    return error if error else reply_value(request, size, args.size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def listxattr_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_getxattr_in) = cython.cast(cython.pointer(fuse_getxattr_in), request.args)
    inode: cython.pointer(Inode) = cython.NULL
    name: cython.char[16]
    names: cython.p_char = cython.cast(cython.p_char, request.reply)
    size: cython.Py_ssize_t
    at: cython.Py_ssize_t = 0
    kept: cython.Py_ssize_t = 0
    length: cython.Py_ssize_t
    start: cython.Py_ssize_t
    error: cython.int = open_name(share, request, cython.address(inode), name)
    if error:
        return error
    size = listxattr(name, names, XATTR_SIZE_MAX)
    if size < 0:
        # With room for as much as Linux lets a guest ask for, more room would not help.
        error = -E2BIG if errno == ERANGE else -errno
    inode_unpin(cython.address(share.inodes), inode)
    if error:
        return error
    while at < size:
        length = strlen(names + at) + 1
        start = shown_from(share, request, names + at, length - 1)
        if start >= 0:
            memmove(names + kept, names + at + start, length - start)
            kept += length - start
        at += length
    return reply_value(request, kept, args.size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def shown_from(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    name: cython.p_char,
    size: uint32_t,
) -> cython.int:
    """Where the guest's name begins in the host's name of an attribute; -1 if the guest must not see it."""
    if is_access_list(name):
        return 0 if request.session_flags & FUSE_POSIX_ACL else -1
    if share.ownership == OWNERS_STORED and is_owner_name(name):
        return -1
    return to_guest_name(cython.address(share.xattrs), name, size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_context(share: cython.pointer(Share), request: cython.pointer(Request), fd: cython.int) -> cython.int:
    """Give the new file `fd` the security context that came with the request.  0 or a negative errno."""
    name: cython.char[16]
    host: cython.char[NAME_ROOM]
    error: cython.int = host_name(share, request, request.context_name, strlen(request.context_name), host)
    if error:
        return error
    if request.context_size > XATTR_SIZE_MAX:
        return -E2BIG
    snprintf(name, 16, b"%d", fd)
    return 0 if setxattr(name, host, request.context, request.context_size, 0) == 0 else -errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def setxattr_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_setxattr_in) = cython.cast(cython.pointer(fuse_setxattr_in), request.args)
    inode: cython.pointer(Inode) = cython.NULL
    name: cython.char[16]
    host: cython.char[NAME_ROOM]
    kill: cython.bint
    error: cython.int = host_name(share, request, request.names[0], request.name_sizes[0], host)
    if error:
        return error
    if args.size > XATTR_SIZE_MAX:
        return -E2BIG
    if args.size != request.tail_size:
        return -EINVAL
    error = open_name(share, request, cython.address(inode), name)
    if error:
        return error
    # Setting an access list may take the set-group-id bit away, and must if the guest says so.
    kill = is_access_list(host) and args.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID != 0
    if is_access_list(host):
        keep_set_ids(share, not kill)
    if setxattr(name, host, request.tail, args.size, args.flags) != 0:
        error = -errno
    elif kill:
        error = kill_set_group_id(share, name)
    inode_unpin(cython.address(share.inodes), inode)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def kill_set_group_id(share: cython.pointer(Share), name: cython.p_char) -> cython.int:
    """Take the bit that the host left where the file's group happens to be ours.  0 or a negative errno."""
    status: statx_t
    if statx(share.proc, name, 0, STATX_BASIC_STATS, cython.address(status)) != 0:
        return -errno
    if not status.stx_mode & S_ISGID:
        return 0
    return 0 if fchmodat(share.proc, name, status.stx_mode & 0o5777, 0) == 0 else -errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def removexattr_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    inode: cython.pointer(Inode) = cython.NULL
    name: cython.char[16]
    host: cython.char[NAME_ROOM]
    error: cython.int = host_name(share, request, request.names[0], request.name_sizes[0], host)
    if error:
        return error
    error = open_name(share, request, cython.address(inode), name)
    if error:
        return error
    if removexattr(name, host) != 0:
        error = -errno
    inode_unpin(cython.address(share.inodes), inode)
    return error

# SPDX-License-Identifier: Apache-2.0
"""Extended attributes: those whose names begin with "user.".

security.*, system.* and trusted.* attributes act on the host as well (a label, a capability, an access list),
so a guest may neither set nor see them: they are not supported, and not listed.

A file is named "N" from the working directory of the thread, which is /proc/self/fd: the one way to an O_PATH
descriptor's attributes that needs no open.
"""

import cython
from cython.cimports.libc.errno import E2BIG, EINVAL, ERANGE, errno
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.string import memmove, strlen, strncmp
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.host import (
    EOPNOTSUPP,
    ESTALE,
    getxattr,
    listxattr,
    removexattr,
    setxattr,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    Inode,
    inode_pin,
    inode_unpin,
)
from cython.cimports.virtiofs.fuse.layout import fuse_getxattr_in, fuse_getxattr_out, fuse_setxattr_in
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
def allowed(name: cython.pointer(cython.const[cython.char])) -> cython.bint:
    return strncmp(name, b"user.", 5) == 0


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
    size: cython.Py_ssize_t
    error: cython.int
    if not allowed(request.names[0]):
        return -EOPNOTSUPP
    error = open_name(share, request, cython.address(inode), name)
    if error:
        return error
    size = getxattr(name, request.names[0], request.reply, XATTR_SIZE_MAX)
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
    error: cython.int = open_name(share, request, cython.address(inode), name)
    if error:
        return error
    size = listxattr(name, names, XATTR_SIZE_MAX)
    if size < 0:
        error = -errno
    inode_unpin(cython.address(share.inodes), inode)
    if error:
        return error
    while at < size:
        length = strlen(names + at) + 1
        if allowed(names + at):
            memmove(names + kept, names + at, length)
            kept += length
        at += length
    return reply_value(request, kept, args.size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def setxattr_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_setxattr_in) = cython.cast(cython.pointer(fuse_setxattr_in), request.args)
    inode: cython.pointer(Inode) = cython.NULL
    name: cython.char[16]
    error: cython.int
    if not allowed(request.names[0]):
        return -EOPNOTSUPP
    if args.size > XATTR_SIZE_MAX:
        return -E2BIG
    if args.size != request.tail_size:
        return -EINVAL
    error = open_name(share, request, cython.address(inode), name)
    if error:
        return error
    if setxattr(name, request.names[0], request.tail, args.size, args.flags) != 0:
        error = -errno
    inode_unpin(cython.address(share.inodes), inode)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def removexattr_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    inode: cython.pointer(Inode) = cython.NULL
    name: cython.char[16]
    error: cython.int
    if not allowed(request.names[0]):
        return -EOPNOTSUPP
    error = open_name(share, request, cython.address(inode), name)
    if error:
        return error
    if removexattr(name, request.names[0]) != 0:
        error = -errno
    inode_unpin(cython.address(share.inodes), inode)
    return error

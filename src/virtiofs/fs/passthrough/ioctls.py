# SPDX-License-Identifier: Apache-2.0
"""IOCTL: the file flags that lsattr and chattr show, and nothing that acts on more than the file.

A guest may change flags that any owner may change.  What needs CAP_LINUX_IMMUTABLE (immutable, append only) would keep
the host from cleaning up, and project ids decide about the host's quotas: both are refused with EPERM.  Any other
command is ENOTTY, as for a file system that has none.
"""

import cython
from cython.cimports.libc.errno import EINVAL, EPERM, EROFS, errno
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.host import ENOTTY
from cython.cimports.virtiofs.fs.passthrough.unopened import File, file_pin, file_unpin
from cython.cimports.virtiofs.fuse.layout import FUSE_IOCTL_DIR, fuse_ioctl_in, fuse_ioctl_out
from cython.cimports.virtiofs.fuse.request import Request

OWN_FLAGS = cython.declare(
    uint32_t,
    FS_COMPR_FL | FS_SYNC_FL | FS_NODUMP_FL | FS_NOATIME_FL | FS_NOCOMP_FL | FS_DIRSYNC_FL | FS_NOCOW_FL,
)
OWN_XFLAGS = cython.declare(uint32_t, FS_XFLAG_SYNC | FS_XFLAG_NOATIME | FS_XFLAG_NODUMP)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ioctl_(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_ioctl_in) = cython.cast(cython.pointer(fuse_ioctl_in), request.args)
    size: uint32_t = 4
    error: cython.int
    writes: cython.bint = args.cmd == FS_IOC_SETFLAGS or args.cmd == FS_IOC_FSSETXATTR
    file: File
    if args.cmd == FS_IOC_FSGETXATTR or args.cmd == FS_IOC_FSSETXATTR:
        size = cython.sizeof(fsxattr)
    elif args.cmd != FS_IOC_GETFLAGS and args.cmd != FS_IOC_SETFLAGS:
        return -ENOTTY
    if writes and share.read_only:
        return -EROFS
    if writes and (args.in_size < size or request.tail_size < size):
        return -EINVAL
    if not writes and (args.out_size < size or request.out_size < cython.sizeof(fuse_ioctl_out) + size):
        return -EINVAL
    error = file_pin(share, request, args.fh, args.flags & FUSE_IOCTL_DIR != 0, cython.address(file))
    if error:
        return error
    if writes:
        error = change(file.fd, args.cmd, request)
    else:
        error = show(file.fd, args.cmd, request, size)
    file_unpin(share, cython.address(file))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def show(fd: cython.int, command: uint32_t, request: cython.pointer(Request), size: uint32_t) -> cython.int:
    """Answer with what the host says.

    The flags are an int in spite of the command's number, which says long (ioctl_iflags(2)).
    """
    value: fsxattr
    memset(cython.address(value), 0, cython.sizeof(fsxattr))
    if ioctl(fd, command, cython.address(value)) != 0:
        return -errno
    memset(request.reply, 0, cython.sizeof(fuse_ioctl_out))
    memcpy(request.reply + cython.sizeof(fuse_ioctl_out), cython.address(value), size)
    request.reply_size = cython.sizeof(fuse_ioctl_out) + size
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def change(fd: cython.int, command: uint32_t, request: cython.pointer(Request)) -> cython.int:
    """Set flags, if only those differ that a guest may change."""
    flags: uint32_t = 0
    old_flags: uint32_t = 0
    wanted: fsxattr
    old: fsxattr
    result: cython.int
    if command == FS_IOC_SETFLAGS:
        memcpy(cython.address(flags), request.tail, 4)
        if ioctl(fd, FS_IOC_GETFLAGS, cython.address(old_flags)) != 0:
            return -errno
        if (flags ^ old_flags) & ~OWN_FLAGS:
            return -EPERM
        result = ioctl(fd, FS_IOC_SETFLAGS, cython.address(flags))
    else:
        memcpy(cython.address(wanted), request.tail, cython.sizeof(fsxattr))
        memset(cython.address(old), 0, cython.sizeof(fsxattr))
        if ioctl(fd, FS_IOC_FSGETXATTR, cython.address(old)) != 0:
            return -errno
        if (
            (wanted.fsx_xflags ^ old.fsx_xflags) & ~OWN_XFLAGS
            or wanted.fsx_projid != old.fsx_projid
            or wanted.fsx_extsize != old.fsx_extsize
            or wanted.fsx_cowextsize != old.fsx_cowextsize
        ):
            return -EPERM
        result = ioctl(fd, FS_IOC_FSSETXATTR, cython.address(wanted))
    if result != 0:
        return -errno
    memset(request.reply, 0, cython.sizeof(fuse_ioctl_out))
    request.reply_size = cython.sizeof(fuse_ioctl_out)
    return 0

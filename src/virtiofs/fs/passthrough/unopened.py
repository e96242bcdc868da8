# SPDX-License-Identifier: Apache-2.0
"""Files that a guest uses without having opened them (FUSE_NO_OPEN_SUPPORT, FUSE_NO_OPENDIR_SUPPORT).

A guest that is answered ENOSYS to OPEN or OPENDIR never sends it again, nor RELEASE.  What it does with such a file
comes with handle 0, which is never that of an open one, and means the node that the request names.

A regular file is read through the inode's own descriptor, which is opened for reading at the first such request, lies
in the pool with the others and is taken from there as they are (descriptors.py).  A directory is opened for each
request: cookies are the host's own, and hold for any descriptor of it, which the host's NFS server relies on as well.
"""

import cython
from cython.cimports.libc.errno import EBADF
from cython.cimports.libc.stdint import int32_t, uint64_t
from cython.cimports.virtiofs.fs.passthrough.context import Share
from cython.cimports.virtiofs.fs.passthrough.descriptors import take_descriptor
from cython.cimports.virtiofs.fs.passthrough.handles import handle_pin, handle_unpin
from cython.cimports.virtiofs.fs.passthrough.host import ESTALE, O_RDONLY, close
from cython.cimports.virtiofs.fs.passthrough.inodes import Inode, inode_pin, inode_unpin
from cython.cimports.virtiofs.fs.passthrough.opening import open_directory, open_inode
from cython.cimports.virtiofs.fuse.layout import FUSE_NO_OPEN_SUPPORT, FUSE_NO_OPENDIR_SUPPORT
from cython.cimports.virtiofs.fuse.request import Request
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u8, load_acquire_u32


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def unopened(request: cython.pointer(Request), fh: uint64_t, directory: cython.bint) -> cython.bint:
    """Whether a handle stands for the node that the request names."""
    agreed: uint64_t = FUSE_NO_OPENDIR_SUPPORT if directory else FUSE_NO_OPEN_SUPPORT
    return fh == 0 and request.session_flags & agreed != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def file_pin(
    share: cython.pointer(Share),
    request: cython.pointer(Request),
    fh: uint64_t,
    directory: cython.bint,
    file: cython.pointer(File),
) -> cython.int:
    """What handle `fh` of a request means, opened and kept so until `file_unpin`: 0 or a negative errno."""
    inode: cython.pointer(Inode)
    file.ours = False
    file.inode = cython.NULL
    file.handle = handle_pin(cython.address(share.handles), fh, directory)
    if file.handle != cython.NULL:
        file.fd = file.handle.fd
        file.flags = file.handle.flags
        file.silent = cython.address(file.handle.silent)
        return 0
    if not unopened(request, fh, directory):
        return -EBADF
    inode = inode_pin(cython.address(share.inodes), request.header.nodeid)
    if inode == cython.NULL:
        return -ESTALE
    if directory:
        file.ours = True
        file.fd = open_directory(share, inode)
    else:
        file.fd = readable_descriptor(share, request, inode)
    if file.fd < 0:
        inode_unpin(cython.address(share.inodes), inode)
        return file.fd
    file.inode = inode
    file.flags = O_RDONLY
    file.silent = cython.address(inode.silent)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def file_unpin(share: cython.pointer(Share), file: cython.pointer(File)) -> cython.void:
    if file.handle != cython.NULL:
        handle_unpin(cython.address(share.handles), file.handle)
        return
    if file.ours:
        close(file.fd)
    inode_unpin(cython.address(share.inodes), file.inode)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def readable_descriptor(
    share: cython.pointer(Share), request: cython.pointer(Request), inode: cython.pointer(Inode)
) -> cython.int:
    """A descriptor to read a pinned regular file by, good until it is unpinned; or a negative errno, as from OPEN."""
    fd: cython.int = cython.cast(int32_t, load_acquire_u32(cython.address(inode.fd)))
    if fd >= 0 and load_acquire_u8(cython.address(inode.readable)):
        inode.recent = 1
        return fd
    fd = open_inode(share, request, inode, O_RDONLY, 0)
    if fd >= 0:
        inode.recent = 1
        fd = take_descriptor(cython.address(share.inodes), inode, fd, 1)
    return fd

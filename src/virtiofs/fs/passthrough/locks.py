# SPDX-License-Identifier: Apache-2.0
"""Locks that all see: other guests on the same directory, and programs of the host.

flock(2) belongs to an open file, and each handle is an open file of the host: its lock is the handle's.

A POSIX lock belongs to a process and a file: two descriptors of one process never conflict, and closing any of them
drops all its locks on the file (fcntl(2)).  The host knows no guest processes, so each pair of node and lock owner gets
an open file of its own here, and takes open-file-description locks on it; FLUSH, which the guest sends at each close,
names the owner whose locks are to go.

An open-file-description lock of the guest (F_OFD_SETLK) comes as a POSIX lock whose owner is the open file.  No FLUSH
names that one, and Linux says nothing of the lock when the file is closed for the last time (locks_remove_posix() finds
none of its own): it goes with the handle that it was taken through.  A process that took locks through a handle has
closed it before, and lost them with that.

Nothing here waits: SETLKW that finds a conflict returns WAIT and is called again (fuse/waiting.py).
"""

import cython
from cython.cimports.libc.errno import EACCES, EAGAIN, EBADF, EINVAL, ENOLCK, ENOMEM, errno
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.virtiofs.fs.passthrough.context import LockOwner, Share
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.handles import Handle, handle_pin, handle_unpin
from cython.cimports.virtiofs.fs.passthrough.host import (
    ESTALE,
    O_CLOEXEC,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    S_IFREG,
    SEEK_SET,
    close,
    openat,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import Inode, inode_pin, inode_unpin
from cython.cimports.virtiofs.fuse.layout import FUSE_LK_FLOCK, fuse_lk_in, fuse_lk_out
from cython.cimports.virtiofs.fuse.request import WAIT, Request

# Each owner costs a descriptor; a guest's lock table has an end as every host's has.
MOST_OWNERS = cython.declare(uint32_t, 4096)
LAST_BYTE = cython.declare(uint64_t, 0x7FFFFFFFFFFFFFFF)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def owners_init(share: cython.pointer(Share)) -> cython.void:
    pthread_mutex_init(cython.address(share.owners_lock), cython.NULL)
    share.owners = cython.NULL
    share.owner_count = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def find_owner(share: cython.pointer(Share), nodeid: uint64_t, owner: uint64_t) -> cython.pointer(LockOwner):
    """The entry of an owner, or NULL.  Under the lock."""
    entry: cython.pointer(LockOwner) = share.owners
    while entry != cython.NULL and (entry.owner != owner or entry.nodeid != nodeid):
        entry = entry.next
    return entry


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def owner_file(share: cython.pointer(Share), nodeid: uint64_t, owner: uint64_t, fh: uint64_t) -> cython.int:
    """The open file that holds an owner's locks, made if need be; or a negative errno.  Under the lock."""
    name: cython.char[16]
    fd: cython.int
    path: cython.int
    inode: cython.pointer(Inode)
    entry: cython.pointer(LockOwner) = find_owner(share, nodeid, owner)
    if entry != cython.NULL:
        entry.fh = fh
        return entry.fd
    if share.owner_count == MOST_OWNERS:
        return -ENOLCK
    inode = inode_pin(cython.address(share.inodes), nodeid)
    if inode == cython.NULL:
        return -ESTALE
    path = inode_descriptor(cython.address(share.inodes), inode)
    fd = path if path < 0 else -EINVAL
    if path >= 0 and inode.type == S_IFREG:
        snprintf(name, 16, b"%d", path)
        # Write locks need a writable file; a read-only one can still be locked for reading.
        fd = -1
        if not share.read_only:
            fd = openat(share.proc, name, O_RDWR | O_NONBLOCK | O_CLOEXEC)
        if fd < 0:
            fd = openat(share.proc, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        if fd < 0:
            fd = -errno
    inode_unpin(cython.address(share.inodes), inode)
    if fd < 0:
        return fd
    entry = cython.cast(cython.pointer(LockOwner), malloc(cython.sizeof(LockOwner)))
    if entry == cython.NULL:
        close(fd)
        return -ENOMEM
    entry.nodeid = nodeid
    entry.owner = owner
    entry.fh = fh
    entry.fd = fd
    entry.next = share.owners
    share.owners = entry
    share.owner_count += 1
    return fd


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def owner_gone(share: cython.pointer(Share), nodeid: uint64_t, owner: uint64_t) -> cython.void:
    """Drop an owner's locks on a file: its process closed a descriptor of it."""
    link: cython.pointer(cython.pointer(LockOwner))
    entry: cython.pointer(LockOwner) = cython.NULL
    if share.owner_count == 0:
        return
    pthread_mutex_lock(cython.address(share.owners_lock))
    link = cython.address(share.owners)
    while link[0] != cython.NULL and (link[0].owner != owner or link[0].nodeid != nodeid):
        link = cython.address(link[0].next)
    if link[0] != cython.NULL:
        entry = link[0]
        link[0] = entry.next
        share.owner_count -= 1
        close(entry.fd)
        free(entry)
    pthread_mutex_unlock(cython.address(share.owners_lock))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def owners_by_handle_gone(share: cython.pointer(Share), fh: uint64_t) -> cython.void:
    """Drop the locks that were taken through a handle: nobody has that file open any more."""
    link: cython.pointer(cython.pointer(LockOwner))
    entry: cython.pointer(LockOwner)
    if share.owner_count == 0:
        return
    pthread_mutex_lock(cython.address(share.owners_lock))
    link = cython.address(share.owners)
    while link[0] != cython.NULL:
        entry = link[0]
        if entry.fh != fh:
            link = cython.address(entry.next)
            continue
        link[0] = entry.next
        share.owner_count -= 1
        close(entry.fd)
        free(entry)
    pthread_mutex_unlock(cython.address(share.owners_lock))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def all_owners_gone(share: cython.pointer(Share)) -> cython.void:
    """Drop every POSIX lock of the guest."""
    entry: cython.pointer(LockOwner)
    pthread_mutex_lock(cython.address(share.owners_lock))
    while share.owners != cython.NULL:
        entry = share.owners
        share.owners = entry.next
        close(entry.fd)
        free(entry)
    share.owner_count = 0
    pthread_mutex_unlock(cython.address(share.owners_lock))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def describe(args: cython.pointer(fuse_lk_in), lock: cython.pointer(flock_t)) -> cython.int:
    """The host's form of a lock: 0, or -EINVAL."""
    if args.lk.type != F_RDLCK and args.lk.type != F_WRLCK and args.lk.type != F_UNLCK:
        return -EINVAL
    if args.lk.start > LAST_BYTE or args.lk.end < args.lk.start:
        return -EINVAL
    lock.l_type = args.lk.type
    lock.l_whence = SEEK_SET
    lock.l_start = args.lk.start
    # Length 0 means "to the end of the file, wherever that will be".
    lock.l_len = 0 if args.lk.end >= LAST_BYTE else args.lk.end - args.lk.start + 1
    lock.l_pid = 0
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def getlk(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    """GETLK: the first lock that would be in the way, or F_UNLCK."""
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_lk_in) = cython.cast(cython.pointer(fuse_lk_in), request.args)
    out: cython.pointer(fuse_lk_out) = cython.cast(cython.pointer(fuse_lk_out), request.reply)
    lock: flock_t
    fd: cython.int
    error: cython.int = describe(args, cython.address(lock))
    if error:
        return error
    pthread_mutex_lock(cython.address(share.owners_lock))
    fd = owner_file(share, request.header.nodeid, args.owner, args.fh)
    error = fd if fd < 0 else fcntl(fd, F_OFD_GETLK, cython.address(lock))
    if fd >= 0 and error:
        error = -errno
    pthread_mutex_unlock(cython.address(share.owners_lock))
    if error:
        return error
    out.lk.type = lock.l_type
    out.lk.start = lock.l_start
    out.lk.end = LAST_BYTE if lock.l_len == 0 else lock.l_start + lock.l_len - 1
    # The holder is a process of another guest or of the host: no number of it means anything here.
    out.lk.pid = 0
    request.reply_size = cython.sizeof(fuse_lk_out)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def setlk(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    share: cython.pointer(Share) = cython.cast(cython.pointer(Share), context)
    args: cython.pointer(fuse_lk_in) = cython.cast(cython.pointer(fuse_lk_in), request.args)
    lock: flock_t
    fd: cython.int
    error: cython.int = describe(args, cython.address(lock))
    if error:
        return error
    if args.lk_flags & FUSE_LK_FLOCK:
        return set_flock(share, args)
    pthread_mutex_lock(cython.address(share.owners_lock))
    fd = owner_file(share, request.header.nodeid, args.owner, args.fh)
    error = fd if fd < 0 else 0
    if fd >= 0 and fcntl(fd, F_OFD_SETLK, cython.address(lock)) != 0:
        error = -EAGAIN if errno == EACCES else -errno
    pthread_mutex_unlock(cython.address(share.owners_lock))
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_flock(share: cython.pointer(Share), args: cython.pointer(fuse_lk_in)) -> cython.int:
    operation: cython.int = LOCK_UN
    error: cython.int = 0
    handle: cython.pointer(Handle) = handle_pin(cython.address(share.handles), args.fh, False)
    if handle == cython.NULL:
        return -EBADF
    if args.lk.type == F_RDLCK:
        operation = LOCK_SH
    elif args.lk.type == F_WRLCK:
        operation = LOCK_EX
    if flock(handle.fd, operation | LOCK_NB) != 0:
        error = -errno  # EWOULDBLOCK is EAGAIN on Linux
    handle_unpin(cython.address(share.handles), handle)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def setlkw(context: cython.p_void, request: cython.pointer(Request)) -> cython.int:
    error: cython.int = setlk(context, request)
    return WAIT if error == -EAGAIN else error

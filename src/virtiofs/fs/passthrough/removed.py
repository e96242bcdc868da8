# SPDX-License-Identifier: Apache-2.0
"""A file that loses its name is still the guest's: an inode that nothing else would lead back to keeps a descriptor.

Where there is a quota, its bytes come back when nothing of ours holds the file any more.  An inode then counts the
other descriptors there are of its file, handles and owners of locks, and stays until the last of them is closed, be
it forgotten; so what ends with it is the last that holds the file.
"""

import cython
from cython.cimports.libc.errno import ENOMEM
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc
from cython.cimports.virtiofs.fs.passthrough.account import Account
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor, known_mount
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    S_IFDIR,
    S_IFMT,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    IDENTITY_MASK,
    REMOVED,
    WAY_NAME,
    Inode,
    Store,
    bucket_of,
    end_unused,
    find,
    inode_pin,
    inode_unpin,
    node_id,
)
from cython.cimports.virtiofs.fs.passthrough.slots import SLOT_LIVE
from cython.cimports.virtiofs.virtqueue.atomics import load_u64


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_keep(
    store: cython.pointer(Store), fd: cython.int, name: cython.pointer(cython.const[cython.char])
) -> cython.pointer(Inode):
    """Before a name goes away: if it was the only way back to an inode, keep that inode's descriptor.

    A handle leads nowhere once the last name is gone and nobody has the file open: then an inode that has no
    descriptor yet gets one.
    Returns the inode, pinned, with `keep` set; NULL if there is nothing to keep.
    """
    status: statx_t
    inode: cython.pointer(Inode)
    nodeid: uint64_t = 0
    if store.named == 0 and store.pool_size == store.live:
        return cython.NULL
    if statx(fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, IDENTITY_MASK, cython.address(status)) != 0:
        return cython.NULL
    pthread_mutex_lock(cython.address(store.lock))
    inode = find(store, cython.address(status), known_mount(store, cython.address(status)))
    if inode != cython.NULL and (
        inode.way == WAY_NAME or status.stx_nlink == 1 or status.stx_mode & S_IFMT == S_IFDIR
    ):
        nodeid = node_id(store, inode)
    pthread_mutex_unlock(cython.address(store.lock))
    if nodeid == 0:
        return cython.NULL
    inode = inode_pin(store, nodeid)
    if inode == cython.NULL:
        return cython.NULL
    if inode_descriptor(store, inode) < 0:
        inode_unpin(store, inode)
        return cython.NULL
    inode.keep = 1
    return inode


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def store_count(store: cython.pointer(Store), account: cython.pointer(Account)) -> cython.int:
    """Keep an account of what is removed, from now on.  0, or -ENOMEM."""
    store.marks = cython.cast(cython.pointer(uint32_t), calloc(store.limit + 1, 4))
    store.account = account
    return 0 if store.marks != cython.NULL else -ENOMEM


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_opened(store: cython.pointer(Store), nodeid: uint64_t) -> cython.bint:
    """Count a descriptor other than the inode's own.  False if the guest has forgotten the inode."""
    counted: cython.bint
    inode: cython.pointer(Inode)
    if store.marks == cython.NULL:
        return True
    inode = inode_pin(store, nodeid)
    if inode == cython.NULL:
        return False
    pthread_mutex_lock(cython.address(store.lock))
    counted = load_u64(cython.address(inode.word)) & SLOT_LIVE != 0
    if counted:
        store.marks[inode - store.inodes] += 1
    pthread_mutex_unlock(cython.address(store.lock))
    inode_unpin(store, inode)
    return counted


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_closed(store: cython.pointer(Store), nodeid: uint64_t) -> cython.void:
    """A descriptor that was counted has been closed."""
    ended: cython.bint = False
    inode: cython.pointer(Inode)
    if store.marks == cython.NULL:
        return
    inode = inode_pin(store, nodeid)
    if inode == cython.NULL:
        return
    pthread_mutex_lock(cython.address(store.lock))
    store.marks[inode - store.inodes] -= 1
    if inode.lookups == 0:
        ended = end_unused(store, inode)
    pthread_mutex_unlock(cython.address(store.lock))
    if ended:
        inode_unpin(store, inode)
    inode_unpin(store, inode)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_removed(store: cython.pointer(Store), inode: cython.pointer(Inode)) -> cython.void:
    """The last name of a pinned inode that has its descriptor is gone: the descriptor stays until the end."""
    pthread_mutex_lock(cython.address(store.lock))
    inode.keep = 1
    store.marks[inode - store.inodes] |= REMOVED
    pthread_mutex_unlock(cython.address(store.lock))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def pass_on(store: cython.pointer(Store), inode: cython.pointer(Inode)) -> cython.bint:
    """Whether an inode that ends was removed, and its file ends with it.  Under the lock.

    A file that is reached over two mounts has two inodes: then the other one takes over.
    """
    mark: cython.pointer(uint32_t) = cython.address(store.marks[inode - store.inodes])
    removed: cython.bint = mark[0] & REMOVED != 0
    index: uint32_t = bucket_of(store, inode.dev, inode.ino)[0]
    mark[0] = 0
    while removed and index:
        if store.inodes[index].ino == inode.ino and store.inodes[index].dev == inode.dev:
            store.inodes[index].keep = 1
            store.marks[index] |= REMOVED
            return False
        index = store.inodes[index].next
    return removed

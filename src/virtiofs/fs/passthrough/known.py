# SPDX-License-Identifier: Apache-2.0
"""Which node ids a guest holds: for whoever tells it that a file of the host changed."""

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.virtiofs.fs.passthrough.descriptors import inode_descriptor
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
    ESTALE,
    STATX_NLINK,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    ROOT_INDEX,
    Inode,
    bucket_of,
    inode_pin,
    inode_unpin,
    node_id,
)
from cython.cimports.virtiofs.fs.passthrough.slots import SLOT_LIVE
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, load_u64

MOST_ALIKE = cython.declare(uint32_t, 16)  # inodes of one number: another birth or mount each


@cython.cfunc
def nodes_of(store: cython.pointer(Store), dev: uint64_t, ino: uint64_t) -> list:
    """The node ids that the guest holds of the file with this device and inode number; usually one or none."""
    found: uint64_t[16]
    count: uint32_t = 0
    index: uint32_t
    inode: cython.pointer(Inode)
    with cython.nogil:
        pthread_mutex_lock(cython.address(store.lock))
        index = bucket_of(store, dev, ino)[0]
        while index and count < MOST_ALIKE:
            inode = cython.address(store.inodes[index])
            if inode.ino == ino and inode.dev == dev:
                found[count] = node_id(store, inode)
                # The root is what the guest calls 1, whatever its generation.
                if index == ROOT_INDEX:
                    found[count] = ROOT_INDEX
                count += 1
            index = inode.next
        pthread_mutex_unlock(cython.address(store.lock))
    nodes: list = []
    while count:
        count -= 1
        nodes.append(found[count])
    return nodes


@cython.cfunc
def every_node(store: cython.pointer(Store)) -> list:
    """All node ids that the guest holds, the root's first.  Those that come meanwhile may be missing."""
    index: uint32_t
    word: uint64_t
    nodes: list = [ROOT_INDEX]
    for index in range(ROOT_INDEX + 1, load_acquire_u32(store.high) + 1):
        word = load_u64(cython.address(store.inodes[index].word))
        if word & SLOT_LIVE:
            nodes.append(word >> 32 << 32 | index)
    return nodes


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_removed(store: cython.pointer(Store), nodeid: uint64_t) -> cython.bint:
    """Whether nothing on the host leads to the file any more; False for one that the guest does not hold."""
    status: statx_t
    fd: cython.int
    removed: cython.bint
    inode: cython.pointer(Inode) = inode_pin(store, nodeid)
    if inode == cython.NULL:
        return False
    fd = inode_descriptor(store, inode)
    if fd < 0:
        removed = fd == -ESTALE
    elif statx(fd, b"", AT_EMPTY_PATH, STATX_NLINK, cython.address(status)) != 0:
        removed = errno == ESTALE
    else:
        removed = status.stx_nlink == 0
    inode_unpin(store, inode)
    return removed

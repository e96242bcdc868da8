# SPDX-License-Identifier: Apache-2.0
"""Handles: the files a guest has open, by number (generation << 32 | index).

A handle outlives RELEASE until the last request that uses it has ended, so a descriptor is never closed, or
its number given to another file, under a read that is still running.
"""

import cython
from cython.cimports.libc.errno import EBADF, ENFILE
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.virtiofs.fs.passthrough.host import (
    ESTALE,
    close,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import Store
from cython.cimports.virtiofs.fs.passthrough.removed import inode_closed, inode_opened
from cython.cimports.virtiofs.fs.passthrough.slots import (
    SLOT_LIVE,
    slot_close,
    slot_open,
    slot_pin,
    slot_renew,
    slot_unpin,
)
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, load_u64, store_release_u32


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def handles_init(
    store: cython.pointer(Handles),
    handles: cython.pointer(Handle),
    high: cython.pointer(uint32_t),
    limit: uint32_t,
    inodes: cython.pointer(Store),
) -> cython.void:
    """Begin with no handle.  `handles` has room for `limit` + 1 records, zero-filled."""
    pthread_mutex_init(cython.address(store.lock), cython.NULL)
    store.handles = handles
    store.high = high
    store.limit = limit
    store.inodes = inodes
    store.free = store.live = 0
    high[0] = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def handle_open(
    store: cython.pointer(Handles),
    fd: cython.int,
    nodeid: uint64_t,
    flags: uint32_t,
    directory: cython.bint,
    fh: cython.pointer(uint64_t),
) -> cython.int:
    """Give an open descriptor of an inode a number.

    0: the descriptor is the store's; a negative errno: it is closed.
    """
    index: uint32_t = 0
    handle: cython.pointer(Handle)
    if not inode_opened(store.inodes, nodeid):
        close(fd)
        return -ESTALE
    pthread_mutex_lock(cython.address(store.lock))
    if store.free:
        index = store.free
        store.free = store.handles[index].next
    elif store.high[0] < store.limit:
        index = store.high[0] + 1
        store_release_u32(store.high, index)
    if index:
        store.live += 1
    pthread_mutex_unlock(cython.address(store.lock))
    if not index:
        close(fd)
        inode_closed(store.inodes, nodeid)
        return -ENFILE
    handle = cython.address(store.handles[index])
    handle.fd = fd
    handle.nodeid = nodeid
    handle.flags = flags
    handle.directory = directory
    handle.silent = False
    handle.position = 0
    handle.lock = 0
    slot_open(cython.address(handle.word))
    fh[0] = load_u64(cython.address(handle.word)) >> 32 << 32 | index
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def handle_pin(store: cython.pointer(Handles), fh: uint64_t, directory: cython.bint) -> cython.pointer(
    Handle
):
    """The open handle of this number and kind, kept open until `handle_unpin`; else NULL."""
    index: uint32_t = cython.cast(uint32_t, fh)
    handle: cython.pointer(Handle)
    if index == 0 or index > load_acquire_u32(store.high):
        return cython.NULL
    handle = cython.address(store.handles[index])
    if not slot_pin(cython.address(handle.word), fh >> 32):
        return cython.NULL
    if cython.cast(cython.bint, handle.directory) != directory:
        handle_unpin(store, handle)
        return cython.NULL
    return handle


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def handle_unpin(store: cython.pointer(Handles), handle: cython.pointer(Handle)) -> cython.void:
    fd: cython.int = handle.fd
    nodeid: uint64_t = handle.nodeid
    if not slot_unpin(cython.address(handle.word)):
        return
    pthread_mutex_lock(cython.address(store.lock))
    slot_renew(cython.address(handle.word))
    handle.next = store.free
    store.free = handle - store.handles
    store.live -= 1
    pthread_mutex_unlock(cython.address(store.lock))
    close(fd)
    inode_closed(store.inodes, nodeid)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def handle_release(store: cython.pointer(Handles), fh: uint64_t, directory: cython.bint) -> cython.int:
    """End a handle; its descriptor is closed when the last request lets go.  0, or -EBADF for an unknown number."""
    handle: cython.pointer(Handle) = handle_pin(store, fh, directory)
    ended: cython.bint = False
    if handle == cython.NULL:
        return -EBADF
    pthread_mutex_lock(cython.address(store.lock))
    if load_u64(cython.address(handle.word)) & SLOT_LIVE:  # two RELEASEs at once: the first one wins
        slot_close(cython.address(handle.word))
        ended = True
    pthread_mutex_unlock(cython.address(store.lock))
    if ended:
        handle_unpin(store, handle)
    handle_unpin(store, handle)
    return 0 if ended else -EBADF


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def handle_release_all(store: cython.pointer(Handles)) -> cython.void:
    """End every handle."""
    index: uint32_t
    word: uint64_t
    for index in range(1, load_acquire_u32(store.high) + 1):
        word = load_u64(cython.address(store.handles[index].word))
        if word & SLOT_LIVE:
            handle_release(store, word >> 32 << 32 | index, store.handles[index].directory)

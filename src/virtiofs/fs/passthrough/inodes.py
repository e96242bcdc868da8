# SPDX-License-Identifier: Apache-2.0
"""The inode store: from node ids, which the guest holds, back to files of the host.

An inode is found by node id (generation << 32 | index) without a lock, and by identity (device, inode number,
mount, birth time) through a hash under the store's lock.  How it becomes a descriptor again is the business of
`descriptors.py`.

Records are flat and lie in memory that the creator provides.  A vanished file is ESTALE, never ENOENT: Linux
repeats the path walk only for ESTALE (fs/namei.c).
"""

import cython
from cython.cimports.libc.errno import ENFILE, ENOMEM, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.virtiofs.fs.passthrough.account import close_removed, lock_lanes, unlock_lanes
from cython.cimports.virtiofs.fs.passthrough.descriptors import (
    birth_of,
    device_of,
    evict,
    handle_at,
    inode_descriptor,
    join_pool,
    keep_handle,
    known_mount,
    leave_pool,
    mount_of,
    reopen,
    take_handle,
)
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    O_CLOEXEC,
    O_NOFOLLOW,
    O_PATH,
    S_IFMT,
    close,
    openat,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.removed import pass_on
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
def store_init(
    store: cython.pointer(Store),
    inodes: cython.pointer(Inode),
    high: cython.pointer(uint32_t),
    limit: uint32_t,
    pool_limit: uint32_t,
    root: cython.int,
    proc: cython.int,
    use_handles: cython.bint,
) -> cython.int:
    """Begin with the root directory `root` (O_PATH; the store's from now on).  0 or a negative errno.

    `inodes` has room for `limit` records, zero-filled; `high` counts those that were ever used.
    """
    status: statx_t
    nodeid: uint64_t = 0
    error: cython.int
    pthread_mutex_init(cython.address(store.lock), cython.NULL)
    store.inodes = inodes
    store.high = high
    store.limit = limit
    store.free = 0
    store.live = 0
    store.pool_size = store.hand = store.named = 0
    store.pool_limit = pool_limit
    store.evictions = 0
    store.mount_count = 0
    store.proc = proc
    store.use_handles = use_handles
    store.account = cython.NULL
    store.marks = cython.NULL
    store.bucket_mask = 1023
    store.buckets = cython.cast(cython.pointer(uint32_t), calloc(store.bucket_mask + 1, 4))
    store.pool = cython.cast(cython.pointer(uint32_t), calloc(pool_limit, 4))
    if store.buckets == cython.NULL or store.pool == cython.NULL:
        return -ENOMEM
    high[0] = ROOT_INDEX  # record 0 stays unused: 0 is "none" in every link
    if statx(root, b"", AT_EMPTY_PATH, IDENTITY_MASK, cython.address(status)) != 0:
        return -errno
    error = enroll(
        store,
        root,
        cython.NULL,
        cython.NULL,
        0,
        cython.address(status),
        cython.address(nodeid),
        cython.NULL,
        HANDLE_SURE,
    )
    if error < 0:
        return error
    store.inodes[ROOT_INDEX].way = WAY_DESCRIPTOR
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def store_free(store: cython.pointer(Store)) -> cython.void:
    """Close every descriptor.  Nothing may use the store any more."""
    i: uint32_t
    for i in range(store.pool_size):
        close(store.inodes[store.pool[i]].fd)
    for i in range(store.mount_count):
        if store.mounts[i].fd >= 0:
            close(store.mounts[i].fd)
    free(store.buckets)
    free(store.pool)
    free(store.marks)
    store.marks = cython.NULL
    store.buckets = cython.NULL
    store.pool = cython.NULL
    store.pool_size = store.mount_count = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def node_id(store: cython.pointer(Store), inode: cython.pointer(Inode)) -> uint64_t:
    index: uint64_t = inode - store.inodes
    return load_u64(cython.address(inode.word)) >> 32 << 32 | index


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_pin(store: cython.pointer(Store), nodeid: uint64_t) -> cython.pointer(Inode):
    """The inode of a node id, kept alive until `inode_unpin`; NULL if the guest does not hold such an id."""
    index: uint32_t = cython.cast(uint32_t, nodeid)
    if index == 0 or index > load_acquire_u32(store.high):
        return cython.NULL
    if not slot_pin(cython.address(store.inodes[index].word), nodeid >> 32):
        return cython.NULL
    return cython.address(store.inodes[index])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_unpin(store: cython.pointer(Store), inode: cython.pointer(Inode)) -> cython.void:
    fd: cython.int
    removed: cython.bint = False
    if not slot_unpin(cython.address(inode.word)):
        return
    pthread_mutex_lock(cython.address(store.lock))
    fd = leave_pool(store, inode)
    if store.marks != cython.NULL:
        removed = pass_on(store, inode)
    if inode.way == WAY_NAME:
        store.named -= 1
    slot_renew(cython.address(inode.word))
    inode.next = store.free
    store.free = inode - store.inodes
    pthread_mutex_unlock(cython.address(store.lock))
    if fd >= 0 and removed:
        close_removed(store.account, fd)
    elif fd >= 0:
        close(fd)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def bucket_of(store: cython.pointer(Store), dev: uint64_t, ino: uint64_t) -> cython.pointer(uint32_t):
    mixed: uint64_t = (ino ^ (dev << 40)) * cython.cast(uint64_t, 0x9E3779B97F4A7C15)
    return cython.address(store.buckets[(mixed >> 32) & store.bucket_mask])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def find(store: cython.pointer(Store), status: cython.pointer(statx_t), mount: uint32_t) -> cython.pointer(
    Inode
):
    """The live inode with this identity, or NULL.  Under the lock."""
    dev: uint64_t = device_of(status)
    born: int64_t = birth_of(store, mount, status)
    index: uint32_t = bucket_of(store, dev, status.stx_ino)[0]
    inode: cython.pointer(Inode)
    while index:
        inode = cython.address(store.inodes[index])
        if inode.ino == status.stx_ino and inode.dev == dev and inode.mount == mount and inode.born == born:
            return inode
        index = inode.next
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_lookup(
    store: cython.pointer(Store),
    parent: cython.pointer(Inode),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    status: cython.pointer(statx_t),
    nodeid: cython.pointer(uint64_t),
) -> cython.int:
    """Find `name` in a pinned directory, count one look-up, give its node id and status.  0 or a negative
    errno.

    A file that is known already costs one statx; a new one, where handles work, only its handle besides.
    """
    directory: cython.int = inode_descriptor(store, parent)
    handle: HandleBuffer
    wrong: cython.bint = False
    inode: cython.pointer(Inode)
    mount: uint32_t
    error: cython.int
    if directory < 0:
        return directory
    if statx(directory, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, IDENTITY_MASK, status) != 0:
        return -errno
    mount = known_mount(store, status)
    if mount < MAX_MOUNTS:
        pthread_mutex_lock(cython.address(store.lock))
        inode = find(store, status, mount)
        if inode != cython.NULL:
            wrong = inode.trust == HANDLE_WRONG
            if not wrong:
                inode.lookups += 1
                nodeid[0] = node_id(store, inode)
            if inode.way == WAY_NAME:
                set_name(store, inode, parent, name, size)
        pthread_mutex_unlock(cython.address(store.lock))
        if inode != cython.NULL and not wrong:
            return 0
        if (
            not wrong
            and store.account == cython.NULL
            and store.mounts[mount].way == WAY_HANDLE
            and handle_at(directory, name, 0, cython.address(handle)) == status.stx_mnt_id
        ):
            return enroll(
                store, -1, parent, name, size, status, nodeid, cython.address(handle), HANDLE_BY_NAME
            )
    # With a quota no name goes from the directory before its file has an inode: else its bytes would be given back
    # while we hold it.
    if store.account != cython.NULL:
        lock_lanes(store.account, parent.ino, parent.ino)
    error = open_and_enroll(store, directory, parent, name, size, status, nodeid)
    if store.account != cython.NULL:
        unlock_lanes(store.account, parent.ino, parent.ino)
    return error


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_and_enroll(
    store: cython.pointer(Store),
    directory: cython.int,
    parent: cython.pointer(Inode),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    status: cython.pointer(statx_t),
    nodeid: cython.pointer(uint64_t),
) -> cython.int:
    """The part of `inode_lookup` for a file that seems to be new."""
    # The name may mean another file by now: from here on the descriptor decides.
    error: cython.int
    fd: cython.int = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if fd < 0:
        return -errno
    if statx(fd, b"", AT_EMPTY_PATH, IDENTITY_MASK, status) != 0:
        error = -errno
        close(fd)
        return error
    error = enroll(store, fd, parent, name, size, status, nodeid, cython.NULL, HANDLE_SURE)
    if error != 1:
        close(fd)
    return error if error < 0 else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_adopt(
    store: cython.pointer(Store),
    fd: cython.int,
    parent: cython.pointer(Inode),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    status: cython.pointer(statx_t),
    nodeid: cython.pointer(uint64_t),
) -> cython.int:
    """As `inode_lookup`, for a file that was just opened or created as `fd`, which stays the caller's.

    `name` may be NULL (O_TMPFILE).
    """
    path: cython.int
    error: cython.int
    handle: HandleBuffer
    mount: uint32_t
    if statx(fd, b"", AT_EMPTY_PATH, IDENTITY_MASK, status) != 0:
        return -errno
    mount = known_mount(store, status)
    # A handle leads back to what has a name.  With a quota what is removed is counted by its descriptor.
    if (
        name != cython.NULL
        and store.account == cython.NULL
        and mount < MAX_MOUNTS
        and store.mounts[mount].way == WAY_HANDLE
        and take_handle(fd, cython.address(handle))
    ):
        return enroll(store, -1, parent, name, size, status, nodeid, cython.address(handle), HANDLE_SURE)
    path = reopen(store, fd, O_PATH | O_CLOEXEC)
    if path < 0:
        return -errno
    error = enroll(store, path, parent, name, size, status, nodeid, cython.NULL, HANDLE_SURE)
    if error != 1:
        close(path)
    return error if error < 0 else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def enroll(
    store: cython.pointer(Store),
    fd: cython.int,
    parent: cython.pointer(Inode),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
    status: cython.pointer(statx_t),
    nodeid: cython.pointer(uint64_t),
    taken: cython.pointer(HandleBuffer),
    trust: uint8_t,
) -> cython.int:
    """Count a look-up of the file behind O_PATH descriptor `fd`, making its inode if it is new.

    With `taken`, the file's handle, on a known mount, there is no descriptor (-1) yet.
    Returns 1 if the store kept the descriptor, 0 if the inode was known, or a negative errno.
    """
    handle: HandleBuffer
    inode: cython.pointer(Inode)
    mount: uint32_t
    index: uint32_t
    bucket: cython.pointer(uint32_t)
    victim: cython.int = -1
    have_handle: cython.bint = False
    pthread_mutex_lock(cython.address(store.lock))
    mount = mount_of(store, status, fd)
    inode = find(store, status, mount)
    if (
        (inode == cython.NULL or inode.trust == HANDLE_WRONG)
        and taken == cython.NULL
        and mount < MAX_MOUNTS
        and store.mounts[mount].way == WAY_HANDLE
    ):
        # Not under the lock: the handle may come from a slow file system.
        pthread_mutex_unlock(cython.address(store.lock))
        have_handle = take_handle(fd, cython.address(handle))
        pthread_mutex_lock(cython.address(store.lock))
        inode = find(store, status, mount)
    if inode != cython.NULL:
        if inode.trust == HANDLE_WRONG and have_handle:
            # Whoever reads it meanwhile compares what it finds.
            keep_handle(inode, cython.address(handle), HANDLE_BY_NAME)
        inode.lookups += 1
        nodeid[0] = node_id(store, inode)
        pthread_mutex_unlock(cython.address(store.lock))
        return 0
    if store.free == 0 and store.high[0] >= store.limit:
        pthread_mutex_unlock(cython.address(store.lock))
        return -ENFILE
    if fd >= 0 and store.pool_size >= store.pool_limit:
        victim = evict(store)
        if victim < 0:
            pthread_mutex_unlock(cython.address(store.lock))
            return -ENFILE
    if store.free:
        index = store.free
        store.free = store.inodes[index].next
    else:
        # Until `high` is raised and the record is live nobody can pin it.
        index = store.high[0] + 1 if store.live else ROOT_INDEX
        store_release_u32(store.high, index)
    inode = cython.address(store.inodes[index])
    inode.lookups = 1
    inode.dev = device_of(status)
    inode.ino = status.stx_ino
    inode.born = birth_of(store, mount, status)
    inode.mount = mount
    inode.type = status.stx_mode & S_IFMT
    inode.keep = inode.mapped = 0
    inode.recent = 1
    inode.parent = 0
    inode.trust = HANDLE_SURE
    inode.silent = 0
    if taken != cython.NULL:
        keep_handle(inode, taken, trust)
    elif have_handle:
        keep_handle(inode, cython.address(handle), HANDLE_SURE)
    elif parent != cython.NULL and name != cython.NULL and size <= INODE_BYTES:
        inode.way = WAY_NAME
        store.named += 1
        set_name(store, inode, parent, name, size)
    else:
        inode.way = WAY_DESCRIPTOR
    if fd >= 0:
        join_pool(store, inode, fd, 0)
    else:
        inode.fd = -1
    bucket = bucket_of(store, inode.dev, inode.ino)
    inode.next = bucket[0]
    bucket[0] = index
    store.live += 1
    slot_open(cython.address(inode.word))
    nodeid[0] = node_id(store, inode)
    if store.live > store.bucket_mask:
        grow(store)
    pthread_mutex_unlock(cython.address(store.lock))
    if victim >= 0:
        close(victim)
    return 1 if fd >= 0 else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_name(
    store: cython.pointer(Store),
    inode: cython.pointer(Inode),
    parent: cython.pointer(Inode),
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
) -> cython.void:
    """Remember the last name an inode was seen under.  Under the lock; a name that has no room leaves the old one."""
    if size > INODE_BYTES:
        return
    inode.parent = parent - store.inodes
    inode.parent_generation = load_u64(cython.address(parent.word)) >> 32
    inode.size = size
    memcpy(inode.bytes, name, size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def grow(store: cython.pointer(Store)) -> cython.void:
    """Double the hash.  Under the lock.  Without memory it stays as it is, only slower."""
    old: cython.pointer(uint32_t) = store.buckets
    size: uint32_t = store.bucket_mask + 1
    new: cython.pointer(uint32_t) = cython.cast(cython.pointer(uint32_t), calloc(2 * size, 4))
    i: uint32_t
    index: uint32_t
    following: uint32_t
    bucket: cython.pointer(uint32_t)
    if new == cython.NULL:
        return
    store.buckets = new
    store.bucket_mask = 2 * size - 1
    for i in range(size):
        index = old[i]
        while index:
            following = store.inodes[index].next
            bucket = bucket_of(store, store.inodes[index].dev, store.inodes[index].ino)
            store.inodes[index].next = bucket[0]
            bucket[0] = index
            index = following
    free(old)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_forget(store: cython.pointer(Store), nodeid: uint64_t, count: uint64_t) -> cython.void:
    """Take back `count` look-ups; what nobody looked up any more is freed.  A hostile count can not go below zero."""
    inode: cython.pointer(Inode)
    ended: cython.bint = False
    if cython.cast(uint32_t, nodeid) == ROOT_INDEX:
        return
    inode = inode_pin(store, nodeid)
    if inode == cython.NULL:
        return
    pthread_mutex_lock(cython.address(store.lock))
    if inode.lookups > count:
        inode.lookups -= count
    else:
        inode.lookups = 0
        ended = end_unused(store, inode)
    pthread_mutex_unlock(cython.address(store.lock))
    if ended:
        inode_unpin(store, inode)
    inode_unpin(store, inode)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def end_unused(store: cython.pointer(Store), inode: cython.pointer(Inode)) -> cython.bint:
    """End a pinned inode that nobody looks up any more.  Under the lock; if True, the caller drops the reference
    that being live was worth.
    """
    index: cython.pointer(uint32_t)
    if not load_u64(cython.address(inode.word)) & SLOT_LIVE:
        return False
    if store.marks != cython.NULL and store.marks[inode - store.inodes] & OPENS:
        return False
    index = bucket_of(store, inode.dev, inode.ino)
    while store.inodes + index[0] != inode:
        index = cython.address(store.inodes[index[0]].next)
    index[0] = inode.next
    store.live -= 1
    slot_close(cython.address(inode.word))
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_forget_all(store: cython.pointer(Store)) -> cython.void:
    """Forget every inode but the root.  Requests that use one finish first."""
    index: uint32_t
    word: uint64_t
    for index in range(ROOT_INDEX + 1, load_acquire_u32(store.high) + 1):
        word = load_u64(cython.address(store.inodes[index].word))
        if word & SLOT_LIVE:
            inode_forget(store, word >> 32 << 32 | index, ~cython.cast(uint64_t, 0))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_renamed(
    store: cython.pointer(Store),
    parent: cython.pointer(Inode),
    fd: cython.int,
    name: cython.pointer(cython.const[cython.char]),
    size: uint32_t,
) -> cython.void:
    """The file now called `name` in directory `parent` (descriptor `fd`) was moved there: remember its new name."""
    status: statx_t
    inode: cython.pointer(Inode)
    if store.named == 0:
        return
    if statx(fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, IDENTITY_MASK, cython.address(status)) != 0:
        return
    pthread_mutex_lock(cython.address(store.lock))
    inode = find(store, cython.address(status), known_mount(store, cython.address(status)))
    if inode != cython.NULL and inode.way == WAY_NAME:
        set_name(store, inode, parent, name, size)
    pthread_mutex_unlock(cython.address(store.lock))

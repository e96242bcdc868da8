# SPDX-License-Identifier: Apache-2.0
"""The inode store: from node ids, which the guest holds, back to files of the host.

An inode is found by node id (generation << 32 | index) without a lock, and by identity (device, inode number,
mount, birth time) through a hash under the store's lock.  Its O_PATH descriptor is one of a bounded pool: a
clock hand takes descriptors from inodes that nobody used lately, and the next use comes back to the file
through its file handle, or through its parent and name with the identity checked again.  So the guest's cache
costs records, not descriptors.

Records are flat and lie in memory that the creator provides.  A vanished file is ESTALE, never ENOENT: Linux
repeats the path walk only for ESTALE (fs/namei.c).
"""

import cython
from cython.cimports.libc.errno import ENFILE, ENOENT, ENOMEM, errno
from cython.cimports.libc.stdint import int32_t, int64_t, uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    ESTALE,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    S_IFDIR,
    S_IFMT,
    S_IFREG,
    close,
    file_handle,
    name_to_handle_at,
    open_by_handle_at,
    openat,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.slots import (
    SLOT_LIVE,
    slot_begin_evict,
    slot_close,
    slot_end_evict,
    slot_open,
    slot_pin,
    slot_renew,
    slot_unpin,
)
from cython.cimports.virtiofs.virtqueue.atomics import load_acquire_u32, load_u64, store_release_u32

# How deep a file may lie below the last directory that still has a descriptor, when names are the only way back.
MAX_DEPTH = cython.declare(cython.int, 256)


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
    nodeid: uint64_t
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
    store.bucket_mask = 1023
    store.buckets = cython.cast(cython.pointer(uint32_t), calloc(store.bucket_mask + 1, 4))
    store.pool = cython.cast(cython.pointer(uint32_t), calloc(pool_limit, 4))
    if store.buckets == cython.NULL or store.pool == cython.NULL:
        return -ENOMEM
    high[0] = ROOT_INDEX  # record 0 stays unused: 0 is "none" in every link
    if statx(root, b"", AT_EMPTY_PATH, IDENTITY_MASK, cython.address(status)) != 0:
        return -errno
    error = enroll(store, root, cython.NULL, cython.NULL, 0, cython.address(status), cython.address(nodeid))
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
    if not slot_unpin(cython.address(inode.word)):
        return
    pthread_mutex_lock(cython.address(store.lock))
    fd = leave_pool(store, inode)
    if inode.way == WAY_NAME:
        store.named -= 1
    slot_renew(cython.address(inode.word))
    inode.next = store.free
    store.free = inode - store.inodes
    pthread_mutex_unlock(cython.address(store.lock))
    if fd >= 0:
        close(fd)


# Identity -------------------------------------------------------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def device_of(status: cython.pointer(statx_t)) -> uint64_t:
    return cython.cast(uint64_t, status.stx_dev_major) << 32 | status.stx_dev_minor


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def birth_of(status: cython.pointer(statx_t)) -> int64_t:
    if not status.stx_mask & 0x800:  # STATX_BTIME
        return 0
    return status.stx_btime.tv_sec * 1000000000 + status.stx_btime.tv_nsec


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
    born: int64_t = birth_of(status)
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
def known_mount(store: cython.pointer(Store), status: cython.pointer(statx_t)) -> uint32_t:
    """Index of the mount a file is on, or MAX_MOUNTS if it was not seen before."""
    i: uint32_t
    dev: uint64_t = device_of(status)
    for i in range(store.mount_count):
        if store.mounts[i].id == status.stx_mnt_id and store.mounts[i].dev == dev:
            return i
    return MAX_MOUNTS


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def mount_of(store: cython.pointer(Store), status: cython.pointer(statx_t), fd: cython.int) -> uint32_t:
    """As `known_mount`, but enters a new mount into the table: `fd` is a file on it.  Under the lock.

    Whether file handles work is found by using one.  When the table is full, MAX_MOUNTS: its files go by
    name.
    """
    index: uint32_t = known_mount(store, status)
    handle: HandleBuffer
    mount: cython.pointer(Mount)
    found: cython.int
    if index < MAX_MOUNTS or store.mount_count == MAX_MOUNTS:
        return index
    mount = cython.address(store.mounts[store.mount_count])
    mount.id = status.stx_mnt_id
    mount.dev = device_of(status)
    mount.way = WAY_NAME
    mount.fd = -1
    if store.use_handles and status.stx_mode & S_IFMT == S_IFDIR:
        mount.fd = openat(fd, b".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    elif store.use_handles and status.stx_mode & S_IFMT == S_IFREG:
        mount.fd = reopen(store, fd, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
    if mount.fd >= 0 and take_handle(fd, cython.address(handle)):
        found = open_by_handle_at(
            mount.fd, cython.cast(cython.pointer(file_handle), cython.address(handle)), O_PATH | O_CLOEXEC
        )
        if found >= 0:
            close(found)
            mount.way = WAY_HANDLE
    store.mount_count += 1
    return store.mount_count - 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def take_handle(fd: cython.int, handle: cython.pointer(HandleBuffer)) -> cython.bint:
    """Ask the host for the file handle of `fd`."""
    mount_id: cython.int = 0
    handle.handle_bytes = MAX_HANDLE_SZ
    return (
        name_to_handle_at(
            fd,
            b"",
            cython.cast(cython.pointer(file_handle), handle),
            cython.address(mount_id),
            AT_EMPTY_PATH,
        )
        == 0
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reopen(store: cython.pointer(Store), fd: cython.int, flags: cython.int) -> cython.int:
    """Open the file of a descriptor again, with other flags.  The caller has checked its type."""
    name: cython.char[16]
    snprintf(name, 16, b"%d", fd)
    return openat(store.proc, name, flags)


# Looking up -----------------------------------------------------------------------------------------------------


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

    A file that is known already costs one statx.
    """
    directory: cython.int = inode_descriptor(store, parent)
    inode: cython.pointer(Inode)
    mount: uint32_t
    fd: cython.int
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
            inode.lookups += 1
            nodeid[0] = node_id(store, inode)
            if inode.way == WAY_NAME:
                set_name(store, inode, parent, name, size)
        pthread_mutex_unlock(cython.address(store.lock))
        if inode != cython.NULL:
            return 0
    # The name may mean another file by now: from here on the descriptor decides.
    fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if fd < 0:
        return -errno
    if statx(fd, b"", AT_EMPTY_PATH, IDENTITY_MASK, status) != 0:
        error = -errno
        close(fd)
        return error
    error = enroll(store, fd, parent, name, size, status, nodeid)
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
    if statx(fd, b"", AT_EMPTY_PATH, IDENTITY_MASK, status) != 0:
        return -errno
    path = reopen(store, fd, O_PATH | O_CLOEXEC)
    if path < 0:
        return -errno
    error = enroll(store, path, parent, name, size, status, nodeid)
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
) -> cython.int:
    """Count a look-up of the file behind O_PATH descriptor `fd`, making its inode if it is new.

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
    if inode == cython.NULL and mount < MAX_MOUNTS and store.mounts[mount].way == WAY_HANDLE:
        # Not under the lock: the handle may come from a slow file system.
        pthread_mutex_unlock(cython.address(store.lock))
        have_handle = take_handle(fd, cython.address(handle))
        pthread_mutex_lock(cython.address(store.lock))
        inode = find(store, status, mount)
    if inode != cython.NULL:
        inode.lookups += 1
        nodeid[0] = node_id(store, inode)
        pthread_mutex_unlock(cython.address(store.lock))
        return 0
    if store.free == 0 and store.high[0] >= store.limit:
        pthread_mutex_unlock(cython.address(store.lock))
        return -ENFILE
    if store.pool_size >= store.pool_limit:
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
    inode.born = birth_of(status)
    inode.mount = mount
    inode.type = status.stx_mode & S_IFMT
    inode.keep = 0
    inode.recent = 1
    inode.parent = 0
    if have_handle:
        inode.way = WAY_HANDLE
        inode.handle_type = handle.handle_type
        inode.size = handle.handle_bytes
        memcpy(inode.bytes, handle.bytes, handle.handle_bytes)
    elif parent != cython.NULL and name != cython.NULL and size <= INODE_BYTES:
        inode.way = WAY_NAME
        store.named += 1
        set_name(store, inode, parent, name, size)
    else:
        inode.way = WAY_DESCRIPTOR
    join_pool(store, inode, fd)
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
    return 1


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


# Descriptors ----------------------------------------------------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def join_pool(store: cython.pointer(Store), inode: cython.pointer(Inode), fd: cython.int) -> cython.void:
    inode.place = store.pool_size
    store.pool[store.pool_size] = inode - store.inodes
    store.pool_size += 1
    store_release_u32(cython.address(inode.fd), fd)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def leave_pool(store: cython.pointer(Store), inode: cython.pointer(Inode)) -> cython.int:
    """Take the inode's descriptor out of the pool and return it, or -1 if it has none.  Under the lock."""
    fd: cython.int = inode.fd
    last: uint32_t
    if fd < 0:
        return -1
    store.pool_size -= 1
    last = store.pool[store.pool_size]
    store.pool[inode.place] = last
    store.inodes[last].place = inode.place
    inode.fd = -1
    return fd


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def evict(store: cython.pointer(Store)) -> cython.int:
    """Take the descriptor of an inode that was not used lately: it, or -1 if all are in use.  Under the lock."""
    inode: cython.pointer(Inode)
    tries: uint32_t = 2 * store.pool_size
    fd: cython.int
    while tries:
        tries -= 1
        if store.hand >= store.pool_size:
            store.hand = 0
        inode = cython.address(store.inodes[store.pool[store.hand]])
        store.hand += 1
        if inode.way == WAY_DESCRIPTOR or inode.keep:
            continue
        if inode.recent:
            inode.recent = 0
        elif slot_begin_evict(cython.address(inode.word)):
            fd = leave_pool(store, inode)
            slot_end_evict(cython.address(inode.word))
            store.evictions += 1
            return fd
    return -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_descriptor(store: cython.pointer(Store), inode: cython.pointer(Inode)) -> cython.int:
    """An O_PATH descriptor of a pinned inode, good until it is unpinned; or a negative errno."""
    return descriptor_at(store, inode, MAX_DEPTH)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def descriptor_at(
    store: cython.pointer(Store), inode: cython.pointer(Inode), depth: cython.int
) -> cython.int:
    fd: cython.int = cython.cast(int32_t, load_acquire_u32(cython.address(inode.fd)))
    victim: cython.int = -1
    inode.recent = 1
    if fd >= 0:
        return fd
    if inode.way == WAY_HANDLE:
        fd = open_by_handle(store, inode)
    else:
        fd = open_by_name(store, inode, depth)
    if fd < 0:
        return fd
    pthread_mutex_lock(cython.address(store.lock))
    if inode.fd >= 0:  # another thread was faster
        victim = fd
        fd = inode.fd
    else:
        if store.pool_size >= store.pool_limit:
            victim = evict(store)
        if store.pool_size < store.pool_limit:
            join_pool(store, inode, fd)
        else:
            victim = fd
            fd = -ENFILE
    pthread_mutex_unlock(cython.address(store.lock))
    if victim >= 0:
        close(victim)
    return fd


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_by_handle(store: cython.pointer(Store), inode: cython.pointer(Inode)) -> cython.int:
    handle: HandleBuffer
    fd: cython.int
    handle.handle_bytes = inode.size
    handle.handle_type = inode.handle_type
    memcpy(handle.bytes, inode.bytes, inode.size)
    fd = open_by_handle_at(
        store.mounts[inode.mount].fd,
        cython.cast(cython.pointer(file_handle), cython.address(handle)),
        O_PATH | O_NOFOLLOW | O_CLOEXEC,
    )
    return fd if fd >= 0 else -errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_by_name(store: cython.pointer(Store), inode: cython.pointer(Inode), depth: cython.int) -> cython.int:
    """Walk to the inode from its parent, and make sure that it is the same file."""
    name: cython.char[256]
    status: statx_t
    parent: cython.pointer(Inode)
    directory: cython.int
    fd: cython.int
    nodeid: uint64_t
    if depth == 0:
        return -ESTALE
    pthread_mutex_lock(cython.address(store.lock))
    memcpy(name, inode.bytes, inode.size)
    name[inode.size] = 0
    nodeid = cython.cast(uint64_t, inode.parent_generation) << 32 | inode.parent
    pthread_mutex_unlock(cython.address(store.lock))
    parent = inode_pin(store, nodeid)
    if parent == cython.NULL:
        return -ESTALE
    directory = descriptor_at(store, parent, depth - 1)
    if directory >= 0:
        fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        if fd < 0:
            fd = -ESTALE if errno == ENOENT else -errno
    else:
        fd = directory
    inode_unpin(store, parent)
    if fd < 0:
        return fd
    if (
        statx(fd, b"", AT_EMPTY_PATH, IDENTITY_MASK, cython.address(status)) != 0
        or status.stx_ino != inode.ino
        or device_of(cython.address(status)) != inode.dev
        or birth_of(cython.address(status)) != inode.born
        or known_mount(store, cython.address(status)) != inode.mount
    ):
        close(fd)
        return -ESTALE
    return fd


# Forgetting, renaming, unlinking --------------------------------------------------------------------------------


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_forget(store: cython.pointer(Store), nodeid: uint64_t, count: uint64_t) -> cython.void:
    """Take back `count` look-ups; what nobody looked up any more is freed.  A hostile count can not go below zero."""
    inode: cython.pointer(Inode)
    index: cython.pointer(uint32_t)
    ended: cython.bint = False
    if cython.cast(uint32_t, nodeid) == ROOT_INDEX:
        return
    inode = inode_pin(store, nodeid)
    if inode == cython.NULL:
        return
    pthread_mutex_lock(cython.address(store.lock))
    if inode.lookups > count:
        inode.lookups -= count
    elif load_u64(cython.address(inode.word)) & SLOT_LIVE:
        inode.lookups = 0
        index = bucket_of(store, inode.dev, inode.ino)
        while store.inodes + index[0] != inode:
            index = cython.address(store.inodes[index[0]].next)
        index[0] = inode.next
        store.live -= 1
        slot_close(cython.address(inode.word))
        ended = True
    pthread_mutex_unlock(cython.address(store.lock))
    if ended:
        inode_unpin(store, inode)
    inode_unpin(store, inode)


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


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def inode_keep(
    store: cython.pointer(Store), fd: cython.int, name: cython.pointer(cython.const[cython.char])
) -> cython.pointer(Inode):
    """Before a name goes away: if it was the only way back to an inode, keep that inode's descriptor.

    Returns the inode, pinned, with `keep` set; NULL if there is nothing to keep.
    """
    status: statx_t
    inode: cython.pointer(Inode)
    nodeid: uint64_t = 0
    if store.named == 0:
        return cython.NULL
    if statx(fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, IDENTITY_MASK, cython.address(status)) != 0:
        return cython.NULL
    pthread_mutex_lock(cython.address(store.lock))
    inode = find(store, cython.address(status), known_mount(store, cython.address(status)))
    if inode != cython.NULL and inode.way == WAY_NAME:
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

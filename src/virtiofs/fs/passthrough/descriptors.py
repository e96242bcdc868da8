# SPDX-License-Identifier: Apache-2.0
"""Descriptors of inodes: a bounded pool, and the ways back to a file that lost its place in it.

A clock hand takes descriptors from inodes that nobody used lately; the next use comes back to the file through its
file handle, or through its parent and name with the identity checked again.  So the guest's cache costs records,
not descriptors.  A file with a handle gets a descriptor only when it is first used: a guest that only looks at
names costs none.
"""

import cython
from cython.cimports.libc.errno import ENFILE, ENOENT, errno
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.string import memcpy
from cython.cimports.virtiofs.fs.passthrough.host import (
    AT_EMPTY_PATH,
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
    dup3,
    file_handle,
    fstatfs,
    name_to_handle_at,
    open_by_handle_at,
    openat,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    statfs_t,
    statx,
    statx_t,
)
from cython.cimports.virtiofs.fs.passthrough.inodes import (
    HANDLE_BY_NAME,
    HANDLE_SURE,
    HANDLE_WRONG,
    IDENTITY_MASK,
    MAX_HANDLE_SZ,
    MAX_MOUNTS,
    WAY_DESCRIPTOR,
    WAY_HANDLE,
    WAY_NAME,
    HandleBuffer,
    Inode,
    Mount,
    Store,
    inode_pin,
    inode_unpin,
)
from cython.cimports.virtiofs.fs.passthrough.slots import (
    slot_begin_evict,
    slot_end_evict,
)
from cython.cimports.virtiofs.virtqueue.atomics import (
    load_acquire_u8,
    load_acquire_u32,
    store_release_u8,
    store_release_u32,
)

OVERLAYFS_SUPER_MAGIC = cython.declare(cython.long, 0x794C7630)  # include/uapi/linux/magic.h
# How deep a file may lie below the last directory that still has a descriptor, when names are the only way back.
MAX_DEPTH = cython.declare(cython.int, 256)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def device_of(status: cython.pointer(statx_t)) -> uint64_t:
    return cython.cast(uint64_t, status.stx_dev_major) << 32 | status.stx_dev_minor


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def birth_of(store: cython.pointer(Store), mount: uint32_t, status: cython.pointer(statx_t)) -> int64_t:
    """The birth time of a file as far as it is part of its identity, else 0."""
    if not status.stx_mask & 0x800 or (mount < MAX_MOUNTS and store.mounts[mount].unborn):  # STATX_BTIME
        return 0
    return status.stx_btime.tv_sec * 1000000000 + status.stx_btime.tv_nsec


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
def is_submount(
    store: cython.pointer(Store), parent: cython.pointer(Inode), status: cython.pointer(statx_t)
) -> cython.bint:
    """Whether a directory that was found in `parent` is the root of another mount.

    Its inode numbers may be those of other files of the share: the guest gives it a device number of its own.
    """
    return status.stx_mode & S_IFMT == S_IFDIR and known_mount(store, status) != parent.mount


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
    system: statfs_t
    found: cython.int
    if index < MAX_MOUNTS or store.mount_count == MAX_MOUNTS:
        return index
    mount = cython.address(store.mounts[store.mount_count])
    mount.id = status.stx_mnt_id
    mount.dev = device_of(status)
    mount.way = WAY_NAME
    mount.fd = -1
    # A file of overlayfs is copied when it is first written, and shows the copy's birth time then; its inode number
    # stays (Documentation/filesystems/overlayfs.rst).
    mount.unborn = fstatfs(fd, cython.address(system)) == 0 and system.f_type == OVERLAYFS_SUPER_MAGIC
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
    return handle_at(fd, b"", AT_EMPTY_PATH, handle) >= 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def handle_at(
    fd: cython.int,
    name: cython.pointer(cython.const[cython.char]),
    flags: cython.int,
    handle: cython.pointer(HandleBuffer),
) -> cython.int:
    """Ask the host for a file handle: the id of the mount that the file is on, or -1."""
    mount_id: cython.int = -1
    handle.handle_bytes = MAX_HANDLE_SZ
    if (
        name_to_handle_at(
            fd,
            name,
            cython.cast(cython.pointer(file_handle), handle),
            cython.address(mount_id),
            flags,
        )
        != 0
    ):
        return -1
    return mount_id


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def keep_handle(
    inode: cython.pointer(Inode), handle: cython.pointer(HandleBuffer), trust: uint8_t
) -> cython.void:
    """Make a file handle the way back to an inode."""
    inode.way = WAY_HANDLE
    inode.handle_type = handle.handle_type
    inode.size = handle.handle_bytes
    memcpy(inode.bytes, handle.bytes, handle.handle_bytes)
    inode.trust = trust


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def reopen(store: cython.pointer(Store), fd: cython.int, flags: cython.int) -> cython.int:
    """Open the file of a descriptor again, with other flags.  The caller has checked its type."""
    name: cython.char[16]
    snprintf(name, 16, b"%d", fd)
    return openat(store.proc, name, flags)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def join_pool(
    store: cython.pointer(Store), inode: cython.pointer(Inode), fd: cython.int, readable: uint8_t
) -> cython.void:
    inode.place = store.pool_size
    store.pool[store.pool_size] = inode - store.inodes
    store.pool_size += 1
    store_release_u8(cython.address(inode.readable), readable)
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
    tries: uint32_t = 3 * store.pool_size
    fd: cython.int
    while tries:
        tries -= 1
        if store.hand >= store.pool_size:
            store.hand = 0
        inode = cython.address(store.inodes[store.pool[store.hand]])
        store.hand += 1
        if inode.way == WAY_DESCRIPTOR or (inode.keep and inode.way == WAY_NAME):
            continue
        # Where it is that or refusing service, files that were removed are given up last.
        if inode.keep and tries >= store.pool_size:
            inode.recent = 0
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
    inode.recent = 1
    if fd >= 0:
        return fd
    if inode.way == WAY_HANDLE:
        fd = path_by_handle(store, inode)
    else:
        fd = open_by_name(store, inode, depth)
    return fd if fd < 0 else take_descriptor(store, inode, fd, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def take_descriptor(
    store: cython.pointer(Store), inode: cython.pointer(Inode), fd: cython.int, readable: uint8_t
) -> cython.int:
    """Give a pinned inode the descriptor `fd`, which is used up: the inode's descriptor now, or a negative errno.

    `readable`: it is open for reading, and takes the place of an O_PATH one, under the number that others may be using.
    """
    victim: cython.int = -1
    pthread_mutex_lock(cython.address(store.lock))
    if inode.fd >= 0:
        victim = fd
        fd = inode.fd
        if readable and not inode.readable:
            if dup3(victim, fd, O_CLOEXEC) < 0:
                fd = -errno
            else:
                store_release_u8(cython.address(inode.readable), 1)
    else:
        if store.pool_size >= store.pool_limit:
            victim = evict(store)
        if store.pool_size < store.pool_limit:
            join_pool(store, inode, fd, readable)
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
def path_by_handle(store: cython.pointer(Store), inode: cython.pointer(Inode)) -> cython.int:
    """An O_PATH descriptor of an inode that has a handle; one that was taken by name is compared first."""
    trust: uint32_t = load_acquire_u8(cython.address(inode.trust))
    fd: cython.int = open_by_handle(store, inode, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    same: cython.bint
    if fd < 0 or trust == HANDLE_SURE:
        return fd
    same = same_file(store, inode, fd)
    pthread_mutex_lock(cython.address(store.lock))
    if inode.trust == HANDLE_BY_NAME:
        store_release_u8(cython.address(inode.trust), HANDLE_SURE if same else HANDLE_WRONG)
    pthread_mutex_unlock(cython.address(store.lock))
    if same:
        return fd
    close(fd)
    return -ESTALE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_by_handle(
    store: cython.pointer(Store), inode: cython.pointer(Inode), flags: cython.int
) -> cython.int:
    handle: HandleBuffer
    fd: cython.int
    handle.handle_bytes = inode.size
    handle.handle_type = inode.handle_type
    memcpy(handle.bytes, inode.bytes, inode.size)
    fd = open_by_handle_at(
        store.mounts[inode.mount].fd,
        cython.cast(cython.pointer(file_handle), cython.address(handle)),
        flags,
    )
    return fd if fd >= 0 else -errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def same_file(store: cython.pointer(Store), inode: cython.pointer(Inode), fd: cython.int) -> cython.bint:
    """Whether `fd` is the file that the inode stands for."""
    status: statx_t
    return (
        statx(fd, b"", AT_EMPTY_PATH, IDENTITY_MASK, cython.address(status)) == 0
        and status.stx_ino == inode.ino
        and device_of(cython.address(status)) == inode.dev
        and known_mount(store, cython.address(status)) == inode.mount
        and birth_of(store, inode.mount, cython.address(status)) == inode.born
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def open_by_name(store: cython.pointer(Store), inode: cython.pointer(Inode), depth: cython.int) -> cython.int:
    """Walk to the inode from its parent, and make sure that it is the same file."""
    name: cython.char[256]
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
    if not same_file(store, inode, fd):
        close(fd)
        return -ESTALE
    return fd

# SPDX-License-Identifier: Apache-2.0
"""The system calls that Python has no names for: fanotify(7), inotify(7), open_by_handle_at(2)."""

import os

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.virtiofs.metadata.watch_calls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MAX_HANDLE_SZ,
    O_CLOEXEC,
    O_PATH,
    O_RDONLY,
    fanotify_init,
    fanotify_mark,
    file_handle,
    inotify_add_watch,
    inotify_init1,
    inotify_rm_watch,
    name_to_handle_at,
    open_by_handle_at,
)


def failure() -> OSError:
    number: cython.int = errno
    return OSError(number, os.strerror(number))


def new_fanotify(flags: uint32_t) -> int:
    """A new fanotify group: its descriptor.  Raises `OSError`: EPERM without CAP_SYS_ADMIN."""
    fd: cython.int = fanotify_init(flags, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        raise failure()
    return fd


def mark(group: cython.int, flags: uint32_t, mask: uint64_t, path: bytes) -> None:
    """Ask for events in `mask` about what `path` names.  Raises `OSError`."""
    name: cython.p_char = path
    if fanotify_mark(group, flags, mask, AT_FDCWD, name) != 0:
        raise failure()


def open_handle(mount: cython.int, handle: bytes) -> int:
    """An O_PATH descriptor of the file that `handle` (struct file_handle) names on the file system of `mount`.

    Raises `OSError`: ESTALE if it is gone, EPERM without CAP_DAC_READ_SEARCH.
    """
    if len(handle) < 8:
        raise ValueError("a file handle has 8 bytes or more")
    raw: cython.p_char = handle
    known: cython.pointer(file_handle) = cython.cast(cython.pointer(file_handle), raw)
    if known.handle_bytes > len(handle) - 8:
        raise ValueError("a file handle that is longer than it is")
    fd: cython.int = open_by_handle_at(mount, known, O_PATH | O_CLOEXEC)
    if fd < 0:
        raise failure()
    return fd


def handle_of(fd: cython.int) -> bytes:
    """The file handle (struct file_handle) of an open file.  Raises `OSError`: EOPNOTSUPP where there are none."""
    room: cython.char[256]
    mount: cython.int = 0
    handle: cython.pointer(file_handle) = cython.cast(cython.pointer(file_handle), room)
    handle.handle_bytes = MAX_HANDLE_SZ
    if name_to_handle_at(fd, b"", handle, cython.address(mount), AT_EMPTY_PATH) != 0:
        raise failure()
    raw: cython.p_char = room
    return raw[: 8 + handle.handle_bytes]


def new_inotify(flags: cython.int) -> int:
    """A new inotify instance: its descriptor.  Raises `OSError`: EMFILE at fs.inotify.max_user_instances."""
    fd: cython.int = inotify_init1(flags)
    if fd < 0:
        raise failure()
    return fd


def add_watch(fd: cython.int, path: bytes, mask: uint32_t) -> int:
    """Watch what `path` names: the watch's number.  Raises `OSError`: ENOSPC at fs.inotify.max_user_watches."""
    name: cython.p_char = path
    watch: cython.int = inotify_add_watch(fd, name, mask)
    if watch < 0:
        raise failure()
    return watch


def remove_watch(fd: cython.int, watch: cython.int) -> None:
    """Watch it no more; nothing if it is gone already."""
    inotify_rm_watch(fd, watch)

# SPDX-License-Identifier: Apache-2.0
"""Being told that somebody wrote to a file, or cut it (fanotify(7)), by a descriptor of it and without privilege.

Of the kernel's ways only this one takes a file by descriptor: inotify wants a name, which the worker has for none.
"""

import os

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.virtiofs.dax.fanotify import (
    FAN_CLASS_NOTIF,
    FAN_CLOEXEC,
    FAN_MARK_ADD,
    FAN_MARK_REMOVE,
    FAN_MODIFY,
    FAN_NONBLOCK,
    FAN_REPORT_FID,
    fanotify_init,
    fanotify_mark,
)


def new_group() -> int:
    """A descriptor to read events from, which does not block.  Raises `OSError`.

    Without privilege it takes Linux 5.13, and events that say which file it was by its handle.
    """
    fd: cython.int = fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_CLOEXEC | FAN_NONBLOCK, os.O_RDONLY)
    if fd < 0:
        raise OSError(errno, os.strerror(errno))
    return fd


def add(group: cython.int, fd: cython.int) -> None:
    """Be told when the file `fd` is written to or cut, not by stores through mmap.  Raises `OSError`."""
    if fanotify_mark(group, FAN_MARK_ADD, FAN_MODIFY, fd, cython.NULL) != 0:
        raise OSError(errno, os.strerror(errno))


def remove(group: cython.int, fd: cython.int) -> None:
    """Be told no longer.  Raises `OSError`."""
    if fanotify_mark(group, FAN_MARK_REMOVE, FAN_MODIFY, fd, cython.NULL) != 0:
        raise OSError(errno, os.strerror(errno))

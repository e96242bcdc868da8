# SPDX-License-Identifier: Apache-2.0
"""Whether anybody opened, read or changed certain files, as inotify tells; looking at their names does not count."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

# linux/inotify.h
ACCESS, MODIFY, ATTRIB, OPEN, MOVED, CREATE, DELETE = 0x1, 0x2, 0x4, 0x20, 0xC0, 0x100, 0x200
ANYTHING = ACCESS | MODIFY | ATTRIB | OPEN | MOVED | CREATE | DELETE
EVENT = struct.Struct("iIII")


class Watch:
    """Collects what happens to some files, by path; an O_PATH descriptor and stat(2) are nothing."""

    def __init__(self, paths: Iterable[Path], events: int = ANYTHING):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._paths: dict[int, Path] = {}
        for path in paths:
            watch = self._libc.inotify_add_watch(self._fd, os.fsencode(path), events)
            if watch < 0:
                raise OSError(ctypes.get_errno(), f"cannot watch {path}")
            self._paths[watch] = path

    def seen(self) -> set[Path]:
        """The files that something happened to since the last call."""
        found: set[Path] = set()
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                watch, _, _, length = EVENT.unpack_from(data, at)
                found.add(self._paths[watch])
                at += EVENT.size + length

    def close(self) -> None:
        os.close(self._fd)

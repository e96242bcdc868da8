# SPDX-License-Identifier: Apache-2.0
"""The file system that is measured, for mfusepy: `python with_mfusepy.py MOUNTPOINT` mounts it."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Any

import mfusepy

SIZE = 1 << 20
FILES = {"/null": 2, "/data": 3, "/calls": 4}


class Tree(mfusepy.Operations):
    use_ns = True

    def __init__(self) -> None:
        self.buffer = bytearray(os.urandom(SIZE))
        self.calls = 0

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        self.calls += 1
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path not in FILES:
            raise mfusepy.FuseOSError(errno.ENOENT)
        size = SIZE if path == "/data" else self.calls if path == "/calls" else 0
        return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": size}

    def open(self, path: str, flags: int) -> int:
        return FILES[path]

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self.calls += 1
        return bytes(memoryview(self.buffer)[offset : offset + size]) if fh == 3 else b""

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self.calls += 1
        self.buffer[offset : offset + len(data)] = data
        return len(data)


def main(mountpoint: str) -> None:
    mfusepy.FUSE(
        Tree(),
        mountpoint,
        foreground=True,
        nothreads=True,
        direct_io=True,
        default_permissions=True,
        attr_timeout=0,
        entry_timeout=0,
        fsname="bench",
    )


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-License-Identifier: Apache-2.0
"""The file system that is measured, for pyfuse3: `python with_pyfuse3.py MOUNTPOINT` mounts it."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Any

import pyfuse3
import trio

SIZE = 1 << 20
FILES = {b"null": 2, b"data": 3, b"calls": 4}


class Tree(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray(os.urandom(SIZE))
        self.calls = 0

    def attributes(self, inode: int) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o644
        entry.st_size = SIZE if inode == 3 else self.calls if inode == 4 else 0
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        self.calls += 1
        inode = FILES.get(name)
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.attributes(inode)

    async def getattr(self, inode: int, ctx: Any) -> Any:
        self.calls += 1
        return self.attributes(inode)

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        return self.attributes(inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self.calls += 1
        return bytes(memoryview(self.data)[off : off + size]) if fh == 3 else b""

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self.calls += 1
        self.data[off : off + len(buf)] = buf
        return len(buf)


def main(mountpoint: str) -> None:
    pyfuse3.init(Tree(), mountpoint, {*pyfuse3.default_options, "fsname=bench"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-License-Identifier: Apache-2.0
"""The file system that is measured, as one of ours: two files, one without and one with data in memory, and "calls",
whose size is how many calls of methods were counted.
"""

from __future__ import annotations

import errno
import os
import stat

from virtiofs import Attributes, Changes, Entry, Filesystem, Opened

SIZE = 1 << 20
FILES = {b"null": 2, b"data": 3, b"calls": 4}


class Tree(Filesystem):
    """Nothing is kept by the kernel, so that each call of a program is a request."""

    threads = 0

    def __init__(self) -> None:
        self.data = bytearray(os.urandom(SIZE))
        self.calls = 0

    def attributes(self, node: int) -> Attributes:
        if node == 1:
            return Attributes(stat.S_IFDIR | 0o755, nlink=2, valid=0)
        size = SIZE if node == 3 else self.calls if node == 4 else 0
        return Attributes(stat.S_IFREG | 0o644, size, valid=0)

    def lookup(self, parent: int, name: bytes) -> Entry:
        self.calls += 1
        node = FILES.get(name)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return Entry(node, self.attributes(node), valid=0)

    def getattr(self, node: int, handle: int | None) -> Attributes:
        self.calls += 1
        return self.attributes(node)

    def setattr(self, node: int, changes: Changes, handle: int | None) -> Attributes:
        return self.attributes(node)

    def open(self, node: int, flags: int) -> Opened:
        return Opened(node, direct_io=True)

    def read(self, node: int, handle: int, offset: int, size: int) -> memoryview | bytes:
        self.calls += 1
        return memoryview(self.data)[offset : offset + size] if node == 3 else b""

    def write(self, node: int, handle: int, offset: int, data: memoryview) -> int:
        self.calls += 1
        self.data[offset : offset + len(data)] = data
        return len(data)


class Threaded(Tree):
    """The same where methods may wait: on as many threads as if nothing were said."""

    threads = 8


class Awaited(Tree):
    """The same with `async def`, as all are in pyfuse3."""

    threads = 8

    async def getattr(self, node: int, handle: int | None) -> Attributes:  # type: ignore[override]
        return super().getattr(node, handle)

    async def lookup(self, parent: int, name: bytes) -> Entry:  # type: ignore[override]
        return super().lookup(parent, name)

    async def read(  # type: ignore[override]
        self, node: int, handle: int, offset: int, size: int
    ) -> memoryview | bytes:
        return super().read(node, handle, offset, size)

    async def write(  # type: ignore[override]
        self, node: int, handle: int, offset: int, data: memoryview
    ) -> int:
        return super().write(node, handle, offset, data)

# SPDX-License-Identifier: Apache-2.0
"""A slow source, `async`:  virtiofs mount examples/slow.py:Slow --option seconds=5 /mnt

`threads` readers wait at the same time.  An interrupted one (cat /mnt/5, Ctrl-C) is a CancelledError in its method.
"""

import asyncio
import errno
import os
import stat

from virtiofs import Attributes, Opened, PathFilesystem


class Slow(PathFilesystem):
    """Files that are called after the seconds it takes to read them, up to `seconds`."""

    threads = 32

    def __init__(self, seconds: int = 3):
        self.names = [str(number) for number in range(seconds + 1)]
        self.cancelled = 0

    def getattr(self, path, handle):
        if path == "/":
            return Attributes(stat.S_IFDIR | 0o555, nlink=2)
        if path[1:] in self.names:
            return Attributes(stat.S_IFREG | 0o444)
        if path == "/cancelled":
            return Attributes(stat.S_IFREG | 0o444, size=self.cancelled, valid=0)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    async def readdir(self, path, handle):
        for name in self.names:
            await asyncio.sleep(0)
            yield name

    def open(self, path, flags):
        return Opened(direct_io=True)  # so that a size of 0 is no reason not to read

    async def read(self, path, handle, offset, size):
        text = f"{path[1:]} seconds later\n".encode()
        try:
            if offset == 0:
                await asyncio.sleep(int(path[1:]))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return text[offset : offset + size]

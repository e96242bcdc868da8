# SPDX-License-Identifier: Apache-2.0
"""A file system for pyfuse3, which knows nothing of virtiofs: files in one directory, on trio."""

from __future__ import annotations

import errno
import stat

import pyfuse3
import trio
from pyfuse3 import readdir_reply


class Shelf(pyfuse3.Operations):
    """`hello` holds `text`; reading `sleepy` takes an hour, and `cancelled` is as large as often that was cancelled."""

    def __init__(self, text: str = "hello"):
        super().__init__()
        self.begun = False
        self.files = {b"hello": 2, b"sleepy": 3, b"cancelled": 4}
        self.data = {2: bytearray(text.encode()), 3: bytearray(10), 4: bytearray()}
        self.lookups = dict.fromkeys(self.data, 0)
        self.lock = trio.Lock()

    def init(self):
        self.begun = True

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode, entry.st_nlink = stat.S_IFDIR | 0o755, 2
        elif inode in self.data:
            entry.st_mode, entry.st_size = stat.S_IFREG | 0o644, len(self.data[inode])
        else:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry.st_ino = inode
        entry.attr_timeout = entry.entry_timeout = 0
        entry.st_mtime_ns = 5_000_000_006
        return entry

    async def lookup(self, parent, name, ctx):
        async with self.lock:
            await trio.sleep(0)
        if name not in self.files or not self.begun:
            raise pyfuse3.FUSEError(errno.ENOENT)
        self.lookups[self.files[name]] += 1
        return await self.getattr(self.files[name], ctx)

    async def forget(self, inode_list):
        for inode, count in inode_list:
            self.lookups[inode] -= count

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start_id, token):
        for number, (name, inode) in enumerate(self.files.items()):
            if number >= start_id:
                if not readdir_reply(token, name, await self.getattr(inode), number + 1):
                    break
                self.lookups[inode] += 1

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode, direct_io=inode == 3)

    async def create(self, parent, name, mode, flags, ctx):
        inode = self.files[name] = max(self.data) + 1
        self.data[inode] = bytearray()
        self.lookups[inode] = 1
        return pyfuse3.FileInfo(fh=inode), await self.getattr(inode, ctx)

    async def read(self, fh, off, size):
        if fh == 3:
            try:
                await trio.sleep(3600)
            except trio.Cancelled:
                self.data[4] += b"x"
                raise
        return bytes(self.data[fh][off : off + size])

    async def write(self, fh, off, buf):
        self.data[fh][off : off + len(buf)] = buf
        pyfuse3.invalidate_inode(fh)
        return len(buf)

    async def setattr(self, inode, attr, fields, fh, ctx):
        if fields.update_size:
            del self.data[inode][attr.st_size :]
        return await self.getattr(inode, ctx)

    async def unlink(self, parent, name, ctx):
        del self.files[name]

    async def getxattr(self, inode, name, ctx):
        if name == b"user.lookups":
            return str(self.lookups[inode]).encode()
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

# SPDX-License-Identifier: Apache-2.0
"""Invalidation: what changes on its own is cached for ever.  virtiofs mount examples/ticker.py:Ticker /mnt

Each tick has a file, and /latest is the last one's text.  The kernel keeps all it has seen, and is told what is new.
Where nobody can tell it (over virtio), nothing is promised in the first place.
"""

import errno
import os
import stat
import threading

from virtiofs import Attributes, Opened, PathFilesystem

FOREVER = 1e9


class Ticker(PathFilesystem):
    valid = FOREVER  # of names

    def __init__(self, seconds: float = 1.0, keep: int = 5):
        self.seconds, self.keep = seconds, keep
        self.ticks = [0]
        self.told = False
        self.asked = 0
        self.ending = threading.Event()

    def start(self, directory):
        threading.Thread(target=self.run, daemon=True).start()

    def close(self):
        self.ending.set()

    def run(self):
        while not self.ending.wait(self.seconds):
            self.ticks = [*self.ticks, self.ticks[-1] + 1]
            self.told = self.invalidate_inode("/latest")
            self.invalidate_inode("/")  # the listing
            if len(self.ticks) > self.keep:
                gone, *self.ticks = self.ticks
                self.invalidate_entry(f"/{gone}", deleted=True)

    def getattr(self, path, handle):
        if path == "/":
            return Attributes(stat.S_IFDIR | 0o555, nlink=2, valid=FOREVER if self.told else 0)
        if path == "/latest":
            self.asked += 1
            return self.file(len(f"{self.ticks[-1]}\n"))
        if path == "/asked":
            return Attributes(stat.S_IFREG | 0o444, size=self.asked, valid=0)
        if path[1:] not in map(str, self.ticks):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.file(len(path))

    def file(self, size):
        return Attributes(stat.S_IFREG | 0o444, size, valid=FOREVER if self.told else 0)

    def readdir(self, path, handle):
        return ["latest", *map(str, self.ticks)]

    def open(self, path, flags):
        return Opened(keep_cache=self.told)

    def read(self, path, handle, offset, size):
        text = f"{self.ticks[-1]}\n" if path == "/latest" else f"{path[1:]}\n"
        return text.encode()[offset : offset + size]

# SPDX-License-Identifier: Apache-2.0
"""A zip as a directory:  virtiofs mount examples/zipped.py:ZipFilesystem --option archive=data.zip /mnt

The archive is opened by the constructor, outside the walls; the process that serves has this descriptor and nothing
else of the host.  Nothing in it changes, so the guest may keep all it has seen.
"""

import calendar
import errno
import os
import stat
import threading
import zipfile

from virtiofs import Attributes, Opened, PathFilesystem

FOREVER = 1e9
CACHED = 16 << 20  # bytes of the members that were read last


class ZipFilesystem(PathFilesystem):
    valid = FOREVER

    def __init__(self, archive: str):
        self.zip = zipfile.ZipFile(archive)
        self.lock = threading.Lock()  # a ZipFile has one position
        self.directories: dict[str, dict[str, int]] = {"/": {}}
        self.members: dict[str, zipfile.ZipInfo] = {}
        self.cache: dict[str, bytes] = {}
        for info in self.zip.infolist():
            parts = [part for part in info.filename.split("/") if part]
            if ".." in parts or "." in parts or not parts:
                continue
            path = "/" + "/".join(parts)
            self.add(path, info.is_dir())
            if not info.is_dir():
                self.members[path] = info

    def add(self, path: str, is_directory: bool) -> None:
        """Note a path, and the directories above it, which an archive need not have."""
        if is_directory:
            self.directories.setdefault(path, {})
        parent, _, name = path.rpartition("/")
        if name and name not in self.directories.get(parent or "/", ()):
            self.add(parent or "/", True)
            self.directories[parent or "/"][name] = stat.S_IFDIR if is_directory else stat.S_IFREG

    def getattr(self, path, handle):
        if path in self.directories:
            return Attributes(stat.S_IFDIR | 0o555, nlink=2, valid=FOREVER)
        if path not in self.members:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        info = self.members[path]
        when = calendar.timegm(info.date_time) * 1_000_000_000
        mode = (info.external_attr >> 16) & 0o555 or 0o444
        return Attributes(
            stat.S_IFREG | mode, info.file_size, mtime_ns=when, ctime_ns=when, atime_ns=when, valid=FOREVER
        )

    def readdir(self, path, handle):
        return list(self.directories[path].items())

    def open(self, path, flags):
        return Opened(keep_cache=True)

    def read(self, path, handle, offset, size):
        with self.lock:
            data = self.cache.get(path)
            if data is None:
                data = self.zip.read(self.members[path])
                self.cache[path] = data
                while sum(map(len, self.cache.values())) > CACHED and len(self.cache) > 1:
                    del self.cache[next(iter(self.cache))]
        return memoryview(data)[offset : offset + size]

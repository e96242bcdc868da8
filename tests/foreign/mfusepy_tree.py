# SPDX-License-Identifier: Apache-2.0
"""A file system for mfusepy, which knows nothing of virtiofs: files in directories, in memory."""

from __future__ import annotations

import errno
import stat
import time

from mfusepy import FuseOSError, Operations, fuse_get_context


class Shelf(Operations):
    use_ns = True

    def __init__(self):
        self.files = {}
        self.data = {}
        self.began = False
        self.inside = 0
        self.put("/", stat.S_IFDIR | 0o755)

    def put(self, path, mode):
        now = time.time_ns()
        self.files[path] = {
            "st_mode": mode,
            "st_nlink": 2 if stat.S_ISDIR(mode) else 1,
            "st_size": 0,
            "st_atime": now,
            "st_mtime": now,
            "st_ctime": now,
        }
        self.data[path] = bytearray()

    def init(self, path):
        self.began = True

    def __getattribute__(self, name):
        return object.__getattribute__(self, name)

    def find(self, path):
        if path not in self.files or not self.began:
            raise FuseOSError(errno.ENOENT)
        return self.files[path]

    def getattr(self, path, fh=None):
        return self.find(path)

    def readdir(self, path, fh):
        yield "."
        yield ".."
        for name, attributes in self.files.items():
            above, _, last = name.rpartition("/")
            if (above or "/") == path and last:
                yield last, attributes, 0

    def create(self, path, mode, fi=None):
        self.put(path, mode)
        self.files[path]["st_uid"], self.files[path]["st_gid"], _ = fuse_get_context()
        return 7

    def mkdir(self, path, mode):
        self.put(path, stat.S_IFDIR | mode)

    def open(self, path, flags):
        return 7

    def read(self, path, size, offset, fh):
        self.inside += 1
        assert self.inside == 1
        try:
            return bytes(self.data[path][offset : offset + size])
        finally:
            self.inside -= 1

    def write(self, path, data, offset, fh):
        file = self.data[path]
        file.extend(bytes(max(0, offset - len(file))))
        file[offset : offset + len(data)] = data
        self.files[path]["st_size"] = len(file)
        return len(data)

    def truncate(self, path, length, fh=None):
        file = self.data[path]
        del file[length:]
        file.extend(bytes(length - len(file)))
        self.files[path]["st_size"] = length

    def chmod(self, path, mode):
        self.find(path)["st_mode"] = mode

    def utimens(self, path, times=None):
        self.files[path]["st_atime"], self.files[path]["st_mtime"] = times

    def rename(self, old, new):
        if new.endswith("forbidden"):
            return -errno.EXDEV
        for table in (self.files, self.data):
            for name in [name for name in table if name == old or name.startswith(old + "/")]:
                table[new + name[len(old) :]] = table.pop(name)
        return 0

    def symlink(self, target, source):
        self.put(target, stat.S_IFLNK | 0o777)
        self.data[target][:] = source.encode()

    def readlink(self, path):
        return self.data[path].decode()

    def unlink(self, path):
        del self.files[path], self.data[path]

    rmdir = unlink

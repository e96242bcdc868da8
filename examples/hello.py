# SPDX-License-Identifier: Apache-2.0
"""One file that no disk holds:  virtiofs mount examples/hello.py:Hello /mnt"""

import errno
import stat

from virtiofs import Attributes, PathFilesystem

FILES = {"/hello": b"Hello from the host.\n"}


class Hello(PathFilesystem):
    def getattr(self, path, handle):
        if path == "/":
            return Attributes(stat.S_IFDIR | 0o755, nlink=2)
        if path in FILES:
            return Attributes(stat.S_IFREG | 0o444, len(FILES[path]))
        raise OSError(errno.ENOENT, "no such file")

    def readdir(self, path, handle):
        return [name.lstrip("/") for name in FILES]

    def read(self, path, handle, offset, size):
        return FILES[path][offset : offset + size]

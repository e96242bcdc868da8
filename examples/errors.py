# SPDX-License-Identifier: Apache-2.0
"""Errors on purpose, to see what becomes of them:  virtiofs mount examples/errors.py:Errors /mnt

Reading a file fails with the errno it is named after; `mistake` has a bug in it, which is EIO for whoever reads it,
and a line in the log for you.
"""

import errno
import os
import stat

from virtiofs import Attributes, PathFilesystem

NAMES = {name: number for number, name in errno.errorcode.items()}


class Errors(PathFilesystem):
    def getattr(self, path, handle):
        if path == "/":
            return Attributes(stat.S_IFDIR | 0o755, nlink=2)
        if path[1:] in NAMES or path == "/mistake":
            return Attributes(stat.S_IFREG | 0o444, size=1)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def readdir(self, path, handle):
        yield from NAMES
        yield "mistake"

    def read(self, path, handle, offset, size):
        if path == "/mistake":
            return NAMES["ETYPO"]
        raise OSError(NAMES[path[1:]], path)

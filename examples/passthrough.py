# SPDX-License-Identifier: Apache-2.0
"""A directory of the host, in Python:  virtiofs mount examples/passthrough.py:Mirror --option directory=/srv /mnt

`virtiofs mount DIR` does this better and much faster; this shows what it takes, and where to put rules of your own.
"""

import os

from virtiofs import Attributes, PathFilesystem, Statistics


class Mirror(PathFilesystem):
    def __init__(self, directory: str):
        self.needs = {os.path.abspath(directory)}

    def start(self, directory):
        os.chdir(directory)  # the directory is the root of this process, or with --sandbox none, where it is
        os.umask(0)  # the guest has applied its own

    def at(self, path):
        return "." + path

    def getattr(self, path, handle):
        return Attributes.of(os.fstat(handle) if handle is not None and not path else os.lstat(self.at(path)))

    def readdir(self, path, handle):
        with os.scandir(self.at(path)) as entries:
            return [entry.name for entry in entries]

    def setattr(self, path, changes, handle):
        at = self.at(path) if path else handle
        if changes.size is not None:
            os.truncate(at, changes.size)
        if changes.uid is not None or changes.gid is not None:
            ids = [-1 if one is None else one for one in (changes.uid, changes.gid)]
            os.chown(at, *ids, **({"follow_symlinks": False} if path else {}))
        if changes.mode is not None:
            os.chmod(at, changes.mode)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            now = os.stat(at, **({"follow_symlinks": False} if path else {}))
            atime = now.st_atime_ns if changes.atime_ns is None else changes.atime_ns
            mtime = now.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
            os.utime(at, ns=(atime, mtime), **({"follow_symlinks": False} if path else {}))

    def readlink(self, path):
        return os.readlink(self.at(path))

    def symlink(self, path, target, caller):
        os.symlink(target, self.at(path))
        self.give(path, caller)

    def mkdir(self, path, mode, caller):
        os.mkdir(self.at(path), mode)
        self.give(path, caller)

    def mknod(self, path, mode, rdev, caller):
        os.mknod(self.at(path), mode, rdev)
        self.give(path, caller)

    def create(self, path, flags, mode, caller):
        fd = os.open(self.at(path), (flags | os.O_CREAT | os.O_NOFOLLOW) & ~os.O_APPEND, mode)
        self.give(path, caller)
        return fd

    def give(self, path, caller):
        if os.geteuid() == 0:
            os.lchown(self.at(path), caller.uid, caller.gid)

    def unlink(self, path):
        os.unlink(self.at(path))

    def rmdir(self, path):
        os.rmdir(self.at(path))

    def rename(self, path, new, flags):
        if flags:
            raise OSError(22, "flags of renameat2(2) are not for os.rename")
        os.rename(self.at(path), self.at(new))

    def link(self, path, new):
        os.link(self.at(path), self.at(new), follow_symlinks=False)

    def open(self, path, flags):
        return os.open(self.at(path), (flags | os.O_NOFOLLOW) & ~os.O_APPEND)

    def read(self, path, handle, offset, size):
        return os.pread(handle, size, offset)

    def write(self, path, handle, offset, data):
        return os.pwrite(handle, data, offset)

    def fsync(self, path, handle, datasync):
        (os.fdatasync if datasync else os.fsync)(handle)

    def release(self, path, handle):
        os.close(handle)

    def statfs(self, path):
        found = os.statvfs(self.at(path))
        return Statistics(
            found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_frsize
        )

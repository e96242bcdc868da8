# SPDX-License-Identifier: Apache-2.0
"""`virtiofs.client.tree.Tree` on a mounted directory: the same methods, each of them the system call itself."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from virtiofs.client.session import DirectoryEntry

AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
SYS_GETDENTS64 = {"x86_64": 217, "aarch64": 61}[os.uname().machine]
DIRENT64 = struct.Struct("=QqHB")  # d_ino, d_off, d_reclen, d_type, and the name (getdents64(2))
CHUNK = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object, paths: tuple[str, ...] = ()) -> int:
    """A function of the C library that Python's `os` lacks.  Raises OSError as `os` does."""
    done = getattr(_libc, name)(*arguments)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), *paths[:1])
    return int(done)


class Opened:
    """A descriptor; a context manager."""

    def __init__(self, fd: int):
        self.fd = fd
        self.closed = False

    def fsync(self, datasync: bool = False) -> None:
        (os.fdatasync if datasync else os.fsync)(self.fd)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MountedFile(Opened):
    def pread(self, size: int, offset: int) -> bytes:
        data = bytearray()
        while len(data) < size and (part := os.pread(self.fd, size - len(data), offset + len(data))):
            data += part
        return bytes(data)

    def pwrite(self, data: bytes, offset: int) -> int:
        return os.pwrite(self.fd, data, offset)

    def fstat(self) -> os.stat_result:
        return os.fstat(self.fd)

    def ftruncate(self, length: int) -> None:
        os.ftruncate(self.fd, length)

    def lseek(self, offset: int, whence: int) -> int:
        return os.lseek(self.fd, offset, whence)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        _call("fallocate64", self.fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))

    def copy_to(self, other: MountedFile, count: int, offset: int, other_offset: int) -> int:
        return os.copy_file_range(self.fd, other.fd, count, offset, other_offset)


class MountedDirectory(Opened):
    def read(self, cookie: int = 0, size: int = 65536) -> list[DirectoryEntry]:
        os.lseek(self.fd, cookie, os.SEEK_SET)
        buffer = ctypes.create_string_buffer(size)
        filled = _call("syscall", SYS_GETDENTS64, self.fd, buffer, size)
        entries, at = [], 0
        while at < filled:
            ino, cookie, length, kind = DIRENT64.unpack_from(buffer, at)
            name = buffer.raw[at + DIRENT64.size : at + length].partition(b"\0")[0]
            entries.append(DirectoryEntry(name, ino, cookie, kind))
            at += length
        return entries


class MountedTree:
    """The tree below a directory of the host's own tree; paths are relative to it, as in `Tree`."""

    def __init__(self, root: Path):
        self.root = root

    def _path(self, path: str) -> str:
        return f"{self.root}/{path.lstrip('/')}" if path.strip("/") else str(self.root)

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> MountedFile:
        return MountedFile(os.open(self._path(path), flags, mode))

    def read_file(self, path: str) -> bytes:
        with self.open(path) as file:
            data = bytearray()
            while part := file.pread(CHUNK, len(data)):
                data += part
            return bytes(data)

    def write_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        with self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as file:
            assert file.pwrite(data, 0) == len(data)

    def truncate(self, path: str, length: int) -> None:
        os.truncate(self._path(path), length)

    def mknod(self, path: str, mode: int = 0o600 | stat.S_IFREG, device: int = 0) -> None:
        os.mknod(self._path(path), mode, device)

    def unlink(self, path: str) -> None:
        os.unlink(self._path(path))

    def link(self, path: str, new: str) -> None:
        os.link(self._path(path), self._path(new), follow_symlinks=False)

    def link_open(self, file: MountedFile, new: str) -> None:
        # Python's os.link follows no link, whatever it is told.
        source, target = f"/proc/self/fd/{file.fd}".encode(), os.fsencode(self._path(new))
        _call("linkat", AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW, paths=(new,))

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._path(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self._path(path))

    def rename(self, path: str, new: str, flags: int = 0) -> None:
        old, new = self._path(path), self._path(new)
        if not flags:
            return os.rename(old, new)
        names = (os.fsencode(old), os.fsencode(new))
        _call("renameat2", AT_FDCWD, names[0], AT_FDCWD, names[1], flags, paths=(path,))

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        os.mkdir(self._path(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._path(path))

    def opendir(self, path: str = "/") -> MountedDirectory:
        return MountedDirectory(os.open(self._path(path), os.O_RDONLY | os.O_DIRECTORY))

    def scan(self, path: str = "/") -> list[DirectoryEntry]:
        entries: list[DirectoryEntry] = []
        with self.opendir(path) as directory:
            while part := directory.read(entries[-1].cookie if entries else 0):
                entries += part
        return [entry for entry in entries if entry.name not in (b".", b"..")]

    def listdir(self, path: str = "/") -> list[str]:
        return os.listdir(self._path(path))

    def walk(self, path: str = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        for where, directories, names in os.walk(self._path(path)):
            yield where.removeprefix(str(self.root)) or "/", directories, names

    def stat(self, path: str, follow_symlinks: bool = True) -> os.stat_result:
        return os.stat(self._path(path), follow_symlinks=follow_symlinks)

    def exists(self, path: str) -> bool:
        return os.path.lexists(self._path(path))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._path(path), mode)

    def chown(self, path: str, uid: int, gid: int, follow_symlinks: bool = True) -> None:
        os.chown(self._path(path), uid, gid, follow_symlinks=follow_symlinks)

    def utime(self, path: str, ns: tuple[int, int] | None = None, follow_symlinks: bool = True) -> None:
        how = {} if ns is None else {"ns": ns}
        os.utime(self._path(path), follow_symlinks=follow_symlinks, **how)

    def statvfs(self, path: str = "/") -> os.statvfs_result:
        return os.statvfs(self._path(path))

    def setxattr(
        self, path: str, name: str, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        os.setxattr(self._path(path), name, value, flags, follow_symlinks=follow_symlinks)

    def getxattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> bytes:
        return os.getxattr(self._path(path), name, follow_symlinks=follow_symlinks)

    def listxattr(self, path: str, *, follow_symlinks: bool = True) -> list[str]:
        return os.listxattr(self._path(path), follow_symlinks=follow_symlinks)

    def removexattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> None:
        os.removexattr(self._path(path), name, follow_symlinks=follow_symlinks)

    def sync(self) -> None:
        with self.opendir() as directory:
            _call("syncfs", directory.fd)

# SPDX-License-Identifier: Apache-2.0
"""Serves a class derived from `mfusepy.Operations` as it is.

Its methods are called one at a time, as by mfusepy with `nothreads=True`, which asks nothing of them.  There it is
the thread of the constructor that calls; here it is another, which SQLite is told to live with.
"""

from __future__ import annotations

import errno
import inspect
import os
import sqlite3
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from virtiofs.fs.adapters import foreign
from virtiofs.fs.python.filesystem import OPERATIONS
from virtiofs.fs.python.paths import PathEntry, PathFilesystem
from virtiofs.fs.python.replies import Attributes, Caller, Changes, Opened, Statistics

# Those that have another name there.  Others there are not: fallocate is called with the order of libfuse.
THEIRS = {"setattr": ("chmod", "chown", "truncate", "utimens")}
NEVER = (
    *("forget", "lookup", "tmpfile", "lseek", "syncfs", "access", "ioctl", "poll", "copy_file_range"),
    "bmap",  # whose answer goes through a pointer of libfuse's
)
LOCKS = ("getlk", "setlk", "flock")
NANOSECONDS = 1_000_000_000
TIMES = ("st_atime", "st_mtime", "st_ctime")


def prepare() -> None:
    """Before a class is made: let what it opens with sqlite3 be used by a thread that is not this one.

    That is safe as only one calls at a time.
    """
    connect = sqlite3.connect
    if isinstance(connect, partial):
        return
    vars(sqlite3)["connect"] = partial(connect, check_same_thread=False)


class MfusepyFilesystem(PathFilesystem):
    """Calls `operations`, an object whose class is derived from `Operations` of mfusepy (or fusepy)."""

    threads = 1

    def __init__(self, operations: Any):
        self.operations = operations
        self._asked = threading.local()
        self._lock = threading.Lock()
        self._base = next(base for base in type(operations).__mro__ if base.__name__ == "Operations")
        self._raw = bool(getattr(operations, "raw_fi", False))
        self._nanoseconds = bool(getattr(operations, "use_ns", False))
        # What the methods may ask for is libfuse's to know, which is not there.
        foreign.replace(sys.modules[self._base.__module__], "fuse_get_context", self._context)

    def implemented(self) -> frozenset[str]:
        return frozenset(
            name
            for name in OPERATIONS
            if name not in NEVER
            and name not in LOCKS
            and any(self._has(theirs) for theirs in THEIRS.get(name, (name,)))
        )

    def _has(self, name: str) -> bool:
        """Whether the object does this otherwise than the base class; some set methods on themselves."""
        if name in vars(self.operations):
            return True
        return getattr(type(self.operations), name, None) is not getattr(self._base, name, None)

    def asked_by(self, caller: Caller) -> None:
        self._asked.caller = caller

    def _context(self) -> tuple[int, int, int]:
        """uid, gid and pid of who asks, in place of `fuse_get_context`."""
        caller = getattr(self._asked, "caller", None)
        return (caller.uid, caller.gid, caller.pid) if caller is not None else (0, 0, 0)

    def start(self, directory: str) -> None:
        if self._has("init_with_config"):
            self.operations.init_with_config(None, None)
        elif self._has("init"):
            self.operations.init("/")

    def close(self) -> None:
        if self._has("destroy"):
            self.operations.destroy("/")

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a method; a negative number is an errno there."""
        with self._lock:
            found = getattr(self.operations, name)(*arguments)
            if inspect.isgenerator(found):
                found = list(found)
        if isinstance(found, int) and found < 0:
            raise OSError(-found, os.strerror(-found))
        return found

    # --- attributes ---

    def getattr(self, path: str, handle: int | None) -> Attributes:
        found = dict(self._call("getattr", path or None, self._file(handle)))
        times = [
            int(value if self._nanoseconds else value * NANOSECONDS)
            for value in (found.get(name) or 0 for name in TIMES)
        ]
        return Attributes(
            found.get("st_mode", 0),
            found.get("st_size", 0),
            found.get("st_nlink", 1),
            found.get("st_uid", 0),
            found.get("st_gid", 0),
            found.get("st_rdev", 0),
            found.get("st_ino", 0),
            found.get("st_blocks", -1),
            found.get("st_blksize", 4096),
            *times,
        )

    def setattr(self, path: str, changes: Changes, handle: int | None) -> None:
        if changes.mode is not None:
            kind = stat.S_IFMT(self.getattr(path, handle).mode)
            self._call("chmod", path, kind | changes.mode)
        if changes.uid is not None or changes.gid is not None:
            unchanged = -1
            self._call(
                "chown",
                path,
                unchanged if changes.uid is None else changes.uid,
                unchanged if changes.gid is None else changes.gid,
            )
        if changes.size is not None:
            self._call("truncate", path or None, changes.size, self._file(handle))
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            now = self.getattr(path, handle)
            times = (
                now.atime_ns if changes.atime_ns is None else changes.atime_ns,
                now.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
            )
            self._call(
                "utimens", path, times if self._nanoseconds else tuple(ns / NANOSECONDS for ns in times)
            )

    def statfs(self, path: str) -> Statistics:
        found = self._call("statfs", path)
        return Statistics(
            found.get("f_blocks", 0),
            found.get("f_bfree", 0),
            found.get("f_bavail"),
            found.get("f_files", 0),
            found.get("f_ffree", 0),
            found.get("f_frsize") or found.get("f_bsize", 4096),
            found.get("f_namemax", 255),
        )

    def getxattr(self, path: str, name: str) -> bytes:
        return bytes(self._call("getxattr", path, name))

    def listxattr(self, path: str) -> Iterable[str]:
        return list(self._call("listxattr", path))

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        self._call("setxattr", path, name, value, flags)

    def removexattr(self, path: str, name: str) -> None:
        self._call("removexattr", path, name)

    # --- names ---

    def readdir(self, path: str, handle: int) -> Iterator[PathEntry]:
        if self._has("readdir_with_offset"):
            yield from self._listed(self._call("readdir_with_offset", path, 0, handle))
        else:
            yield from self._listed(self._call("readdir", path, handle))

    @staticmethod
    def _listed(entries: Iterable[Any]) -> Iterator[PathEntry]:
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                name, attributes, _ = entry
                mode = attributes.get("st_mode", 0) if isinstance(attributes, dict) else attributes
                yield name, mode or 0

    def readlink(self, path: str) -> str:
        return str(self._call("readlink", path))

    def symlink(self, path: str, target: str, caller: Caller) -> None:
        self._call("symlink", path, target)

    def mknod(self, path: str, mode: int, rdev: int, caller: Caller) -> None:
        self._call("mknod", path, mode, rdev)

    def mkdir(self, path: str, mode: int, caller: Caller) -> None:
        self._call("mkdir", path, mode)

    def unlink(self, path: str) -> None:
        self._call("unlink", path)

    def rmdir(self, path: str) -> None:
        self._call("rmdir", path)

    def rename(self, path: str, new: str, flags: int) -> None:
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._call("rename", path, new)

    def link(self, path: str, new: str) -> None:
        self._call("link", new, path)

    # --- files ---

    def _file(self, handle: int | None) -> int | None:
        return None if handle is None or self._raw else handle

    def open(self, path: str, flags: int) -> int | Opened:
        if not self._raw:
            return int(self._call("open", path, flags))
        info = Info(flags)
        self._call("open", path, info)
        return info.opened()

    def create(self, path: str, flags: int, mode: int, caller: Caller) -> int | Opened:
        mode |= stat.S_IFREG
        if not self._raw:
            return int(self._call("create", path, mode))
        info = Info(flags)
        self._call("create", path, mode, info)
        return info.opened()

    def _info(self, handle: int) -> Any:
        return Info(0, handle) if self._raw else handle

    def read(self, path: str, handle: int, offset: int, size: int) -> bytes:
        return bytes(self._call("read", path, size, offset, self._info(handle)))

    def write(self, path: str, handle: int, offset: int, data: memoryview) -> int:
        return int(self._call("write", path, bytes(data), offset, self._info(handle)))

    def flush(self, path: str, handle: int) -> None:
        self._call("flush", path, self._info(handle))

    def release(self, path: str, handle: int) -> None:
        self._call("release", path, self._info(handle))

    def fsync(self, path: str, handle: int, datasync: bool) -> None:
        self._call("fsync", path, int(datasync), self._info(handle))

    def fallocate(self, path: str, handle: int, mode: int, offset: int, length: int) -> None:
        self._call("fallocate", path, mode, offset, length, self._info(handle))

    def opendir(self, path: str) -> int:
        return int(self._call("opendir", path) or 0)

    def releasedir(self, path: str, handle: int) -> None:
        self._call("releasedir", path, handle)

    def fsyncdir(self, path: str, handle: int, datasync: bool) -> None:
        self._call("fsyncdir", path, int(datasync), handle)


class Info:
    """What classes with `raw_fi` expect in place of a handle: the fields of struct fuse_file_info."""

    def __init__(self, flags: int, handle: int = 0):
        self.flags = flags
        self.fh = handle
        self.direct_io = 0
        self.keep_cache = 0
        self.nonseekable = 0
        self.lock_owner = 0

    def opened(self) -> Opened:
        return Opened(self.fh, bool(self.direct_io), bool(self.keep_cache))

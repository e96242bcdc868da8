# SPDX-License-Identifier: Apache-2.0
"""Serves a class derived from `pyfuse3.Operations` as it is.

Its coroutines run on the loop that pyfuse3 would run them on: trio, or asyncio where `pyfuse3.asyncio` is enabled.
The functions of pyfuse3 that speak to the kernel are replaced by some that speak to whoever is served.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pyfuse3

from virtiofs.fs.adapters import foreign
from virtiofs.fs.python.filesystem import OPERATIONS, DirectoryEntry, Filesystem
from virtiofs.fs.python.replies import Attributes, Caller, Changes, Entry, Opened, Statistics

# Entries of one listing: as many as are taken from a file system of ours.
MOST_ENTRIES = 1 << 20
REPLACED = ("readdir_reply", "invalidate_inode", "invalidate_entry", "invalidate_entry_async", "notify_store")


class Context:
    """Who asks, as `pyfuse3.RequestContext`, which can not be made."""

    def __init__(self, caller: Caller | None):
        self.uid = caller.uid if caller is not None else 0
        self.gid = caller.gid if caller is not None else 0
        self.pid = caller.pid if caller is not None else 0
        self.umask = 0  # the guest has applied it


class Fields:
    """What is to change, as `pyfuse3.SetattrFields`, which can not be made."""

    def __init__(self, changes: Changes):
        self.update_mode = changes.mode is not None
        self.update_uid = changes.uid is not None
        self.update_gid = changes.gid is not None
        self.update_size = changes.size is not None
        self.update_atime = changes.atime_ns is not None
        self.update_mtime = changes.mtime_ns is not None
        self.update_ctime = False


class Token:
    """What `readdir` gives to `readdir_reply`: all that it says is kept."""

    def __init__(self) -> None:
        self.entries: list[tuple[bytes, Any]] = []

    def add(self, name: bytes, attributes: Any, _next: int) -> bool:
        self.entries.append((bytes(name), attributes))
        return len(self.entries) <= MOST_ENTRIES


def attributes_of(found: Any) -> Attributes:
    """Raises `TypeError` and `OverflowError` for what makes no sense, as all that methods return."""
    return Attributes(
        found.st_mode,
        found.st_size,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_rdev,
        found.st_ino,
        found.st_blocks,
        found.st_blksize,
        found.st_atime_ns,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.attr_timeout,
    )


def entry_of(found: Any) -> Entry:
    if not found.st_ino:
        return Entry.absent(found.entry_timeout)
    return Entry(found.st_ino, attributes_of(found), found.entry_timeout, found.generation)


def opened_of(found: Any) -> Opened:
    return Opened(found.fh, bool(found.direct_io), bool(found.keep_cache))


async def answered(awaitable: Awaitable[Any], convert: Callable[[Any], Any] = lambda found: None) -> Any:
    """What the coroutine returns, converted.  Raises `OSError` for a FUSEError."""
    try:
        return convert(await awaitable)
    except pyfuse3.FUSEError as error:
        raise OSError(error.errno, os.strerror(error.errno)) from None


class Pyfuse3Filesystem(Filesystem):
    """Calls `operations`, an object whose class is derived from `pyfuse3.Operations`."""

    def __init__(self, operations: Any):
        self.operations = operations
        self.loop = (
            "asyncio" if getattr(pyfuse3, "trio", None) is sys.modules.get("pyfuse3.asyncio") else "trio"
        )
        self._asked = threading.local()
        self._replace()

    def _replace(self) -> None:
        """Put functions of ours in place of pyfuse3's, also where a module has them by name."""
        ours = {
            "readdir_reply": lambda token, name, attr, next_id: token.add(name, attr, next_id),
            "invalidate_inode": lambda inode, attr_only=False: self.invalidate_inode(inode, attr_only),
            "invalidate_entry": lambda inode_p, name, deleted=0: self.invalidate_entry(
                inode_p, name, deleted
            ),
            "invalidate_entry_async": lambda inode_p, name, deleted=0, ignore_enoent=False: (
                self.invalidate_entry(inode_p, name, deleted)
            ),
            "notify_store": lambda inode, offset, data: self.notify_store(inode, offset, data),
        }
        for name in REPLACED:
            foreign.replace(pyfuse3, name, ours[name])

    def implemented(self) -> frozenset[str]:
        cls = type(self.operations)
        return frozenset(
            name
            for name in OPERATIONS
            if hasattr(pyfuse3.Operations, name)
            and name not in ("access", "poll")  # the guest's kernel checks; their poll handles are libfuse's
            and getattr(cls, name) is not getattr(pyfuse3.Operations, name)
        )

    def asked_by(self, caller: Caller) -> None:
        self._asked.caller = caller

    @property
    def _context(self) -> Context:
        return Context(getattr(self._asked, "caller", None))

    def start(self, directory: str) -> None:
        self.operations.init()

    # --- names ---

    def lookup(self, parent: int, name: bytes) -> Awaitable[Entry]:
        return answered(self.operations.lookup(parent, name, self._context), entry_of)

    def forget(self, node: int, lookups: int) -> None:
        return answered(self.operations.forget([(node, lookups)]))  # type: ignore[return-value]

    def readlink(self, node: int) -> Awaitable[bytes]:
        return answered(self.operations.readlink(node, self._context), bytes)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Awaitable[Entry]:
        return answered(self.operations.symlink(parent, name, target, Context(caller)), entry_of)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Awaitable[Entry]:
        return answered(self.operations.mknod(parent, name, mode, rdev, Context(caller)), entry_of)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Awaitable[Entry]:
        mode |= stat.S_IFDIR
        return answered(self.operations.mkdir(parent, name, mode, Context(caller)), entry_of)

    def unlink(self, parent: int, name: bytes) -> Awaitable[None]:
        return answered(self.operations.unlink(parent, name, self._context))

    def rmdir(self, parent: int, name: bytes) -> Awaitable[None]:
        return answered(self.operations.rmdir(parent, name, self._context))

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> Awaitable[None]:
        return answered(self.operations.rename(parent, name, new_parent, new_name, flags, self._context))

    def link(self, node: int, new_parent: int, new_name: bytes) -> Awaitable[Entry]:
        return answered(self.operations.link(node, new_parent, new_name, self._context), entry_of)

    # --- attributes ---

    def getattr(self, node: int, handle: int | None) -> Awaitable[Attributes]:
        return answered(self.operations.getattr(node, self._context), attributes_of)

    def setattr(self, node: int, changes: Changes, handle: int | None) -> Awaitable[Attributes]:
        wanted = pyfuse3.EntryAttributes()
        for ours, theirs in (
            ("mode", "st_mode"),
            ("uid", "st_uid"),
            ("gid", "st_gid"),
            ("size", "st_size"),
            ("atime_ns", "st_atime_ns"),
            ("mtime_ns", "st_mtime_ns"),
        ):
            value = getattr(changes, ours)
            if value is not None:
                setattr(wanted, theirs, value)
        return answered(self._set(node, wanted, Fields(changes), handle, self._context), attributes_of)

    async def _set(self, node: int, wanted: Any, fields: Fields, handle: int | None, context: Context) -> Any:
        if fields.update_mode:  # of which theirs has the type
            wanted.st_mode |= stat.S_IFMT((await self.operations.getattr(node, context)).st_mode)
        return await self.operations.setattr(node, wanted, fields, handle, context)

    def statfs(self, node: int) -> Awaitable[Statistics]:
        def convert(found: Any) -> Statistics:
            return Statistics(
                found.f_blocks,
                found.f_bfree,
                found.f_bavail,
                found.f_files,
                found.f_ffree,
                found.f_frsize or found.f_bsize or 4096,
                found.f_namemax or 255,
            )

        return answered(self.operations.statfs(self._context), convert)

    def setxattr(self, node: int, name: bytes, value: bytes, flags: int) -> Awaitable[None]:
        return answered(self.operations.setxattr(node, name, value, self._context))

    def getxattr(self, node: int, name: bytes) -> Awaitable[bytes]:
        return answered(self.operations.getxattr(node, name, self._context), bytes)

    def listxattr(self, node: int) -> Awaitable[Iterable[bytes]]:
        return answered(self.operations.listxattr(node, self._context), list)

    def removexattr(self, node: int, name: bytes) -> Awaitable[None]:
        return answered(self.operations.removexattr(node, name, self._context))

    # --- files ---

    def open(self, node: int, flags: int) -> Awaitable[Opened]:
        return answered(self.operations.open(node, flags, self._context), opened_of)

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, caller: Caller
    ) -> Awaitable[tuple[Entry, Opened]]:
        made = self.operations.create(parent, name, mode | stat.S_IFREG, flags, Context(caller))
        return answered(made, lambda found: (entry_of(found[1]), opened_of(found[0])))

    def read(self, node: int, handle: int, offset: int, size: int) -> Awaitable[bytes]:
        return answered(self.operations.read(handle, offset, size), lambda data: data)

    def write(self, node: int, handle: int, offset: int, data: memoryview) -> Awaitable[int]:
        return answered(self.operations.write(handle, offset, bytes(data)), int)

    def flush(self, node: int, handle: int) -> Awaitable[None]:
        return answered(self.operations.flush(handle))

    def release(self, node: int, handle: int) -> Awaitable[None]:
        return answered(self.operations.release(handle))

    def fsync(self, node: int, handle: int, datasync: bool) -> Awaitable[None]:
        return answered(self.operations.fsync(handle, datasync))

    # --- directories ---

    def opendir(self, node: int) -> Awaitable[int]:
        return answered(self.operations.opendir(node, self._context), int)

    def readdir(self, node: int, handle: int) -> Awaitable[Iterable[DirectoryEntry]]:
        return self._list(handle)

    async def _list(self, handle: int) -> list[DirectoryEntry]:
        """All entries.  Each that it replied counts a lookup there, which is taken back: READDIRPLUS asks `lookup`."""
        token = Token()
        await answered(self.operations.readdir(handle, 0, token))
        if len(token.entries) > MOST_ENTRIES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        counted = [(found.st_ino, 1) for name, found in token.entries if name not in (b".", b"..")]
        if counted:
            await answered(self.operations.forget(counted))
        return [(name, found.st_mode, found.st_ino) for name, found in token.entries]

    def releasedir(self, node: int, handle: int) -> Awaitable[None]:
        return answered(self.operations.releasedir(handle))

    def fsyncdir(self, node: int, handle: int, datasync: bool) -> Awaitable[None]:
        return answered(self.operations.fsyncdir(handle, datasync))

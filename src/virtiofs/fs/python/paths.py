# SPDX-License-Identifier: Apache-2.0
"""The same for those who think in paths: `PathFilesystem`, and what turns node ids into paths for it.

A path is absolute ("/" is the root, "/a/b") and a `str`; bytes that are no UTF-8 are in it as `os.fsdecode` makes
them.  Names with several links are files of their own here, so `link` gives the guest a second node of equal
attributes: let both have the same `ino`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from virtiofs.fs.python.filesystem import (
    ROOT,
    Buffer,
    Filesystem,
    Life,
    Maybe,
    overridden,
    unanswered,
)
from virtiofs.fs.python.replies import Attributes, Caller, Changes, Entry, Lock, Opened, Statistics

if TYPE_CHECKING:
    from virtiofs.fs.python.awaiting import Awaiting
    from virtiofs.fs.python.notifying import Notifier

# What a guest may know, and have open, at a time.
MOST_NODES = 1 << 20
MOST_OPEN = 1 << 16
# A name, or a name and the mode (of which the type counts).
PathEntry: TypeAlias = str | tuple[str, int]


class PathFilesystem(Life):
    """A tree for a guest, by paths.  What is said of `Filesystem` holds here, too, but for what is said here.

    A file that was removed, or replaced by `rename`, while it is open has the path "": `handle` tells which it is,
    and is never None then.
    """

    valid: float = 1.0
    """Seconds for which the guest trusts a name; how long it trusts attributes is `Attributes.valid`."""

    def getattr(self, path: str, handle: int | None) -> Maybe[Attributes]:
        """The attributes of the file; raises ENOENT if there is none.  Without it nothing works."""
        raise unanswered()

    def readdir(self, path: str, handle: int) -> Maybe[Iterable[PathEntry]] | AsyncIterable[PathEntry]:
        """All names in a directory, each alone or as (name, mode)."""
        raise unanswered()

    def readlink(self, path: str) -> Maybe[str]:
        """What a symbolic link holds."""
        raise unanswered()

    def symlink(self, path: str, target: str, caller: Caller) -> Maybe[None]:
        """Make a symbolic link."""
        raise unanswered()

    def mknod(self, path: str, mode: int, rdev: int, caller: Caller) -> Maybe[None]:
        """Make a file of the kind that `mode` says."""
        raise unanswered()

    def mkdir(self, path: str, mode: int, caller: Caller) -> Maybe[None]:
        """Make a directory."""
        raise unanswered()

    def unlink(self, path: str) -> Maybe[None]:
        """Remove a name that is no directory's."""
        raise unanswered()

    def rmdir(self, path: str) -> Maybe[None]:
        """Remove an empty directory."""
        raise unanswered()

    def rename(self, path: str, new: str, flags: int) -> Maybe[None]:
        """Give a file, or a directory with all that is below it, another path."""
        raise unanswered()

    def link(self, path: str, new: str) -> Maybe[None]:
        """Give a file one more path."""
        raise unanswered()

    def setattr(self, path: str, changes: Changes, handle: int | None) -> Maybe[None]:
        """Change what is not None in `changes`."""
        raise unanswered()

    def access(self, path: str, mask: int, caller: Caller) -> Maybe[None]:
        """Whether `caller` may; raises EACCES."""
        raise unanswered()

    def statfs(self, path: str) -> Maybe[Statistics]:
        """Room and number of files."""
        raise unanswered()

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> Maybe[None]:
        """Set an extended attribute."""
        raise unanswered()

    def getxattr(self, path: str, name: str) -> Maybe[Buffer]:
        """The value of an extended attribute; raises ENODATA."""
        raise unanswered()

    def listxattr(self, path: str) -> Maybe[Iterable[str]]:
        """The names of all extended attributes."""
        raise unanswered()

    def removexattr(self, path: str, name: str) -> Maybe[None]:
        """Remove an extended attribute; raises ENODATA."""
        raise unanswered()

    def open(self, path: str, flags: int) -> Maybe[int | Opened]:
        """Open a file: its handle."""
        raise unanswered()

    def create(self, path: str, flags: int, mode: int, caller: Caller) -> Maybe[int | Opened]:
        """Make a regular file and open it: its handle."""
        raise unanswered()

    def read(self, path: str, handle: int, offset: int, size: int) -> Maybe[Buffer]:
        """Bytes `offset` to `offset + size`; fewer only at the end of the file."""
        raise unanswered()

    def write(self, path: str, handle: int, offset: int, data: memoryview) -> Maybe[int]:
        """Write `data` at `offset`: how many bytes."""
        raise unanswered()

    def flush(self, path: str, handle: int) -> Maybe[None]:
        """A descriptor of the open file was closed."""
        raise unanswered()

    def release(self, path: str, handle: int) -> Maybe[None]:
        """The open file is over."""
        raise unanswered()

    def fsync(self, path: str, handle: int, datasync: bool) -> Maybe[None]:
        """Return when what was written is safe."""
        raise unanswered()

    def fallocate(self, path: str, handle: int, mode: int, offset: int, length: int) -> Maybe[None]:
        """Reserve or free a part of a file."""
        raise unanswered()

    def lseek(self, path: str, handle: int, offset: int, whence: int) -> Maybe[int]:
        """The next data or hole from `offset` on."""
        raise unanswered()

    def bmap(self, path: str, block: int, block_size: int) -> Maybe[int]:
        """Where a block of a file lies on the device that holds the file system; 0 for a hole."""
        raise unanswered()

    def opendir(self, path: str) -> Maybe[int | Opened]:
        """Open a directory: its handle."""
        raise unanswered()

    def releasedir(self, path: str, handle: int) -> Maybe[None]:
        """The open directory is over."""
        raise unanswered()

    def fsyncdir(self, path: str, handle: int, datasync: bool) -> Maybe[None]:
        """Return when changes of the directory are safe."""
        raise unanswered()

    def syncfs(self, path: str) -> Maybe[None]:
        """Return when all that was written is safe."""
        raise unanswered()

    def copy_file_range(
        self, path: str, handle: int, offset: int, to_path: str, to_handle: int, to_offset: int, size: int
    ) -> Maybe[int]:
        """Copy a part of an open file to another: how many bytes."""
        raise unanswered()

    def ioctl(
        self, path: str, handle: int, command: int, data: bytes, room: int
    ) -> Maybe[bytes | tuple[int, bytes]]:
        """ioctl(2) on an open file or directory."""
        raise unanswered()

    def poll(self, path: str, handle: int, events: int, wake: int | None) -> Maybe[int]:
        """Which of `events` an open file is ready for."""
        raise unanswered()

    def getlk(self, path: str, handle: int, owner: int, lock: Lock) -> Maybe[Lock | None]:
        """A lock that is in the way."""
        raise unanswered()

    def setlk(self, path: str, handle: int, owner: int, lock: Lock) -> Maybe[None]:
        """Set a lock, or remove some; raises EAGAIN."""
        raise unanswered()

    def flock(self, path: str, handle: int, owner: int, operation: int) -> Maybe[None]:
        """Lock a whole file; raises EAGAIN."""
        raise unanswered()

    # --- what the guest is told: as in `Filesystem`; a path that it does not know is nothing to forget ---

    _guest: PathNodes | None = None

    def invalidate_inode(self, path: str, attributes_only: bool = False) -> bool:
        """Have the guest's kernel ask for attributes and data again."""
        return self._notifier is not None and (
            self._guest is None or self._guest.tell_inode(path, self._notifier, attributes_only)
        )

    def invalidate_entry(self, path: str, deleted: bool = False) -> bool:
        """Have it ask for a name again; `deleted`: it was removed."""
        return self._notifier is not None and (
            self._guest is None or self._guest.tell_entry(path, self._notifier, deleted)
        )

    def notify_store(self, path: str, offset: int, data: bytes) -> bool:
        """Give it data of a file that it has not asked for."""
        return self._notifier is not None and (
            self._guest is None or self._guest.tell_data(path, self._notifier, offset, data)
        )

    def implemented(self) -> frozenset[str]:
        """The operations this file system has a method for."""
        return overridden(type(self), PathFilesystem)


class Node:
    """A file that the guest knows: its name in its parent, None when it has none any more."""

    __slots__ = ("children", "handles", "lookups", "name", "number", "parent")

    def __init__(self, number: int, parent: Node | None, name: bytes | None):
        self.number = number
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.handles: list[int] = []  # it is open by these
        self.children: dict[bytes, Node] = {}


class PathNodes(Filesystem):
    """Serves a `PathFilesystem` to a guest that speaks of nodes.  `awaiting`: who waits for its `async def` methods."""

    def __init__(self, paths: PathFilesystem, awaiting: Awaiting | None):
        self._paths = paths
        paths._guest = self
        self._awaiting = awaiting
        self._lock = threading.Lock()  # over all nodes; held for no call of a method
        self._nodes: dict[int, Node] = {}
        self._open = 0  # handles of all nodes
        self._next = ROOT
        self._begin()

    def implemented(self) -> frozenset[str]:
        return self._paths.implemented() | {"lookup", "forget"}

    def reset(self) -> None:
        with self._lock:
            self._begin()
        self._paths.reset()

    # --- nodes ---

    def _begin(self) -> None:
        self._nodes = {ROOT: Node(ROOT, None, b"")}
        self._open = 0
        # Numbers are never used again, not even by the next session.
        self._next += 1

    def _node(self, number: int) -> Node:
        node = self._nodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def _path(self, number: int, name: bytes | None = None, handle: int | None = None) -> str:
        """The path of a node, or of a name in it; "" for a nameless one that is asked about by handle."""
        names = [] if name is None else [name]
        with self._lock:
            node: Node = self._node(number)
            while node.parent is not None:
                if node.name is None:
                    if handle is not None and name is None:
                        return ""
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                names.append(node.name)
                node = node.parent
            if node.number != ROOT:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return "/" + os.fsdecode(b"/".join(reversed(names)))

    def _target(self, number: int, handle: int | None) -> tuple[str, int | None]:
        """Path and handle of a node that may have lost its name: fstat(2) comes without the handle."""
        with self._lock:
            node = self._node(number)
            if handle is None and node.name is None and node.handles:
                handle = node.handles[0]
        return self._path(number, None, handle), handle

    def _check_open(self) -> None:
        if self._open >= MOST_OPEN:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def _opened(self, number: int, found: int | Opened) -> int | Opened:
        """Note by which handle a node is open."""
        with self._lock:
            node = self._nodes.get(number)
            if node is not None:
                node.handles.append(found.handle if isinstance(found, Opened) else found)
                self._open += 1
        return found

    def _entry(self, parent: int, name: bytes) -> Entry:
        """The entry of a name that is there; counts a lookup."""
        attributes = self._result(self._paths.getattr(self._path(parent, name), None))
        if not isinstance(attributes, Attributes):
            raise TypeError(f"getattr returns Attributes, not {attributes!r}")
        with self._lock:
            above = self._node(parent)
            node = above.children.get(name)
            if node is None:
                if len(self._nodes) >= MOST_NODES:
                    raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
                node = above.children[name] = Node(self._next, above, name)
                self._nodes[node.number] = node
                self._next += 1
            node.lookups += 1
        return Entry(node.number, attributes, self._paths.valid)

    def _detach(self, parent: int, name: bytes) -> Node | None:
        """Take the name from the node that has it; under the lock."""
        above = self._nodes.get(parent)
        node = above.children.pop(name, None) if above is not None else None
        if node is not None:
            node.name = None
        return node

    def _attach(self, node: Node | None, parent: int, name: bytes) -> None:
        """Give a node a name, in place of whatever had it; under the lock.

        Not below itself: a race of two renames could lead there.
        """
        self._detach(parent, name)
        above = self._nodes.get(parent)
        ancestor = above
        while ancestor is not None and ancestor is not node:
            ancestor = ancestor.parent
        if node is not None and above is not None and ancestor is None:
            old, node.parent, node.name = node.parent, above, name
            above.children[name] = node
            if old is not None:
                self._drop(old)

    def _find(self, path: str) -> Node | None:
        """The node of a path that the guest knows; under the lock."""
        node: Node | None = self._nodes[ROOT]
        for name in filter(None, os.fsencode(path).split(b"/")):
            node = node.children.get(name) if node is not None else None
        return node

    def tell_inode(self, path: str, notifier: Notifier, attributes_only: bool) -> bool:
        with self._lock:
            node = self._find(path)
        return node is None or notifier.inode(node.number, attributes_only)

    def tell_entry(self, path: str, notifier: Notifier, deleted: bool) -> bool:
        above, _, name = path.rpartition("/")
        with self._lock:
            parent = self._find(above)
            known = self._find(path) if deleted else None
            if deleted and known is not None and parent is not None:
                self._detach(parent.number, os.fsencode(name))
        if parent is None:
            return True
        return notifier.entry(parent.number, os.fsencode(name), known.number if known is not None else 0)

    def tell_data(self, path: str, notifier: Notifier, offset: int, data: bytes) -> bool:
        with self._lock:
            node = self._find(path)
        return node is None or notifier.store(node.number, offset, data)

    def _drop(self, node: Node) -> None:
        """Forget a node that neither the guest knows nor one below it, and those above for which that was all."""
        while not node.lookups and not node.children and node.parent is not None:
            above = node.parent
            self._nodes.pop(node.number, None)
            if node.name is not None and above.children.get(node.name) is node:
                del above.children[node.name]
            node = above

    def _result(self, found: Any) -> Any:
        if self._awaiting is not None and (hasattr(found, "__await__") or hasattr(found, "__aiter__")):
            return self._awaiting.result(found)
        return found

    # --- operations ---

    def lookup(self, parent: int, name: bytes) -> Entry:
        return self._entry(parent, name)

    def forget(self, node: int, lookups: int) -> None:
        with self._lock:
            known = self._nodes.get(node)
            if known is not None:
                known.lookups = max(0, known.lookups - lookups)
                self._drop(known)

    def getattr(self, node: int, handle: int | None) -> Maybe[Attributes]:
        return self._paths.getattr(*self._target(node, handle))

    def setattr(self, node: int, changes: Changes, handle: int | None) -> Maybe[Attributes]:
        path, handle = self._target(node, handle)
        self._result(self._paths.setattr(path, changes, handle))
        return self._paths.getattr(path, handle)

    def readlink(self, node: int) -> bytes:
        return os.fsencode(self._result(self._paths.readlink(self._path(node))))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        self._result(self._paths.symlink(self._path(parent, name), os.fsdecode(target), caller))
        return self._entry(parent, name)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        self._result(self._paths.mknod(self._path(parent, name), mode, rdev, caller))
        return self._entry(parent, name)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        self._result(self._paths.mkdir(self._path(parent, name), mode, caller))
        return self._entry(parent, name)

    def unlink(self, parent: int, name: bytes) -> None:
        self._result(self._paths.unlink(self._path(parent, name)))
        with self._lock:
            self._detach(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self._result(self._paths.rmdir(self._path(parent, name)))
        with self._lock:
            self._detach(parent, name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        path, new = self._path(parent, name), self._path(new_parent, new_name)
        # A guest's kernel never asks for that; here it would make a ring of nodes.
        if new.startswith(path + "/") or path.startswith(new + "/"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._result(self._paths.rename(path, new, flags))
        with self._lock:
            moved = self._detach(parent, name)
            other = self._detach(new_parent, new_name)
            self._attach(moved, new_parent, new_name)
            if flags & 2:  # RENAME_EXCHANGE
                self._attach(other, parent, name)

    def link(self, node: int, new_parent: int, new_name: bytes) -> Entry:
        self._result(self._paths.link(self._path(node), self._path(new_parent, new_name)))
        return self._entry(new_parent, new_name)

    def access(self, node: int, mask: int, caller: Caller) -> Maybe[None]:
        return self._paths.access(self._path(node), mask, caller)

    def statfs(self, node: int) -> Maybe[Statistics]:
        return self._paths.statfs(self._path(node))

    def setxattr(self, node: int, name: bytes, value: bytes, flags: int) -> Maybe[None]:
        return self._paths.setxattr(self._path(node), os.fsdecode(name), value, flags)

    def getxattr(self, node: int, name: bytes) -> Maybe[Buffer]:
        return self._paths.getxattr(self._path(node), os.fsdecode(name))

    def listxattr(self, node: int) -> list[bytes]:
        return [os.fsencode(name) for name in self._result(self._paths.listxattr(self._path(node)))]

    def removexattr(self, node: int, name: bytes) -> Maybe[None]:
        return self._paths.removexattr(self._path(node), os.fsdecode(name))

    def open(self, node: int, flags: int) -> int | Opened:
        self._check_open()
        return self._opened(node, self._result(self._paths.open(self._path(node), flags)))

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, int | Opened]:
        self._check_open()
        opened = self._result(self._paths.create(self._path(parent, name), flags, mode, caller))
        entry = self._entry(parent, name)
        return entry, self._opened(entry.node, opened)

    def read(self, node: int, handle: int, offset: int, size: int) -> Maybe[Buffer]:
        return self._paths.read(self._path(node, None, handle), handle, offset, size)

    def write(self, node: int, handle: int, offset: int, data: memoryview) -> Maybe[int]:
        return self._paths.write(self._path(node, None, handle), handle, offset, data)

    def flush(self, node: int, handle: int) -> Maybe[None]:
        return self._paths.flush(self._path(node, None, handle), handle)

    def release(self, node: int, handle: int) -> Maybe[None]:
        with self._lock:
            known = self._nodes.get(node)
            if known is not None and handle in known.handles:
                known.handles.remove(handle)
                self._open -= 1
        return self._paths.release(self._path(node, None, handle), handle)

    def fsync(self, node: int, handle: int, datasync: bool) -> Maybe[None]:
        return self._paths.fsync(self._path(node, None, handle), handle, datasync)

    def fallocate(self, node: int, handle: int, mode: int, offset: int, length: int) -> Maybe[None]:
        return self._paths.fallocate(self._path(node, None, handle), handle, mode, offset, length)

    def lseek(self, node: int, handle: int, offset: int, whence: int) -> Maybe[int]:
        return self._paths.lseek(self._path(node, None, handle), handle, offset, whence)

    def bmap(self, node: int, block: int, block_size: int) -> Maybe[int]:
        return self._paths.bmap(self._path(node), block, block_size)

    def opendir(self, node: int) -> Maybe[int | Opened]:
        return self._paths.opendir(self._path(node))

    def readdir(self, node: int, handle: int) -> Iterable[tuple[bytes, int]]:
        for found in self._result(self._paths.readdir(self._path(node, None, handle), handle)):
            name, mode = (found, 0) if isinstance(found, str) else found
            yield os.fsencode(name), mode

    def releasedir(self, node: int, handle: int) -> Maybe[None]:
        return self._paths.releasedir(self._path(node, None, handle), handle)

    def fsyncdir(self, node: int, handle: int, datasync: bool) -> Maybe[None]:
        return self._paths.fsyncdir(self._path(node, None, handle), handle, datasync)

    def syncfs(self, node: int) -> Maybe[None]:
        return self._paths.syncfs(self._path(node))

    def copy_file_range(
        self, node: int, handle: int, offset: int, to_node: int, to_handle: int, to_offset: int, size: int
    ) -> Maybe[int]:
        path, to_path = self._path(node, None, handle), self._path(to_node, None, to_handle)
        return self._paths.copy_file_range(path, handle, offset, to_path, to_handle, to_offset, size)

    def ioctl(
        self, node: int, handle: int, command: int, data: bytes, room: int
    ) -> Maybe[bytes | tuple[int, bytes]]:
        return self._paths.ioctl(self._path(node, None, handle), handle, command, data, room)

    def poll(self, node: int, handle: int, events: int, wake: int | None) -> Maybe[int]:
        return self._paths.poll(self._path(node, None, handle), handle, events, wake)

    def getlk(self, node: int, handle: int, owner: int, lock: Lock) -> Maybe[Lock | None]:
        return self._paths.getlk(self._path(node, None, handle), handle, owner, lock)

    def setlk(self, node: int, handle: int, owner: int, lock: Lock) -> Maybe[None]:
        return self._paths.setlk(self._path(node, None, handle), handle, owner, lock)

    def flock(self, node: int, handle: int, owner: int, operation: int) -> Maybe[None]:
        return self._paths.flock(self._path(node, None, handle), handle, owner, operation)

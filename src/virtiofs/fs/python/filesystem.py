# SPDX-License-Identifier: Apache-2.0
"""The class to derive from: one method for each operation of the FUSE protocol, each with its contract.

A class has the methods it wants, `def` or `async def`; one that is absent is answered with ENOSYS, and Linux then
does without.  An error is an `OSError` with its errno.  Any other exception, and a result that makes no sense, is
logged with the request and is EIO for the guest.

`def` methods run on threads of the worker's pool, several at once: `threads` of them, so state that several change
needs a lock.  With `threads = 0` there is no pool: each method runs on the thread that took the request, which is
quicker for those that never wait and holds up all others where one does.  `async def` methods run on one event
loop, each holding one of the threads until it is done, and run by whichever of them; a guest's INTERRUPT cancels
them.

Node ids: the guest names files by numbers that the file system gives out in `lookup` and in whatever makes a file; the
root is 1.  Each `Entry` that was returned counts one lookup of its node, and `forget` takes lookups back.  A node id
means its file until that count is 0, though the file may have no name any more; only then may it be used again, and
then with another `generation`.

docs/writing-a-file-system.md tells the rest.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterable, Awaitable, Collection, Iterable
from typing import TypeAlias, TypeVar

from virtiofs.fs.python.replies import Attributes, Caller, Changes, Entry, Lock, Opened, Statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.fs.python.notifying import Notifier

Result = TypeVar("Result")
# What a method may return: a result, or in an `async def` the promise of one.
Maybe: TypeAlias = Result | Awaitable[Result]
# A name, the mode (of which the type counts) and, if it is known, the inode number.
DirectoryEntry: TypeAlias = tuple[bytes, int] | tuple[bytes, int, int]
Buffer: TypeAlias = bytes | bytearray | memoryview

ROOT = 1


def unanswered() -> OSError:
    """What an operation that is absent raises."""
    return OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


class Life:
    """What every file system has besides its operations: what it needs, and when it begins and ends."""

    needs: Collection[str] = frozenset()
    """What the walls around the process that serves must leave open: "network", and the absolute path of one directory,
    which becomes its root.  Without one it sees an empty root directory.  "files" in place of a directory: all files of
    the host, to read as the user may, for libraries that open and import what they like.  `__init__` may set it.
    """

    threads: int = 8
    """How many methods run at a time, 0 to 64.  0: on the thread that takes the requests; each queue has one."""

    read_only: bool | None = None
    """Refuse changes with EROFS before any method is called.  None: if no method that changes something is there."""

    patience: float = 10.0
    """Seconds that methods may still take when the guest resets the device; then it loses the device, in place of
    waiting for ever.
    """

    loop: str | None = None
    """The event loop that runs what methods return to await: "asyncio" or "trio".  None: asyncio, if there is a method
    that is `async def`.
    """

    birth_times: bool = False
    """`Attributes.btime_ns` says when files were made; the guest then asks for attributes once more for statx(2)."""

    _notifier: Notifier | None = None

    def start(self, directory: str) -> None:
        """Called once in the process that serves, inside its walls, before the first request.

        `directory`: where the directory of `needs` is seen there; "" without one.  `__init__` was called outside the
        walls, in another process: what it opened stays open here, but threads and connections begin here.
        What this raises ends the process with that message.
        """

    def reset(self) -> None:
        """The guest has nothing any more, no node but the root and no handle: a session begins, or has ended.

        May be called several times, and while other methods are still running.
        """

    def close(self) -> None:
        """The last call, when the process that serves ends."""

    def asked_by(self, caller: Caller) -> None:
        """Called before each method on the same thread, if it is there: who asks, for methods that are not told."""

    def notify_poll(self, wake: int) -> bool:
        """Something happened to the file of which `poll` was told `wake`.  Whether a carrier delivers it."""
        return self._notifier is not None and self._notifier.poll(wake)


class Filesystem(Life):
    """A tree for a guest, by node ids.  `handle`: what `open`, `create` or `opendir` returned (0 without them)."""

    # --- names ---

    def lookup(self, parent: int, name: bytes) -> Maybe[Entry]:
        """The file `name` (1 to 255 bytes, no "/", not "." or "..") in the directory `parent`.

        Raises ENOENT, or returns `Entry.absent(seconds)` to have the guest remember that.  ESTALE for a node that is
        no more.  `Entry.valid` is how long the name is trusted, `Attributes.valid` how long the attributes are.
        """
        raise unanswered()

    def forget(self, node: int, lookups: int) -> None:
        """The guest takes back so many lookups of `node`.  Nobody hears what this raises, but the log.

        It runs at once, whatever the other methods are doing, so it must not wait for them.
        """
        raise unanswered()

    def readlink(self, node: int) -> Maybe[bytes]:
        """What a symbolic link holds, at most 4095 bytes."""
        raise unanswered()

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Maybe[Entry]:
        """Make a symbolic link.  Raises EEXIST."""
        raise unanswered()

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Maybe[Entry]:
        """Make a file of any kind but a directory or link; `mode` has its type, and the umask is applied.

        Without `create`, the guest makes regular files by this and `open`.  Raises EEXIST.
        """
        raise unanswered()

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Maybe[Entry]:
        """Make a directory with these permission bits.  Raises EEXIST."""
        raise unanswered()

    def unlink(self, parent: int, name: bytes) -> Maybe[None]:
        """Remove a name that is no directory's.  The file stays while its node has lookups.  Raises ENOENT."""
        raise unanswered()

    def rmdir(self, parent: int, name: bytes) -> Maybe[None]:
        """Remove an empty directory.  Raises ENOENT, ENOTEMPTY."""
        raise unanswered()

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> Maybe[None]:
        """Give a file another name, in place of what has that now: unless it is a directory with entries (ENOTEMPTY).

        `flags`: of renameat2(2), 1 RENAME_NOREPLACE (EEXIST), 2 RENAME_EXCHANGE; raise EINVAL for others.
        The guest's kernel has checked that a directory does not move into itself, and that types fit; a hostile guest
        has not, and must harm nobody but itself by that.
        """
        raise unanswered()

    def link(self, node: int, new_parent: int, new_name: bytes) -> Maybe[Entry]:
        """Give a file one more name: the Entry of `node`, which counts a lookup.  Raises EEXIST."""
        raise unanswered()

    # --- attributes ---

    def getattr(self, node: int, handle: int | None) -> Maybe[Attributes]:
        """The attributes of a node.  `handle`: of the open file through which the guest asks, if there is one.

        Without it nothing works.  The guest checks permissions itself, by mode, uid and gid.
        """
        raise unanswered()

    def setattr(self, node: int, changes: Changes, handle: int | None) -> Maybe[Attributes]:
        """Change what is not None in `changes`; the attributes after that.

        truncate(2) comes here, and O_TRUNC: the guest never passes that to `open`.  Whoever asks may do it: the
        guest's kernel has checked, and takes set-id bits away by asking for a `mode` without them.
        """
        raise unanswered()

    def access(self, node: int, mask: int, caller: Caller) -> Maybe[None]:
        """Whether `caller` may (os.R_OK | os.W_OK | os.X_OK); raises EACCES.  Linux asks only where it does not check
        permissions itself, which is not the case on virtio-fs.
        """
        raise unanswered()

    def statfs(self, node: int) -> Maybe[Statistics]:
        """Room and number of files.  If absent, all is 0."""
        raise unanswered()

    def setxattr(self, node: int, name: bytes, value: bytes, flags: int) -> Maybe[None]:
        """Set an extended attribute of 0 to 65536 bytes.

        `flags`: os.XATTR_CREATE (raise EEXIST), os.XATTR_REPLACE (ENODATA).
        """
        raise unanswered()

    def getxattr(self, node: int, name: bytes) -> Maybe[Buffer]:
        """The value of an extended attribute.  Raises ENODATA.  Called before each write(2), for security.capability:
        if absent, the guest stops asking.
        """
        raise unanswered()

    def listxattr(self, node: int) -> Maybe[Iterable[bytes]]:
        """The names of all extended attributes."""
        raise unanswered()

    def removexattr(self, node: int, name: bytes) -> Maybe[None]:
        """Remove an extended attribute.  Raises ENODATA."""
        raise unanswered()

    # --- files ---

    def open(self, node: int, flags: int) -> Maybe[int | Opened]:
        """Open a file: a handle, a number of your choice (0 to 2**64 - 1), or an `Opened`.

        `flags`: of open(2), without O_CREAT, O_EXCL and O_TRUNC.  If absent, files are opened without a call, with
        handle 0, and data that the guest keeps is dropped at each open.
        """
        raise unanswered()

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, caller: Caller
    ) -> Maybe[tuple[Entry, int | Opened]]:
        """Make a regular file and open it: its Entry, and what `open` would return.

        `flags` has O_EXCL if it must be new.  If absent: `mknod`, then `open`.
        """
        raise unanswered()

    def tmpfile(
        self, parent: int, flags: int, mode: int, caller: Caller
    ) -> Maybe[tuple[Entry, int | Opened]]:
        """Make a regular file without a name in the file system of `parent`, and open it (O_TMPFILE)."""
        raise unanswered()

    def read(self, node: int, handle: int, offset: int, size: int) -> Maybe[Buffer]:
        """Bytes `offset` to `offset + size` (at most a mebibyte); fewer only at the end of the file."""
        raise unanswered()

    def write(self, node: int, handle: int, offset: int, data: memoryview) -> Maybe[int]:
        """Write `data` at `offset`: how many bytes.  `data` is over when the method returns: copy what you keep.

        mtime and ctime are for you to set.  With O_APPEND the guest gives the end of the file as `offset`.
        """
        raise unanswered()

    def flush(self, node: int, handle: int) -> Maybe[None]:
        """A descriptor of the open file was closed, perhaps not the last; what this raises is what close(2) says."""
        raise unanswered()

    def release(self, node: int, handle: int) -> Maybe[None]:
        """The open file is over: the last call with `handle`.  Nobody hears an error."""
        raise unanswered()

    def fsync(self, node: int, handle: int, datasync: bool) -> Maybe[None]:
        """Return when what was written is safe; `datasync`: attributes need not be."""
        raise unanswered()

    def fallocate(self, node: int, handle: int, mode: int, offset: int, length: int) -> Maybe[None]:
        """Reserve or free a part of a file; `mode` as in fallocate(2); raise EOPNOTSUPP for one you do not know."""
        raise unanswered()

    def lseek(self, node: int, handle: int, offset: int, whence: int) -> Maybe[int]:
        """The next data (os.SEEK_DATA) or hole (os.SEEK_HOLE) from `offset` on; ENXIO behind the end.  If absent,
        files have no holes.
        """
        raise unanswered()

    def bmap(self, node: int, block: int, block_size: int) -> Maybe[int]:
        """Where block number `block` of a file lies on the device that holds the file system, in blocks of `block_size`
        bytes; 0 for a hole (ioctl FIBMAP).  Linux asks only where a block device is mounted (its fuse_bmap),
        so over virtio and for `virtiofs mount` never; other drivers may.
        """
        raise unanswered()

    # --- directories ---

    def opendir(self, node: int) -> Maybe[int | Opened]:
        """Open a directory, as `open` does a file.  If absent, its handle is 0."""
        raise unanswered()

    def readdir(
        self, node: int, handle: int
    ) -> Maybe[Iterable[DirectoryEntry]] | AsyncIterable[DirectoryEntry]:
        """All entries: yields (name, mode), or (name, mode, inode number); "." and ".." are added.

        Called when a listing begins, or begins anew: what it yields then is what the guest reads, in this order,
        however many requests that takes.  Where the guest wants the attributes, too (READDIRPLUS), `lookup` is called
        for each name, and counts.
        """
        raise unanswered()

    def releasedir(self, node: int, handle: int) -> Maybe[None]:
        """The open directory is over: the last call with `handle`."""
        raise unanswered()

    def fsyncdir(self, node: int, handle: int, datasync: bool) -> Maybe[None]:
        """Return when changes of the directory are safe."""
        raise unanswered()

    def syncfs(self, node: int) -> Maybe[None]:
        """Return when all that was written is safe (syncfs(2))."""
        raise unanswered()

    def copy_file_range(
        self, node: int, handle: int, offset: int, to_node: int, to_handle: int, to_offset: int, size: int
    ) -> Maybe[int]:
        """Copy `size` bytes at `offset` to `to_offset` of another open file, or of the same: how many.

        If absent, or with EOPNOTSUPP, the guest reads and writes.
        """
        raise unanswered()

    def ioctl(
        self, node: int, handle: int, command: int, data: bytes, room: int
    ) -> Maybe[bytes | tuple[int, bytes]]:
        """ioctl(2) on an open file or directory: at most `room` bytes, or what it returns, and these.

        `command` says by its bits (_IOC of <linux/ioctl.h>) what `data` holds and what room there is; a pointer in
        `data` means nothing here.  Raise ENOTTY for those you do not know.
        """
        raise unanswered()

    def poll(self, node: int, handle: int, events: int, wake: int | None) -> Maybe[int]:
        """Which of `events` (select.POLLIN, ...) an open file is ready for.

        `wake`: somebody waits; call `notify_poll(wake)` once when that may have changed.  If absent, files are always
        ready.
        """
        raise unanswered()

    # --- locks ---
    # If absent, locks are kept by the guest's kernel, which for a file system of one guest is as good.

    def getlk(self, node: int, handle: int, owner: int, lock: Lock) -> Maybe[Lock | None]:
        """A lock of somebody else that is in the way of `lock`, or None (fcntl(2), F_GETLK)."""
        raise unanswered()

    def setlk(self, node: int, handle: int, owner: int, lock: Lock) -> Maybe[None]:
        """Set `lock` for `owner`, in place of the owner's others on these bytes; of kind F_UNLCK: remove them.

        Raises EAGAIN (`BlockingIOError`) if a lock of somebody else is in the way.  It is called on the thread that
        takes requests and must not wait: for a program that waits (F_SETLKW) it is called again from time to time,
        until it succeeds or the program is interrupted.  When a descriptor is closed, it is called to remove all that
        its owner has.
        """
        raise unanswered()

    def flock(self, node: int, handle: int, owner: int, operation: int) -> Maybe[None]:
        """Lock a whole file: fcntl.LOCK_SH, LOCK_EX or LOCK_UN.  As `setlk`; the owner is the open file."""
        raise unanswered()

    # --- what the guest is told ---
    # False: nobody can deliver it.  /dev/fuse can; over virtio the device must have a notification queue.  They never
    # wait, and may be called from any thread and inside a method.

    def invalidate_inode(self, node: int, attributes_only: bool = False) -> bool:
        """Have the guest's kernel ask for attributes and data of a node again, whatever it was promised."""
        return self._notifier is not None and self._notifier.inode(node, attributes_only)

    def invalidate_entry(self, parent: int, name: bytes, deleted: int = 0) -> bool:
        """Have it ask for a name again, which may be there now or not any more.

        `deleted`: this node had the name and was removed, which programs that watch it (inotify) hear.
        """
        return self._notifier is not None and self._notifier.entry(parent, name, deleted)

    def notify_store(self, node: int, offset: int, data: bytes) -> bool:
        """Give it data of a file (at most a mebibyte) that it has not asked for, to keep as if it had."""
        return self._notifier is not None and self._notifier.store(node, offset, data)

    # --- what is there ---

    def implemented(self) -> frozenset[str]:
        """The operations this file system has a method for."""
        return overridden(type(self), Filesystem)


def overridden(cls: type, base: type) -> frozenset[str]:
    """The operations that `cls` does otherwise than `base`, where they are absent."""
    known = (name for name in OPERATIONS if hasattr(base, name))
    return frozenset(name for name in known if getattr(cls, name) is not getattr(base, name))


# Those that change something.
CHANGING = frozenset(
    (
        *("symlink", "mknod", "mkdir", "unlink", "rmdir", "rename", "link", "setattr", "setxattr"),
        *("removexattr", "create", "tmpfile", "write", "fallocate", "copy_file_range"),
    )
)
OPERATIONS = CHANGING | {
    *("lookup", "forget", "readlink", "getattr", "access", "statfs", "getxattr", "listxattr", "open", "read"),
    *("flush", "release", "fsync", "lseek", "opendir", "readdir", "releasedir", "fsyncdir", "syncfs"),
    *("ioctl", "poll", "getlk", "setlk", "flock", "bmap"),
}

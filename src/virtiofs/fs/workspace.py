# SPDX-License-Identifier: Apache-2.0
"""A workspace: what a guest changed of a directory, kept beside it, to be looked at, kept or thrown away.

The kernel's overlayfs does the work while the share is served: the directory is the lower layer and stays as it is,
the workspace's `upper` takes every change.  Afterwards this module reads `upper`: a whiteout (a character device 0/0)
stands for a removed name, the attribute trusted.overlay.opaque for a directory of which nothing below counts, anything
else for itself.  Source: Documentation/filesystems/overlayfs.rst.

    WORKSPACE/
      lower      the path of the directory, as text
      lock       locked (flock) while the workspace is in use
      upper/     what was changed
      work/      the kernel's
      merged/    where both are mounted, in the daemon's mount namespace only
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["ADDED", "CHANGED", "REMOVED", "Change", "Workspace", "WorkspaceError"]

ADDED, CHANGED, REMOVED = "added", "changed", "removed"
_OPAQUE = "trusted.overlay.opaque"
_OURS = "trusted.overlay."  # attributes of the upper layer that mean something to overlayfs only
_CHUNK = 1 << 20


class WorkspaceError(ValueError):
    """A workspace that cannot be used so; the text says why and what to do."""


class Change(NamedTuple):
    """`kind` is ADDED, CHANGED or REMOVED, `path` relative to the directory, `mode` type and bits (0: removed)."""

    kind: str
    path: bytes
    mode: int


class Workspace:
    """A workspace on disk, locked as long as this object is open.

    `directory` names the directory below it; None: the one it was made for.  `create`: make the workspace if it is not
    there.  Raises `WorkspaceError` for what is no workspace, is one of another directory, or is in use; `OSError`.
    """

    def __init__(self, path: str, directory: str | None = None, create: bool = False) -> None:
        self.path = os.path.realpath(path)
        self.upper, self.work, self.merged = (
            os.path.join(self.path, name) for name in ("upper", "work", "merged")
        )
        record = os.path.join(self.path, "lower")
        if not os.path.exists(record):
            if not create or directory is None:
                raise WorkspaceError(
                    f"{path} is no workspace; `virtiofs run --rootfs DIR --workspace {path}` makes one"
                )
            self._make(os.path.realpath(directory), record)
        with open(record, "rb") as file:
            self.directory = os.fsdecode(file.read())
        if directory is not None and os.path.realpath(directory) != self.directory:
            raise WorkspaceError(f"{path} is a workspace of {self.directory}; name another for {directory}")
        self._lock = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise WorkspaceError(f"the workspace {path} is in use; end the guest that has it first") from None

    def close(self) -> None:
        """Let others use it."""
        os.close(self._lock)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def changes(self) -> Iterator[Change]:
        """What differs from the directory, in the order of paths: a directory before what is in it.

        Of a file that was written the whole file counts as changed.  Raises `OSError`.
        """
        yield from self._changes(b"", _is_opaque(os.fsencode(self.upper)), True)

    def commit(self, progress: Callable[[Change], object] = lambda change: None) -> int:
        """Make the directory what the guest saw, and the workspace empty.  Returns the number of changes.

        Each file takes its place in one step (rename), with owner, mode, times and attributes.  It can be
        repeated after a failure: nothing is taken out of the workspace before all is done.  Raises `OSError`.
        """
        count = 0
        times: list[tuple[bytes, bytes]] = []
        links: dict[tuple[int, int], bytes] = {}
        for change in self.changes():
            progress(change)
            count += 1
            source, target = self._above(change.path), self._below(change.path)
            if change.kind == REMOVED:
                _remove(target)
            elif stat.S_ISDIR(change.mode):
                _take_directory(source, target)
                times.append((source, target))
            else:
                _take_file(source, target, links)
        for source, target in reversed(times):  # last, as what is put into a directory changes its times
            _take_metadata(source, target)
        self.discard()
        return count

    def discard(self) -> None:
        """Throw away what was changed.  Raises `OSError`."""
        for place in (self.upper, self.work):
            shutil.rmtree(place)
        self._layers()

    def _make(self, directory: str, record: str) -> None:
        if not os.path.isdir(directory):
            raise WorkspaceError(f"there is no directory {directory} to make a workspace of")
        inside = os.path.join(directory, "")
        if os.path.join(self.path, "").startswith(inside) or inside.startswith(os.path.join(self.path, "")):
            raise WorkspaceError(
                f"a workspace and its directory lie side by side: {self.path} and {directory} do not"
            )
        if os.path.isdir(self.path) and os.listdir(self.path):
            raise WorkspaceError(
                f"{self.path} is not empty; name a directory that is, or one that is not there yet"
            )
        os.makedirs(self.path, 0o700, exist_ok=True)
        self.directory = directory
        self._layers()
        os.makedirs(self.merged, exist_ok=True)
        with open(record, "xb") as file:  # last: what has it is a workspace
            file.write(os.fsencode(directory))

    def _layers(self) -> None:
        """An empty upper layer looks like the directory: the root of the share is its."""
        os.makedirs(self.work, 0o700, exist_ok=True)
        os.makedirs(self.upper, exist_ok=True)
        _take_metadata(os.fsencode(self.directory), os.fsencode(self.upper))

    def _above(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.upper), path)

    def _below(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.directory), path)

    def _changes(self, path: bytes, replaced: bool, known: bool) -> Iterator[Change]:
        """The changes in one directory and below.

        `replaced`: what the lower layer has there counts no more; `known`: it has a directory there.  Else it may have
        a symbolic link, which nothing here may follow.
        """
        names = sorted(os.listdir(self._above(path)))
        if replaced:
            for name in sorted(set(os.listdir(self._below(path))) - set(names)):
                yield Change(REMOVED, os.path.join(path, name), 0)
        for name in names:
            here = os.path.join(path, name)
            found = os.lstat(self._above(here))
            below = _lstat(self._below(here)) if known else None
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                if below is not None:
                    yield Change(REMOVED, here, 0)
                continue
            if not stat.S_ISDIR(found.st_mode):
                yield Change(ADDED if below is None else CHANGED, here, found.st_mode)
                continue
            opaque = _is_opaque(self._above(here))
            kept = below is not None and stat.S_ISDIR(below.st_mode)
            if below is not None and not kept:
                yield Change(REMOVED, here, 0)
            # One that is there only because something in it changed is not a change itself.
            if not kept or (below is not None and _differ(found, below)):
                yield Change(CHANGED if kept else ADDED, here, found.st_mode)
            # What is made in an opaque directory is not marked again.
            yield from self._changes(here, (opaque or replaced) and kept, kept)


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _differ(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid) != (other.st_mode, other.st_uid, other.st_gid)


def _is_opaque(path: bytes) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def _remove(path: bytes) -> None:
    found = _lstat(path)
    if found is None:
        return
    if stat.S_ISDIR(found.st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _take_directory(source: bytes, target: bytes) -> None:
    found = _lstat(target)
    if found is not None and not stat.S_ISDIR(found.st_mode):
        os.unlink(target)
        found = None
    if found is None:
        os.mkdir(target, 0o700)
    _take_metadata(source, target)


def _take_file(source: bytes, target: bytes, links: dict[tuple[int, int], bytes]) -> None:
    """Put a copy of anything but a directory at `target`; names of one file stay names of one file."""
    found = os.lstat(source)
    temporary = os.path.join(os.path.dirname(target), b".virtiofs-" + secrets.token_hex(8).encode())
    first = links.get((found.st_dev, found.st_ino))
    try:
        if first is not None:
            os.link(first, temporary, follow_symlinks=False)
        elif stat.S_ISREG(found.st_mode):
            with open(source, "rb") as reader, open(temporary, "xb") as writer:
                _copy(reader.fileno(), writer.fileno(), found.st_size)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(source), temporary)
        else:  # pipes and sockets' names; device nodes are none a share can make
            os.mknod(temporary, found.st_mode, found.st_rdev)
        if first is None:
            _take_metadata(source, temporary)
        here = _lstat(target)
        if here is not None and stat.S_ISDIR(here.st_mode):
            shutil.rmtree(target)
        os.replace(temporary, target)
        with contextlib.suppress(FileNotFoundError):  # a link renamed onto its own file stays
            os.unlink(temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if found.st_nlink > 1:
        links[(found.st_dev, found.st_ino)] = target


def _copy(reader: int, writer: int, size: int) -> None:
    """Copy data and leave holes out."""
    os.truncate(writer, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(reader, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole to the end
                return
            raise
        end = os.lseek(reader, start, os.SEEK_HOLE)
        while start < end:
            moved = os.copy_file_range(reader, writer, min(_CHUNK, end - start), start, start)
            if moved == 0:
                return
            start += moved


def _take_metadata(source: bytes, target: bytes) -> None:
    """Owner, extended attributes, mode and times, in the order in which none undoes another."""
    found = os.lstat(source)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        wanted = {name for name in _attributes(source) if not name.startswith(_OURS)}
        for name in _attributes(target):
            if name not in wanted and not name.startswith(_OURS):
                os.removexattr(target, name, follow_symlinks=False)
        for name in sorted(wanted):
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
        os.chmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def _attributes(path: bytes) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise

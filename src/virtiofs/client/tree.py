# SPDX-License-Identifier: Apache-2.0
"""Paths over a session: what `os` does for a mounted directory, for a device without a mount.

The methods have the names, arguments and errors of `os` (a share on a mount point can be exercised by the
same code).  Paths are relative to the tree's root whether they start with "/" or not; ".." at the root stays
there, and an absolute symbolic link starts there again, as after chroot(2).

Every path is walked afresh and its nodes are given back at the end.  Where the device shows versions, the answers of
`stat`, `exists`, `listdir` and `readlink` are kept with what they rest on, and given again without a request for as
long as that is the same (versions.py); otherwise nothing is cached.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Hashable, Iterator
from types import SimpleNamespace, TracebackType
from typing import Any

from virtiofs.client.session import NS, DirectoryEntry, Session
from virtiofs.client.versions import Known
from virtiofs.fuse.abi import FUSE_ROOT_ID

MAX_LINKS = 40  # as Linux: symbolic links followed in one walk
CHUNK = 1 << 20
DIRECTORY_CHUNK = 64 << 10
MOST_KNOWN = 1 << 18  # answers that are kept

Proofs = list[tuple[int, int]]  # slots, and the words that an answer rests on


def result(attr: SimpleNamespace) -> os.stat_result:
    """Attributes (fuse_attr) as `os.stat` returns them; `st_dev` is 0."""
    times = [(attr.atime, attr.atimensec), (attr.mtime, attr.mtimensec), (attr.ctime, attr.ctimensec)]
    whole = [seconds - (1 << 64) if seconds >> 63 else seconds for seconds, _ in times]
    nanoseconds = [seconds * NS + nsec for seconds, (_, nsec) in zip(whole, times, strict=True)]
    fields = (attr.mode, attr.ino, 0, attr.nlink, attr.uid, attr.gid, attr.size, *whole)
    return os.stat_result(
        fields,
        {
            **{f"st_{name}time": ns / NS for name, ns in zip("amc", nanoseconds, strict=True)},
            **{f"st_{name}time_ns": ns for name, ns in zip("amc", nanoseconds, strict=True)},
            "st_blocks": attr.blocks,
            "st_blksize": attr.blksize,
            "st_rdev": os.makedev((attr.rdev >> 8) & 0xFFF, (attr.rdev & 0xFF) | (attr.rdev >> 12) & 0xFFF00),
        },
    )


class File:
    """An open file of a tree; a context manager.  `fh` is None if the device wants no OPEN; 0 stands for it then."""

    def __init__(self, session: Session, nodeid: int, fh: int | None, flags: int):
        self.session = session
        self.nodeid = nodeid
        self.fh = fh or 0
        self.opened = fh is not None
        self.flags = flags
        self.closed = False

    def pread(self, size: int, offset: int) -> bytes:
        """At most `size` bytes at `offset`; fewer only at the end of the file."""
        data = bytearray()
        while len(data) < size:
            wanted = min(size - len(data), self.session.max_data)
            part = self.session.read(self.nodeid, self.fh, offset + len(data), wanted, self.flags)
            data += part
            if len(part) < wanted:
                break
        return bytes(data)

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write all of `data` at `offset` (at the end with O_APPEND); the number of bytes."""
        done = 0
        while done < len(data):
            part = data[done : done + self.session.max_write]
            written = self.session.write(self.nodeid, self.fh, offset + done, part, self.flags)
            if not written:
                break
            done += written
        return done

    def fstat(self) -> os.stat_result:
        return result(self.session.getattr(self.nodeid, self.fh))

    def ftruncate(self, length: int) -> None:
        self.session.setattr(self.nodeid, size=length, fh=self.fh)

    def fsync(self, datasync: bool = False) -> None:
        self.session.fsync(self.nodeid, self.fh, datasync)

    def lseek(self, offset: int, whence: int) -> int:
        """The next data or hole (os.SEEK_DATA, os.SEEK_HOLE)."""
        return self.session.lseek(self.nodeid, self.fh, offset, whence)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        self.session.fallocate(self.nodeid, self.fh, offset, length, mode)

    def copy_to(self, other: File, count: int, offset: int, other_offset: int) -> int:
        """copy_file_range(2) to another file of the tree; bytes copied."""
        return self.session.copy_file_range(
            self.nodeid, self.fh, offset, other.nodeid, other.fh, other_offset, count
        )

    def close(self) -> None:
        """Flush and release, as close(2)."""
        if self.closed:
            return
        self.closed = True
        try:
            _optional(lambda: self.session.flush(self.nodeid, self.fh))
        finally:
            if self.opened:
                self.session.release(self.nodeid, self.fh, self.flags)
            self.session.forget(self.nodeid)

    def __enter__(self) -> File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Directory:
    """An open directory of a tree; a context manager.  `fh` as of a file."""

    def __init__(self, tree: Tree, nodeid: int, fh: int | None):
        self.tree = tree
        self.nodeid = nodeid
        self.fh = fh or 0
        self.opened = fh is not None
        self.closed = False

    def read(self, cookie: int = 0, size: int = DIRECTORY_CHUNK) -> list[DirectoryEntry]:
        """The next entries after the one whose `cookie` it is (0: from the start), "." and ".." among them.

        They take at most `size` bytes; none are left when the list is empty.
        """
        return self.tree.session.readdir(self.nodeid, self.fh, cookie, size)

    def fsync(self) -> None:
        self.tree.session.fsyncdir(self.nodeid, self.fh)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self.opened:
                self.tree.session.releasedir(self.nodeid, self.fh)
            self.tree._give(self.nodeid)

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _optional(operation: Callable[[], None]) -> None:
    """Do what a device may leave out: ENOSYS to FLUSH or SYNCFS means that there is nothing to do."""
    try:
        operation()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


def _handle(opening: Callable[[], SimpleNamespace]) -> int | None:
    """The handle that OPEN or OPENDIR answers; None for ENOSYS, which means that there is no need to open."""
    try:
        return int(opening().fh)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return None


@contextlib.contextmanager
def _naming(*paths: str) -> Iterator[None]:
    """Name the path in errors, as `os` does."""
    try:
        yield
    except OSError as error:
        if error.filename is None and not isinstance(error, (TimeoutError, ConnectionError)):
            second = (None, paths[1]) if len(paths) > 1 else ()
            code = error.errno or errno.EIO
            raise OSError(code, os.strerror(code), paths[0], *second) from None
        raise


def _components(path: str) -> list[str]:
    """The names of a path, last first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


class Tree:
    """The tree under node `root` of a session.  Raises `OSError` as `os` does, with the path.

    `table`: keep answers for as long as the device's versions say that they hold; None: if it shows any.  Raises
    `ValueError` if that is wanted and it shows none.
    """

    def __init__(self, session: Session, root: int = FUSE_ROOT_ID, table: bool | None = None):
        self.session = session
        self.root = root
        self._known: Known | None = None
        if session.versions is not None and table is not False:
            self._known = Known(session.versions, MOST_KNOWN)
        elif table:
            raise ValueError("the device shows no versions; start it with --metadata-table")

    # --- walking ---

    @contextlib.contextmanager
    def node(self, path: str, follow: bool = True) -> Iterator[int]:
        """The node id at `path`, valid inside the `with`; a symbolic link at its end only if not `follow`."""
        with _naming(path):
            nodeid = self._take(path, follow)
            try:
                yield nodeid
            finally:
                self._give(nodeid)

    @contextlib.contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The node id of the directory that holds `path`, and the last name of it."""
        directory, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        with _naming(path), self.node(directory) as nodeid:
            yield nodeid, name

    def _take(self, path: str, follow: bool = True) -> int:
        """The node id at `path`, with one lookup that `_give` returns."""
        visited: list[int] = []
        try:
            nodeid, _ = self._walk(path, follow, visited)
            if nodeid in visited:
                visited.remove(nodeid)
            return nodeid
        finally:
            self._give(*visited)

    def _give(self, *nodes: int) -> None:
        nodes = tuple(nodeid for nodeid in nodes if nodeid != self.root)
        if len(nodes) == 1:
            self.session.forget(nodes[0])
        elif nodes:
            self.session.batch_forget((nodeid, 1) for nodeid in nodes)

    def _walk(
        self, path: str, follow: bool, visited: list[int], proofs: Proofs | None = None
    ) -> tuple[int, SimpleNamespace | None]:
        """The node id at `path`, and its entry if it was just looked up; `proofs` gets what the way there rests on."""
        entry: SimpleNamespace | None = None
        rest = _components(path)
        trail = [self.root]  # the directories from the root to where we are
        links = 0
        while rest:
            name = rest.pop()
            if name == "..":
                trail = trail[:-1] or [self.root]
                continue
            try:
                entry = self.session.lookup(trail[-1], name)
            except OSError:
                if proofs is not None:
                    proofs.append((0, 0))  # nobody says what this rests on
                raise
            if proofs is not None:
                proofs.append((entry.versions.parent_slot, entry.versions.parent_word))
            if not entry.nodeid:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            visited.append(entry.nodeid)
            if stat.S_ISLNK(entry.attr.mode) and (rest or follow):
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.fsdecode(self.session.readlink(entry.nodeid))
                if target.startswith("/"):
                    trail = [self.root]
                rest += _components(target)
                continue
            if rest and not stat.S_ISDIR(entry.attr.mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            trail.append(entry.nodeid)
        return trail[-1], entry if entry is not None and entry.nodeid == trail[-1] else None

    def _look(self, path: str, follow: bool, proofs: Proofs) -> SimpleNamespace:
        """The attributes of what is at `path`; `proofs` gets all that this rests on."""
        visited: list[int] = []
        try:
            nodeid, found = self._walk(path, follow, visited, proofs)
            record = found or self.session.attributes(nodeid)
        finally:
            self._give(*visited)
        proofs.append((record.versions.slot, record.versions.word))
        attr: SimpleNamespace = record.attr
        return attr

    # --- files ---

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> File:
        """Open or, with O_CREAT, make a file; with O_TMPFILE one without a name, in the directory `path`."""
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            with self.node(path) as directory, _naming(path):
                entry, handle = self.session.tmpfile(directory, flags, mode)
            return File(self.session, entry.nodeid, handle.fh, flags & ~os.O_TMPFILE)
        with _naming(path):
            try:
                nodeid = self._take(path, follow=not flags & (os.O_NOFOLLOW | os.O_EXCL))
            except FileNotFoundError:
                if not flags & os.O_CREAT:
                    raise
                with self.parent(path) as (directory, name):
                    entry, handle = self.session.create(directory, name, flags, mode)
                return File(self.session, entry.nodeid, handle.fh, flags)
            try:
                if flags & os.O_CREAT and flags & os.O_EXCL:
                    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
                # Linux makes the same of the flags: the file is there, and its name was looked up already.
                fh = _handle(
                    lambda: self.session.open(nodeid, flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOCTTY))
                )
            except BaseException:
                self._give(nodeid)
                raise
            return File(self.session, nodeid, fh, flags)

    def read_file(self, path: str) -> bytes:
        """The whole content of a file."""
        with self.open(path) as file:
            data = bytearray()
            while part := file.pread(CHUNK, len(data)):
                data += part
            return bytes(data)

    def write_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Make `data` the whole content of a file, which is made if need be."""
        with self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as file:
            written = file.pwrite(data, 0)
            if written != len(data):
                raise OSError(errno.EIO, f"only {written} of {len(data)} bytes were written", path)

    def truncate(self, path: str, length: int) -> None:
        with self.node(path) as nodeid:
            self.session.setattr(nodeid, size=length)

    def mknod(self, path: str, mode: int = 0o600 | stat.S_IFREG, device: int = 0) -> None:
        rdev = os.minor(device) & 0xFF | os.major(device) << 8 | (os.minor(device) & ~0xFF) << 12
        with self.parent(path) as (directory, name):
            self._give(self.session.mknod(directory, name, mode, rdev).nodeid)

    def unlink(self, path: str) -> None:
        # Linux holds a node it removes or moves; QEMU's virtiofsd answers EIO for one nobody looked up.
        with self.node(path, follow=False), self.parent(path) as (directory, name):
            self.session.unlink(directory, name)

    def link(self, path: str, new: str) -> None:
        with self.node(path, follow=False) as nodeid, self.parent(new) as (directory, name):
            self._give(self.session.link(nodeid, directory, name).nodeid)

    def symlink(self, target: str, path: str) -> None:
        with self.parent(path) as (directory, name):
            self._give(self.session.symlink(directory, name, target).nodeid)

    def link_open(self, file: File, new: str) -> None:
        """Give an open file a name, as linkat(2) does with AT_EMPTY_PATH: one made with O_TMPFILE has none."""
        with self.parent(new) as (directory, name):
            self._give(self.session.link(file.nodeid, directory, name).nodeid)

    def readlink(self, path: str) -> str:
        target: str = self._answer(("link", path), path, False, lambda _: self._target(path))
        return target

    def _target(self, path: str) -> str:
        with self.node(path, follow=False) as nodeid:
            return os.fsdecode(self.session.readlink(nodeid))

    def rename(self, path: str, new: str, flags: int = 0) -> None:
        """Rename; `flags` as renameat2(2) takes them."""
        with contextlib.ExitStack() as held:
            held.enter_context(self.node(path, follow=False))
            with contextlib.suppress(FileNotFoundError):
                held.enter_context(self.node(new, follow=False))
            old_parent, name = held.enter_context(self.parent(path))
            new_parent, new_name = held.enter_context(self.parent(new))
            with _naming(path, new):
                self.session.rename(old_parent, name, new_parent, new_name, flags or None)

    # --- directories ---

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        with self.parent(path) as (directory, name):
            self._give(self.session.mkdir(directory, name, mode).nodeid)

    def rmdir(self, path: str) -> None:
        with self.node(path, follow=False), self.parent(path) as (directory, name):
            self.session.rmdir(directory, name)

    def opendir(self, path: str = "/") -> Directory:
        """An open directory, to be listed bit by bit."""
        with _naming(path):
            nodeid = self._take(path)
            try:
                return Directory(self, nodeid, _handle(lambda: self.session.opendir(nodeid)))
            except BaseException:
                self._give(nodeid)
                raise

    def scan(self, path: str = "/") -> list[DirectoryEntry]:
        """The entries of a directory with their types and cookies, "." and ".." left out."""
        entries: list[DirectoryEntry] = []
        with self.opendir(path) as directory:
            while part := directory.read(entries[-1].cookie if entries else 0):
                entries += part
        return [entry for entry in entries if entry.name not in (b".", b"..")]

    def listdir(self, path: str = "/") -> list[str]:
        """The names in a directory, in its order."""
        return list(self._answer(("names", path), path, True, lambda _: self._names(path)))

    def _names(self, path: str) -> tuple[str, ...]:
        return tuple(os.fsdecode(entry.name) for entry in self.scan(path))

    def walk(self, path: str = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`, top down, links not followed: path, directories, other names."""
        entries = self.scan(path)
        directories = [os.fsdecode(e.name) for e in entries if e.type == stat.S_IFDIR >> 12]
        yield path, directories, [os.fsdecode(e.name) for e in entries if e.type != stat.S_IFDIR >> 12]
        for name in directories:
            yield from self.walk(path.rstrip("/") + "/" + name)

    # --- attributes ---

    def stat(self, path: str, follow_symlinks: bool = True) -> os.stat_result:
        known = self._known
        if known is None:
            with self.node(path, follow_symlinks) as nodeid:
                return result(self.session.getattr(nodeid))
        key = path if follow_symlinks else ("itself", path)
        found = known.get(key)
        if found.__class__ is os.stat_result:
            return found
        status: os.stat_result = self._answer(key, path, follow_symlinks, result)
        return status

    def _answer(self, key: Hashable, path: str, follow: bool, make: Callable[[SimpleNamespace], Any]) -> Any:
        """What is known under `key`, or what `make` makes of the attributes of what is at `path`."""
        known = self._known
        if known is None:
            return make(SimpleNamespace())
        found = known.get(key)
        if found is None:
            everything = known.versions.everything
            proofs: Proofs = []
            try:
                with _naming(path):
                    attr = self._look(path, follow, proofs)
            except FileNotFoundError:
                found = errno.ENOENT
            else:
                found = make(attr)
            known.put(key, found, everything, proofs)
        if found == errno.ENOENT:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    def exists(self, path: str) -> bool:
        """Whether there is something at `path`, be it a dangling link."""
        try:
            self.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def chmod(self, path: str, mode: int) -> None:
        with self.node(path) as nodeid:
            self.session.setattr(nodeid, mode=mode)

    def chown(self, path: str, uid: int, gid: int, follow_symlinks: bool = True) -> None:
        """-1 leaves an owner as it is."""
        owners = {name: value for name, value in (("uid", uid), ("gid", gid)) if value >= 0}
        with self.node(path, follow_symlinks) as nodeid:
            self.session.setattr(nodeid, **owners)

    def utime(self, path: str, ns: tuple[int, int] | None = None, follow_symlinks: bool = True) -> None:
        """Set access and modification time, to now without `ns`."""
        atime, mtime = ns or ("now", "now")
        with self.node(path, follow_symlinks) as nodeid:
            self.session.setattr(nodeid, atime=atime, mtime=mtime)

    def statvfs(self, path: str = "/") -> SimpleNamespace:
        """The state of the file system, with the fields of `os.statvfs` that the protocol carries."""
        with self.node(path) as nodeid:
            state = self.session.statfs(nodeid)
        return SimpleNamespace(
            f_bsize=state.bsize,
            f_frsize=state.frsize,
            f_blocks=state.blocks,
            f_bfree=state.bfree,
            f_bavail=state.bavail,
            f_files=state.files,
            f_ffree=state.ffree,
            f_namemax=state.namelen,
        )

    def setxattr(
        self, path: str, name: str, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        with self.node(path, follow_symlinks) as nodeid:
            self.session.setxattr(nodeid, name, value, flags)

    def getxattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> bytes:
        with self.node(path, follow_symlinks) as nodeid:
            return self.session.getxattr(nodeid, name)

    def listxattr(self, path: str, *, follow_symlinks: bool = True) -> list[str]:
        with self.node(path, follow_symlinks) as nodeid:
            return [os.fsdecode(name) for name in self.session.listxattr(nodeid)]

    def removexattr(self, path: str, name: str, *, follow_symlinks: bool = True) -> None:
        with self.node(path, follow_symlinks) as nodeid:
            self.session.removexattr(nodeid, name)

    def sync(self) -> None:
        """Write everything to stable storage."""
        _optional(self.session.syncfs)

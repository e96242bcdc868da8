# SPDX-License-Identifier: Apache-2.0
"""Changes of one directory at a time, by inotify(7): for who may not use fanotify, and where files have no handles.

Each directory of the tree has a watch.  They are added by a walk that goes on between events, so that a large tree
holds nobody up; until it has seen everything the watcher is not `complete`.  A new directory may have been looked
into before it was watched, so all that is found in it counts as changed.

An event says in which directory and under which name.  Which file that is was remembered when the directory was
read, or is looked up; where both are known and differ, both count.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Callable

from virtiofs.metadata import watch_calls
from virtiofs.metadata.watch import NOBODY, Batch, Identity
from virtiofs.metadata.watch_mounts import Mounts

# include/uapi/linux/inotify.h
IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x100, 0x200, 0x2000, 0x4000, 0x8000
IN_ONLYDIR, IN_DONT_FOLLOW, IN_ISDIR = 0x1000000, 0x2000000, 0x40000000

CHANGED = IN_MODIFY | IN_CLOSE_WRITE
EVENTS = CHANGED | IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
WATCH = EVENTS | IN_ONLYDIR | IN_DONT_FOLLOW
EVENT = struct.Struct("<iIII")  # watch, mask, cookie, bytes of the name
READ_SIZE = 1 << 18
# Directories that are read in one turn of the walk, between events.
STEP = 32
# Names whose files are remembered, in all directories together: some 12 MB.
MOST_NAMES = 100_000
LIMIT = "/proc/sys/fs/inotify/max_user_watches"


class Directory:
    """A watched directory, where it hangs, and the files in it that are remembered."""

    __slots__ = ("above", "below", "files", "identity", "name", "new", "watch")

    def __init__(self, watch: int, name: bytes, above: Directory | None, identity: Identity, new: bool):
        self.watch = watch
        self.name = name
        self.above = above
        self.identity = identity
        self.new = new  # since the watcher began: what is found in it counts as changed
        self.below: dict[bytes, Directory] = {}
        self.files: dict[bytes, int] = {}

    def path(self, name: bytes = b"") -> bytes:
        """Of what is `name` in it, from the root of the tree; b"." for the root."""
        words = [name] if name else []
        here: Directory | None = self
        while here is not None and here.above is not None:
            words.append(here.name)
            here = here.above
        return b"/".join(reversed(words)) or b"."


class InotifyWatcher:
    """Hears of changes in the directories of a tree (see `watch.Watcher`)."""

    kind = "inotify"

    def __init__(self, root: int, mounts: Mounts, batch: Batch, warn: Callable[[str], None]):
        self._root_fd = root
        self._mounts = mounts
        self._batch = batch
        self._warn = warn
        self._by_watch: dict[int, Directory] = {}
        self._to_read: deque[Directory] = deque()
        self._names = 0
        self._full = False
        self._unwatched = 0
        self._walking = True  # nothing is promised before all directories are watched
        self._moved: dict[int, tuple[Directory | None, Identity]] = {}
        self.fd = watch_calls.new_inotify(os.O_NONBLOCK | os.O_CLOEXEC)
        for mount in filter(None, (mounts.own, *mounts.below)):
            if mount.remote:
                warn(f"{os.fsdecode(mount.path)}: what other machines do there is not seen")
        found = os.fstat(root)
        watch = watch_calls.add_watch(self.fd, self._absolute(b"."), WATCH & ~IN_DONT_FOLLOW)
        self._root = Directory(watch, b"", None, (found.st_dev, found.st_ino), False)
        self._by_watch[watch] = self._root
        self._to_read.append(self._root)

    @property
    def unfinished(self) -> bool:
        return bool(self._to_read) or self._walking

    @property
    def complete(self) -> bool:
        return not self.unfinished and not self._unwatched

    def close(self) -> None:
        os.close(self.fd)

    def mounts_changed(self) -> None:
        self._walk_again()

    def _absolute(self, path: bytes) -> bytes:
        return b"/proc/self/fd/%d/%s" % (self._root_fd, path)

    # --- the walk ---

    def go_on(self) -> None:
        """Read some of the directories that were not read yet."""
        for _ in range(STEP):
            if not self._to_read:
                break
            self._read_directory(self._to_read.popleft())
        if not self._to_read and self._walking:
            self._walking = False
            self._batch.everything()  # what happened behind the walk's back
        self._batch.gauges["watches"] = len(self._by_watch)
        self._batch.gauges["unwatched"] = self._unwatched

    def _walk_again(self) -> None:
        """After events were lost, or something was mounted: look at every directory anew."""
        self._batch.everything()
        self._walking = True
        self._unwatched = 0
        self._full = False
        self._to_read.clear()
        self._to_read.append(self._root)

    def _read_directory(self, directory: Directory) -> None:
        """Remember what is in it, and watch what directories are in it."""
        if self._by_watch.get(directory.watch) is not directory:
            return  # gone meanwhile
        try:
            with os.scandir(self._absolute(directory.path())) as entries:
                found = [
                    (entry.name, entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in entries
                ]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                self._unwatched += 1
            return
        self._forget_files(directory)
        if directory.new:
            self._batch.attributes(directory.identity)
        names = set()
        for name, inode, is_directory in found:
            names.add(name)
            child = (directory.identity[0], inode)
            if is_directory:
                self._add(directory, name, directory.new)
            else:
                self._remember(directory, name, inode)
                if directory.new:
                    self._batch.data(child, directory.identity, name)
            if directory.new:
                self._batch.entry(directory.identity, name, child)
        for name in [name for name in directory.below if name not in names]:
            self._drop(directory.below[name])
        directory.new = False

    def _add(self, above: Directory, name: bytes, new: bool) -> None:
        """Watch the directory `name` in `above`, and have it read soon."""
        path = self._absolute(above.path(name))
        try:
            watch = watch_calls.add_watch(self.fd, path, WATCH)
            found = os.stat(path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                self._not_watched(above.path(name), error)
            return
        known = self._by_watch.get(watch)
        if known is self._root:
            return
        if known is None:
            known = Directory(watch, name, above, (found.st_dev, found.st_ino), new)
            self._by_watch[watch] = known
        elif known.above is not above or known.name != name:
            # Moved while we did not look; or the same directory is here a second time, by a bind mount.
            self._hang(known, above, name)
        replaced = above.below.get(name)
        above.below[name] = known
        if replaced is not None and replaced is not known:
            self._drop(replaced)
        if known.new or self._walking:
            self._to_read.append(known)

    def _not_watched(self, path: bytes, error: OSError) -> None:
        self._unwatched += 1
        if error.errno != errno.ENOSPC:
            if self._unwatched == 1:
                self._warn(f"what happens in {os.fsdecode(path)} is not seen: {error.strerror}")
            return
        if self._full:
            return
        self._full = True
        with open(LIMIT) as file:
            limit = file.read().strip()
        self._warn(
            f"only {len(self._by_watch)} directories are watched, as this user may have no more than {limit} inotify"
            " watches; raise it (sysctl fs.inotify.max_user_watches=...) and start again, or run as root, where"
            " fanotify needs none"
        )

    def _hang(self, directory: Directory, above: Directory, name: bytes) -> None:
        """A directory is known under another name from now on."""
        if directory.above is not None and directory.above.below.get(directory.name) is directory:
            del directory.above.below[directory.name]
        step: Directory | None = above
        while step is not None:
            if step is directory:
                return  # a bind mount of a directory into itself
            step = step.above
        directory.above, directory.name = above, name

    def _drop(self, directory: Directory) -> None:
        """A directory left the tree with all that is below it."""
        pending = [directory]
        while pending:
            gone = pending.pop()
            pending.extend(gone.below.values())
            gone.below.clear()
            if self._by_watch.pop(gone.watch, None) is not None:
                watch_calls.remove_watch(self.fd, gone.watch)
            self._forget_files(gone)
        above = directory.above
        if above is not None and above.below.get(directory.name) is directory:
            del above.below[directory.name]

    def _remember(self, directory: Directory, name: bytes, inode: int) -> None:
        if self._names < MOST_NAMES and name not in directory.files:
            self._names += 1
            directory.files[name] = inode
        elif name in directory.files:
            directory.files[name] = inode

    def _forget_files(self, directory: Directory) -> None:
        self._names -= len(directory.files)
        directory.files.clear()

    # --- what is heard ---

    def read(self) -> None:
        """Deal with what has happened so far."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        at = count = 0
        while at < len(data):
            watch, mask, cookie, size = EVENT.unpack_from(data, at)
            at += EVENT.size
            name = data[at : at + size].rstrip(b"\0")
            at += size
            count += 1
            if mask & IN_Q_OVERFLOW:
                self._batch.gauges.add("overflows")
                self._walk_again()
                continue
            directory = self._by_watch.get(watch)
            if directory is None:
                continue  # of what was dropped
            if mask & IN_IGNORED:
                del self._by_watch[watch]  # that it is gone its parent says
            elif mask & IN_UNMOUNT:
                self._walk_again()
            elif name:
                self._deal(directory, mask, cookie, name)
            elif mask & IN_ATTRIB:
                self._batch.attributes(directory.identity, directory.identity, b".")
        self._drop_moved()
        self._batch.gauges.add("events", count)
        self._batch.gauges["watches"] = len(self._by_watch)

    def _deal(self, directory: Directory, mask: int, cookie: int, name: bytes) -> None:
        parent = directory.identity
        known = self._known(directory, name, mask)
        if mask & IN_MOVED_FROM:
            self._moved[cookie] = (directory.below.pop(name, None), known)
            self._forget(directory, name)
            self._batch.gone(parent, name)
            return
        if mask & IN_DELETE:
            directory.below.pop(name, None)
            self._forget(directory, name)
            self._batch.gone(parent, name, known if mask & IN_ISDIR else NOBODY)  # who knows its other names
            if known != NOBODY:
                self._batch.attributes(known)  # it may have other names
            return
        found = self._stat(directory, name)
        child = NOBODY if found is None else (found.st_dev, found.st_ino)
        if mask & (IN_CREATE | IN_MOVED_TO):
            before = self._moved[cookie][1] if cookie in self._moved else NOBODY
            self._batch.entry(parent, name, child)
            for inode in {known, child, before} - {NOBODY}:
                # Its number of names changed; and if it was changed before it came here we did not know who it was.
                if not mask & IN_ISDIR:
                    self._batch.data(inode, parent, name)
                self._batch.attributes(inode, parent, name)
            if mask & IN_ISDIR:
                self._add(directory, name, new=True)
            elif found is not None:
                self._remember(directory, name, found.st_ino)
            return
        for inode in {known, child} - {NOBODY}:
            if mask & CHANGED:
                self._batch.data(inode, parent, name)
            if mask & IN_ATTRIB:
                self._batch.attributes(inode, parent, name)
        if found is not None and not mask & IN_ISDIR:
            self._remember(directory, name, found.st_ino)

    def _drop_moved(self) -> None:
        """Drop directories that left the tree.  If one comes in again after all, it is new to us."""
        for moved, _ in self._moved.values():
            if moved is not None and (moved.above is None or moved.above.below.get(moved.name) is not moved):
                self._drop(moved)
        self._moved.clear()

    def _known(self, directory: Directory, name: bytes, mask: int) -> Identity:
        """What the name led to, as far as that was remembered."""
        if mask & IN_ISDIR:
            below = directory.below.get(name)
            return NOBODY if below is None else below.identity
        inode = directory.files.get(name)
        return NOBODY if inode is None else (directory.identity[0], inode)

    def _forget(self, directory: Directory, name: bytes) -> None:
        if directory.files.pop(name, None) is not None:
            self._names -= 1

    def _stat(self, directory: Directory, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(self._absolute(directory.path(name)), follow_symlinks=False)
        except OSError:
            return None  # gone again: what follows says how

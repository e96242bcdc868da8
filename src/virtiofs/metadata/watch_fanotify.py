# SPDX-License-Identifier: Apache-2.0
"""Changes of whole file systems, by fanotify(7) with file handles (Linux 5.17; CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH).

An event names a directory by handle, a name in it, and the file it is about by handle.  A handle is opened to learn
the file's identity, once; and the ways up from a directory are walked, once, to see whether it lies in the tree.

What happens outside of the tree is left out, unless it happens to a file with several names, since one may lie
inside.  Whether a directory is inside is asked after the event.  If one that was inside has been moved out since, an
event in it was left out wrongly: so a directory that leaves the tree is followed by `everything`.

The queue is not without limit (FAN_UNLIMITED_QUEUE): then any user could fill the kernel's memory while the watcher is
stopped.  An overflow costs no more than `everything`.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable

from virtiofs.metadata import watch_calls
from virtiofs.metadata.watch import NOBODY, Batch, Identity, Remount
from virtiofs.metadata.watch_mounts import Mount, Mounts, mount_id

# include/uapi/linux/fanotify.h
FAN_CLOEXEC, FAN_NONBLOCK = 0x1, 0x2
FAN_REPORT_FID, FAN_REPORT_DIR_FID, FAN_REPORT_NAME, FAN_REPORT_TARGET_FID = 0x200, 0x400, 0x800, 0x1000
FAN_MARK_ADD, FAN_MARK_FILESYSTEM = 0x1, 0x100
FAN_MODIFY, FAN_ATTRIB, FAN_CLOSE_WRITE = 0x2, 0x4, 0x8
FAN_CREATE, FAN_DELETE, FAN_RENAME = 0x100, 0x200, 0x10000000
FAN_Q_OVERFLOW, FAN_ONDIR = 0x4000, 0x40000000
FID, DFID_NAME, DFID, OLD_DFID_NAME, NEW_DFID_NAME = 1, 2, 3, 10, 12

GROUP = (
    FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_FID | FAN_REPORT_DIR_FID | FAN_REPORT_NAME | FAN_REPORT_TARGET_FID
)
# A store through a mapping is seen by nobody; the file's last close at least comes after it, so that is heard, too.
CHANGED = FAN_MODIFY | FAN_CLOSE_WRITE
EVENTS = CHANGED | FAN_ATTRIB | FAN_CREATE | FAN_DELETE | FAN_RENAME | FAN_ONDIR

METADATA = struct.Struct("<IBBHQii")  # length, version, -, length of this, mask, fd, pid
INFO = struct.Struct("<BBH8sI")  # type, -, length, file system, bytes of the handle
HANDLE_AT = 12  # in an info record, behind the number of the file system
HANDLE_HEAD = 8
READ_SIZE = 1 << 18
# Handles whose files are remembered; all are forgotten when there are more.
MOST_KNOWN = 1 << 16
# How often a handle is opened if there is no memory for it.
TRIES = 1000

Handle = tuple[bytes, bytes]  # file system, struct file_handle


class FanotifyWatcher:
    """Hears of all changes to the file systems in the tree (see `watch.Watcher`)."""

    kind = "fanotify"
    unfinished = False

    def __init__(self, root: int, mounts: Mounts, batch: Batch, warn: Callable[[str], None]):
        self._root = root
        self._batch = batch
        self._warn = warn
        self._roots: set[Identity] = set()
        self._mounts = mounts
        # By file system: places in it, which it takes to open handles, and the number of the mount that is there.  None
        # is held for longer than events are read, as nobody could unmount it meanwhile.
        self._places: dict[bytes, list[tuple[bytes, int]]] = {}
        self._open: dict[tuple[bytes, int], int] = {}
        self._known: dict[Handle, Identity] = {}
        self._foreign: set[Handle] = set()  # files outside, with one name
        self._gone: set[Handle] = set()  # a handle is never used again
        self._directories: dict[Handle, tuple[Identity, bool]] = {}
        self._inside: dict[Identity, bool] = {}
        self.complete = True
        self.fd = watch_calls.new_fanotify(GROUP)
        try:
            self._add(root, mounts.own)
            for mount in mounts.below:
                self._add_below(mount)
        except BaseException:
            os.close(self.fd)
            raise
        finally:
            self._leave()

    def _leave(self) -> None:
        """Hold no place any more."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def go_on(self) -> None:
        """There is nothing to set up later."""

    def mounts_changed(self) -> None:
        raise Remount

    # --- what is listened to ---

    def _add(self, fd: int, mount: Mount | None) -> None:
        """Hear of the file system of a directory or file.  Raises `OSError` if that is not possible."""
        path = b"/proc/self/fd/%d" % fd
        watch_calls.mark(self.fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, EVENTS, path)
        system = (os.statvfs(fd).f_fsid & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
        found = os.stat(path)
        self._roots.add((found.st_dev, found.st_ino))
        if stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode):
            place = (path if mount is None or fd == self._root else mount.path, mount_id(fd))
            here = self._enter(place)
            self._places.setdefault(system, []).append(place)
            os.close(watch_calls.open_handle(here, watch_calls.handle_of(here)))
        self._batch.gauges.add("watches")
        if mount is not None and mount.remote:
            self._warn(f"{os.fsdecode(mount.path)}: what other machines do there is not seen")

    def _enter(self, place: tuple[bytes, int]) -> int:
        """A descriptor of a place.  Raises `OSError`, and `Remount` if its path leads to another one by now."""
        if place not in self._open:
            path, number = place
            fd = self._open[place] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if mount_id(fd) != number:
                raise Remount
        return self._open[place]

    def _add_below(self, mount: Mount) -> None:
        try:
            fd = os.open(mount.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return  # it is gone, and the mounts changed again
        try:
            if mount_id(fd) == mount.number:  # else hidden under another
                self._add(fd, mount)
        except OSError as error:
            self.complete = False
            self._batch.gauges.add("unwatched")
            self._warn(f"what happens in {os.fsdecode(mount.path)} is not seen: {error.strerror}")
        finally:
            os.close(fd)

    # --- what is heard ---

    def read(self) -> None:
        """Deal with what has happened so far."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        ours = self._batch.sink.worker_pids()  # whose changes enter the table by themselves
        at = count = 0
        while at < len(data):
            length, _, _, head, mask, _, pid = METADATA.unpack_from(data, at)
            count += 1
            if mask & FAN_Q_OVERFLOW:
                self._overflow()
            elif pid not in ours:
                records = {}
                info = at + head
                while info < at + length:
                    kind, _, size, system, held = INFO.unpack_from(data, info)
                    name_at = info + HANDLE_AT + HANDLE_HEAD + held
                    handle = (system, data[info + HANDLE_AT : name_at])
                    name = b""
                    if kind != FID and kind != DFID:
                        name = data[name_at : data.index(0, name_at)]
                    records[kind] = (handle, name)
                    info += size
                self._deal(mask, records)
            at += length
        self._leave()
        self._batch.gauges.add("events", count)

    def _overflow(self) -> None:
        self._batch.gauges.add("overflows")
        self._forget_places()
        self._foreign.clear()
        self._batch.everything()

    def _forget_places(self) -> None:
        self._directories.clear()
        self._inside.clear()

    def _deal(self, mask: int, records: dict[int, tuple[Handle, bytes]]) -> None:
        target = records[FID][0] if FID in records else None
        if mask & FAN_RENAME:
            self._renamed(mask, records[OLD_DFID_NAME], records[NEW_DFID_NAME], target)
            return
        handle, name = records.get(DFID_NAME) or records.get(DFID) or (None, b"")
        if handle is None:
            if target in self._foreign:  # its only name was outside: nobody in the tree knew it
                self._foreign.discard(target)
            elif target is not None:  # a number of names that changed: who knows where they are
                self._changed(mask, target, NOBODY, b"")
            return
        directory, inside = self._directory(handle)
        if target is None:  # the directory itself
            if inside and directory != NOBODY:
                self._batch.attributes(directory, directory, b".")
            return
        if not inside:
            if not mask & FAN_ONDIR and mask & (CHANGED | FAN_ATTRIB):
                self._changed_outside(mask, target)
            return
        named = directory != NOBODY  # else it was removed, with all its names
        if mask & FAN_CREATE and named:
            self._batch.entry(directory, name, self._identify(target))
        if mask & (CHANGED | FAN_ATTRIB):
            self._changed(mask, target, directory, name)
        if mask & FAN_DELETE:
            child = self._identify(target)
            if named:
                self._batch.gone(directory, name, child if self._has_no_name(target) else NOBODY)
            if mask & FAN_ONDIR and child != NOBODY:  # of other files the kernel says so itself
                self._batch.attributes(child)

    def _changed(self, mask: int, target: Handle, directory: Identity, name: bytes) -> None:
        if mask & FAN_ATTRIB:
            self._foreign.discard(target)
        inode = self._identify(target)
        if inode == NOBODY:
            return  # no longer there, and nobody has it open
        if mask & CHANGED:
            self._batch.data(inode, directory, name)
        if mask & FAN_ATTRIB:
            self._batch.attributes(inode, directory, name)

    def _changed_outside(self, mask: int, target: Handle) -> None:
        """A file that was reached by a name outside of the tree may have another inside."""
        if mask & FAN_ATTRIB:
            self._foreign.discard(target)
        if target in self._foreign:
            return
        found = self._stat(target)
        if found is None:
            return
        inode = (found.st_dev, found.st_ino)
        if found.st_nlink < 2 and inode not in self._roots:
            if len(self._foreign) >= MOST_KNOWN:
                self._foreign.clear()
            self._foreign.add(target)
        else:
            self._changed(mask, target, NOBODY, b"")

    def _renamed(
        self, mask: int, old: tuple[Handle, bytes], new: tuple[Handle, bytes], target: Handle | None
    ) -> None:
        is_directory = mask & FAN_ONDIR
        moved = is_directory and old[0] != new[0]
        if is_directory and self._mounts.below and self._mounts.changed():
            raise Remount  # it moved with what is mounted in it
        was_inside = self._directory(old[0])[1]  # before what is known of places is forgotten
        if moved:
            self._forget_places()
        source, _ = self._directory(old[0])
        goal, inside = self._directory(new[0])
        if not was_inside and not inside:
            return
        if moved and was_inside and not inside:
            self._batch.everything()
        if target is not None:
            self._foreign.discard(target)
        child = NOBODY if target is None else self._identify(target)
        if was_inside and source != NOBODY:
            self._batch.gone(source, old[1])
        if inside and goal != NOBODY:
            self._batch.entry(goal, new[1], child)
        if child != NOBODY:
            self._batch.attributes(child, goal if inside else NOBODY, new[1] if inside else b"")

    # --- which file a handle names, and where it lies ---

    def _identify(self, handle: Handle) -> Identity:
        """The file's identity; `NOBODY` if it is gone and was never met."""
        inode = self._known.get(handle)
        if inode is None:
            if handle in self._gone:
                return NOBODY
            found = self._stat(handle)
            if found is None:
                if len(self._gone) >= MOST_KNOWN:
                    self._gone.clear()
                self._gone.add(handle)
                return NOBODY
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            inode = self._known[handle] = (found.st_dev, found.st_ino)
        return inode

    def _has_no_name(self, handle: Handle) -> bool:
        """Whether a file is gone, or is there only for who has it open."""
        if handle in self._gone:
            return True
        found = self._stat(handle)
        return found is None or found.st_nlink == 0

    def _stat(self, handle: Handle) -> os.stat_result | None:
        for place in self._places.get(handle[0], ()):
            fd = self._open_handle(place, handle)
            if fd < 0:
                continue
            try:
                return os.fstat(fd)
            finally:
                os.close(fd)
        return None

    def _open_handle(self, place: tuple[bytes, int], handle: Handle) -> int:
        """A descriptor; -1 for what is gone."""
        for _ in range(TRIES):
            try:
                return watch_calls.open_handle(self._enter(place), handle[1])
            except OSError as error:
                if error.errno == errno.ENOMEM:
                    # ext4 says so, too, while a new file gets the inode number of one that is gone (iget_locked).
                    os.sched_yield()
                    continue
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.EPERM):
                    raise  # nothing can be told of any event then
                return -1  # the file is gone, or the place, which is known soon by a change of the mounts
        raise OSError(errno.ENOMEM, "no memory to open file handles")

    def _directory(self, handle: Handle) -> tuple[Identity, bool]:
        """A directory's identity and whether it lies in the tree; `NOBODY` and True for one that is gone."""
        known = self._directories.get(handle)
        if known is not None:
            return known
        places = self._places.get(handle[0], ())
        identity, inside = NOBODY, False
        for place in places:
            fd = self._open_handle(place, handle)
            if fd < 0:
                return NOBODY, True
            try:
                found = os.fstat(fd)
                identity = (found.st_dev, found.st_ino)
                inside = self._leads_up(fd, identity)
            finally:
                os.close(fd)
            if inside:
                break
        if len(self._directories) >= MOST_KNOWN:
            self._forget_places()
        self._directories[handle] = (identity, inside)
        return identity, inside

    def _leads_up(self, fd: int, identity: Identity) -> bool:
        """Whether the way up from a directory meets the tree's root, or that of a mount in it."""
        here = fd
        path: list[Identity] = []
        try:
            while True:
                path.append(identity)
                if identity in self._roots:
                    inside = True
                    break
                known = self._inside.get(identity)
                if known is not None:
                    inside = known
                    break
                try:
                    above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
                except OSError:  # above this mount's root, so there may be a way by another one
                    return False
                if here != fd:
                    os.close(here)
                here = above
                found = os.fstat(here)
                before, identity = identity, (found.st_dev, found.st_ino)
                if identity == before:  # the root of all
                    inside = False
                    break
        finally:
            if here != fd:
                os.close(here)
        if len(self._inside) >= MOST_KNOWN:
            self._forget_places()
        for step in path:
            self._inside[step] = inside
        return inside

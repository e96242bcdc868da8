# SPDX-License-Identifier: Apache-2.0
"""A complete read-write file system in memory:  virtiofs mount examples/memory.py:MemoryFilesystem /mnt

All that a file is, is an object.  The guest's kernel has checked permissions before a method is called; names and
types, too, but a hostile one would not.  One lock is over everything, as several methods may run at a time; no method
waits while it holds it.
"""

import errno
import os
import stat
import threading
import time

from virtiofs import Attributes, Caller, Changes, Entry, Filesystem, Statistics

ROOT = 1
NOREPLACE, EXCHANGE = 1, 2  # of renameat2(2)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # of fallocate(2)
CHUNK = 65536  # bytes of a file that are kept or a hole
HANDLE_COSTS = 256
FILE_COSTS = 4096 + 255  # with the longest name or link
NAMESPACES = (b"user.", b"trusted.", b"security.")


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Data:
    """The bytes of a regular file, sparse: chunks by number; those that are absent are zeros."""

    def __init__(self):
        self.chunks: dict[int, bytearray] = {}
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def pieces(self, offset: int, end: int):
        """The chunks between two offsets: number, and from where to where in each."""
        while offset < end:
            number, start = divmod(offset, CHUNK)
            stop = min(CHUNK, start + end - offset)
            yield number, start, stop
            offset += stop - start

    def read(self, offset: int, end: int) -> bytes:
        found = []
        for number, start, stop in self.pieces(offset, min(end, self.size)):
            chunk = self.chunks.get(number)
            found.append(bytes(stop - start) if chunk is None else chunk[start:stop])
        return b"".join(found)

    def missing(self, offset: int, end: int) -> int:
        """How many chunks it takes to write there."""
        return sum(number not in self.chunks for number, _, _ in self.pieces(offset, end))

    def reserve(self, offset: int, end: int) -> None:
        for number, _, _ in self.pieces(offset, end):
            self.chunks.setdefault(number, bytearray(CHUNK))

    def write(self, offset: int, data: memoryview) -> None:
        done = 0
        for number, start, stop in self.pieces(offset, offset + len(data)):
            chunk = self.chunks.setdefault(number, bytearray(CHUNK))
            chunk[start:stop] = data[done : done + stop - start]
            done += stop - start
        self.size = max(self.size, offset + len(data))

    def clear(self, offset: int, end: int) -> None:
        for number in [
            number for number in self.chunks if offset < (number + 1) * CHUNK and number * CHUNK < end
        ]:
            start, stop = max(0, offset - number * CHUNK), min(CHUNK, end - number * CHUNK)
            if stop - start == CHUNK:
                del self.chunks[number]
            else:
                self.chunks[number][start:stop] = bytes(stop - start)

    def resize(self, size: int) -> None:
        if size < self.size:
            self.clear(size, (self.size + CHUNK - 1) // CHUNK * CHUNK)
        self.size = size

    def seek(self, offset: int, data: bool) -> int:
        """Where the next data, or the next hole, begins; the end of the file is a hole."""
        if data:
            behind = (number for number in self.chunks if (number + 1) * CHUNK > offset)
            return min(self.size, max(offset, min(behind, default=self.size) * CHUNK))
        while offset // CHUNK in self.chunks:
            offset = (offset // CHUNK + 1) * CHUNK
        return min(offset, self.size)


class File:
    """A file of any kind: `content` is its data, its entries by name (File), or what a symbolic link holds."""

    def __init__(self, number: int, mode: int, uid: int, gid: int, rdev: int = 0):
        now = time.time_ns()
        self.content = {} if stat.S_ISDIR(mode) else b"" if stat.S_ISLNK(mode) else Data()
        self.attributes = Attributes(
            mode, uid=uid, gid=gid, rdev=rdev, ino=number, atime_ns=now, mtime_ns=now, ctime_ns=now
        )
        self.number = number
        self.parent = None  # of a directory
        self.opened = 0
        self.nlink = 2 if stat.S_ISDIR(mode) else 1
        self.lookups = 0
        self.xattrs: dict[bytes, bytes] = {}

    @property
    def is_directory(self) -> bool:
        return isinstance(self.content, dict)

    @property
    def chunks(self) -> int:
        """How many it takes."""
        return len(self.content.chunks) if isinstance(self.content, Data) else 0

    def show(self) -> Attributes:
        self.attributes.nlink = self.nlink
        self.attributes.size = len(self.content) if not self.is_directory else 0
        self.attributes.blocks = self.chunks * (CHUNK // 512)
        return self.attributes

    def changed(self, content: bool = True) -> None:
        self.attributes.ctime_ns = time.time_ns()
        if content:
            self.attributes.mtime_ns = self.attributes.ctime_ns


class MemoryFilesystem(Filesystem):
    """`size`: how many bytes the data of all files may take, and as many all else."""

    threads = 0  # no method ever waits for anything

    def __init__(self, size: int = 64 << 20):
        self.room = size // CHUNK  # in chunks
        self.used = 0
        self.rest = size  # bytes left for names, attributes, links
        self.lock = threading.RLock()
        self.next = ROOT + 1
        root = File(ROOT, stat.S_IFDIR | 0o755, os.geteuid(), os.getegid())
        self.files = {ROOT: root}
        self.handles: dict[int, tuple[File, int]] = {}  # with the flags of open(2)
        self.next_handle = 1

    # --- what the methods share ---

    def file(self, node: int) -> File:
        try:
            return self.files[node]
        except KeyError:
            raise error(errno.ESTALE) from None

    def entries(self, parent: int) -> dict[bytes, File]:
        directory = self.file(parent)
        if not directory.is_directory:
            raise error(errno.ENOTDIR)
        return directory.content

    def entry(self, file: File) -> Entry:
        file.lookups += 1
        return Entry(file.number, file.show())

    def drop(self, file: File) -> None:
        """A file that has neither name nor lookup is over."""
        if not file.nlink and not file.lookups and not file.opened and file.number != ROOT:
            del self.files[file.number]
            self.rest += FILE_COSTS + sum(map(len, file.xattrs.values()))
            self.used -= file.chunks

    def charge(self, size: int) -> None:
        if size > self.rest:
            raise error(errno.ENOSPC)
        self.rest -= size

    def open_file(self, file: File, flags: int) -> int:
        handle = self.next_handle
        self.next_handle += 1
        self.charge(HANDLE_COSTS)
        self.handles[handle] = file, flags & os.O_ACCMODE
        file.opened += 1
        return handle

    def opened(self, handle: int, unfit: int = -1) -> File:
        """The file of a handle; EBADF for one whose access mode is `unfit`."""
        file, mode = self.handles.get(handle, (None, unfit))
        if file is None or mode == unfit:
            raise error(errno.EBADF)
        return file

    def data(self, node: int) -> Data:
        content = self.file(node).content
        if not isinstance(content, Data):
            raise error(errno.EINVAL)
        return content

    def new(self, directory: File, mode: int, caller: Caller, rdev: int = 0) -> File:
        """A file that has no name yet."""
        self.charge(FILE_COSTS)
        gid = caller.gid
        if directory.attributes.mode & stat.S_ISGID:
            gid = directory.attributes.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        file = self.files[self.next] = File(self.next, mode, caller.uid, gid, rdev)
        self.next += 1
        return file

    def take(self, content: Data, offset: int, end: int) -> None:
        """Count the chunks that will be written to."""
        missing = content.missing(offset, end)
        if missing > self.room - self.used:
            raise error(errno.ENOSPC)
        self.used += missing

    def make(self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0) -> File:
        with self.lock:
            directory, entries = self.file(parent), self.entries(parent)
            if name in entries:
                raise error(errno.EEXIST)
            if not directory.nlink:
                raise error(errno.ENOENT)
            file = entries[name] = self.new(directory, mode, caller, rdev)
            if file.is_directory:
                directory.nlink += 1
                file.parent = directory
            directory.changed()
            return file

    def remove(self, parent: int, name: bytes) -> None:
        directory, entries = self.file(parent), self.entries(parent)
        file = entries.pop(name)
        file.nlink -= 1
        if file.is_directory:
            file.nlink = 0
            directory.nlink -= 1
        file.changed(content=False)
        directory.changed()
        self.drop(file)

    # --- names ---

    def lookup(self, parent: int, name: bytes) -> Entry:
        with self.lock:
            file = self.entries(parent).get(name)
            if file is None:
                raise error(errno.ENOENT)
            return self.entry(file)

    def forget(self, node: int, lookups: int) -> None:
        with self.lock:
            file = self.files.get(node)
            if file is not None:
                file.lookups = max(0, file.lookups - lookups)
                self.drop(file)

    def reset(self) -> None:
        with self.lock:
            self.rest += HANDLE_COSTS * len(self.handles)
            self.handles.clear()
            for file in list(self.files.values()):
                file.lookups = file.opened = 0
                self.drop(file)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        with self.lock:
            return self.entry(self.make(parent, name, mode, caller, rdev))

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        with self.lock:
            return self.entry(self.make(parent, name, stat.S_IFDIR | mode, caller))

    def create(self, parent: int, name: bytes, flags: int, mode: int, caller: Caller) -> tuple[Entry, int]:
        with self.lock:
            file = self.make(parent, name, stat.S_IFREG | mode, caller)
            return self.entry(file), self.open_file(file, flags)

    def tmpfile(self, parent: int, flags: int, mode: int, caller: Caller) -> tuple[Entry, int]:
        with self.lock:
            file = self.new(self.file(parent), stat.S_IFREG | mode, caller)
            file.nlink = 0
            return self.entry(file), self.open_file(file, flags)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        with self.lock:
            file = self.make(parent, name, stat.S_IFLNK | 0o777, caller)
            file.content = target
            return self.entry(file)

    def readlink(self, node: int) -> bytes:
        content = self.file(node).content
        if not isinstance(content, bytes):
            raise error(errno.EINVAL)
        return content

    def unlink(self, parent: int, name: bytes) -> None:
        with self.lock:
            if name not in self.entries(parent):
                raise error(errno.ENOENT)
            if self.entries(parent)[name].is_directory:
                raise error(errno.EISDIR)
            self.remove(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        with self.lock:
            file = self.entries(parent).get(name)
            if file is None:
                raise error(errno.ENOENT)
            if not file.is_directory:
                raise error(errno.ENOTDIR)
            if file.content:
                raise error(errno.ENOTEMPTY)
            self.remove(parent, name)

    def link(self, node: int, new_parent: int, new_name: bytes) -> Entry:
        with self.lock:
            file, entries = self.file(node), self.entries(new_parent)
            if new_name in entries:
                raise error(errno.EEXIST)
            if file.is_directory:
                raise error(errno.EPERM)
            entries[new_name] = file
            file.nlink += 1
            file.changed(content=False)
            self.file(new_parent).changed()
            return self.entry(file)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        if flags not in (0, NOREPLACE, EXCHANGE):
            raise error(errno.EINVAL)
        with self.lock:
            source, target = self.entries(parent), self.entries(new_parent)
            file, other = source.get(name), target.get(new_name)
            if file is None or (flags == EXCHANGE and other is None):
                raise error(errno.ENOENT)
            if flags == NOREPLACE and other is not None:
                raise error(errno.EEXIST)
            if file is other:
                return  # rename(2): two names of one file stay as they are
            self.check_rename(file, other, parent, new_parent, flags)
            if flags == EXCHANGE:
                source[name], target[new_name] = other, file
                moved = other.is_directory - file.is_directory
                self.file(parent).nlink += moved
                self.file(new_parent).nlink -= moved
                other.changed(content=False)
                other.parent = self.file(parent)
            else:
                if other is not None:
                    self.remove(new_parent, new_name)
                target[new_name] = source.pop(name)
                self.file(parent).nlink -= file.is_directory
                self.file(new_parent).nlink += file.is_directory
            file.changed(content=False)
            file.parent = self.file(new_parent)
            self.file(parent).changed()
            self.file(new_parent).changed()

    def check_rename(self, file: File, other: File | None, parent: int, new_parent: int, flags: int) -> None:
        for moved, target in ((file, new_parent), (other if flags == EXCHANGE else None, parent)):
            above = self.file(target)
            while moved is not None and moved.is_directory and above is not None:
                if above is moved:
                    raise error(errno.EINVAL)  # into itself
                above = above.parent
        if other is not None and not flags:
            if other.is_directory != file.is_directory:
                raise error(errno.EISDIR if other.is_directory else errno.ENOTDIR)
            if other.is_directory and other.content:
                raise error(errno.ENOTEMPTY)

    def opendir(self, node: int) -> int:
        self.entries(node)
        return 0

    def readdir(self, node: int, handle: int) -> list[tuple[bytes, int, int]]:
        with self.lock:
            entries = self.entries(node)
            return [(name, file.attributes.mode, file.number) for name, file in entries.items()]

    # --- attributes ---

    def getattr(self, node: int, handle: int | None) -> Attributes:
        with self.lock:
            return self.file(node).show()

    def setattr(self, node: int, changes: Changes, handle: int | None) -> Attributes:
        with self.lock:
            file = self.file(node)
            attributes = file.attributes
            if changes.size is not None:
                before = file.chunks
                self.data(node).resize(changes.size)
                self.used += file.chunks - before
            file.changed(content=changes.size is not None)
            if changes.mode is not None:
                attributes.mode = stat.S_IFMT(attributes.mode) | changes.mode
            for name in ("uid", "gid", "atime_ns", "mtime_ns"):
                if getattr(changes, name) is not None:
                    setattr(attributes, name, getattr(changes, name))
            return file.show()

    def statfs(self, node: int) -> Statistics:
        free = self.room - self.used
        return Statistics(
            self.room, free, files=len(self.files), free_files=self.rest // FILE_COSTS, block_size=CHUNK
        )

    def setxattr(self, node: int, name: bytes, value: bytes, flags: int) -> None:
        with self.lock:
            file = self.file(node)
            if not name.startswith(NAMESPACES):
                raise error(errno.EOPNOTSUPP)
            if flags & os.XATTR_CREATE and name in file.xattrs:
                raise error(errno.EEXIST)
            if flags & os.XATTR_REPLACE and name not in file.xattrs:
                raise error(errno.ENODATA)
            self.charge(len(value) - len(file.xattrs.get(name, b"")))
            file.xattrs[name] = value
            file.changed(content=False)

    def getxattr(self, node: int, name: bytes) -> bytes:
        with self.lock:
            try:
                return self.file(node).xattrs[name]
            except KeyError:
                raise error(errno.ENODATA) from None

    def listxattr(self, node: int) -> list[bytes]:
        with self.lock:
            return list(self.file(node).xattrs)

    def removexattr(self, node: int, name: bytes) -> None:
        with self.lock:
            file = self.file(node)
            if name not in file.xattrs:
                raise error(errno.ENODATA)
            self.rest += len(file.xattrs.pop(name))
            file.changed(content=False)

    # --- files ---

    def open(self, node: int, flags: int) -> int:
        with self.lock:
            file = self.file(node)
            if not isinstance(file.content, Data) or not stat.S_ISREG(file.attributes.mode):
                raise error(errno.EISDIR if file.is_directory else errno.ELOOP)
            return self.open_file(file, flags)

    def release(self, node: int, handle: int) -> None:
        with self.lock:
            file, _ = self.handles.pop(handle, (None, 0))
            if file is not None:
                self.rest += HANDLE_COSTS
                file.opened -= 1
                self.drop(file)

    def flush(self, node: int, handle: int) -> None:
        self.opened(handle)

    def fsync(self, node: int, handle: int, datasync: bool) -> None:
        self.opened(handle)

    def fsyncdir(self, node: int, handle: int, datasync: bool) -> None:
        pass  # memory is as safe as it will be

    def read(self, node: int, handle: int, offset: int, size: int) -> bytes:
        with self.lock:
            file = self.opened(handle, os.O_WRONLY)
            file.attributes.atime_ns = time.time_ns()
            return file.content.read(offset, offset + size)

    def write(self, node: int, handle: int, offset: int, data: memoryview) -> int:
        with self.lock:
            file = self.opened(handle, os.O_RDONLY)
            self.take(file.content, offset, offset + len(data))
            file.content.write(offset, data)
            file.changed()
            return len(data)

    def fallocate(self, node: int, handle: int, mode: int, offset: int, length: int) -> None:
        if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE):
            raise error(errno.EOPNOTSUPP)
        with self.lock:
            file, content = self.file(node), self.data(node)
            before = file.chunks
            if mode & (PUNCH_HOLE | ZERO_RANGE):
                content.clear(offset, offset + length)
            else:
                # A guest may ask for 2**62 bytes, whose chunks nobody wants to count.
                if (
                    length > self.room * CHUNK
                    or content.missing(offset, offset + length) > self.room - self.used
                ):
                    raise error(errno.ENOSPC)
                content.reserve(offset, offset + length)
            if not mode & KEEP_SIZE and offset + length > content.size:
                content.resize(offset + length)
            self.used += file.chunks - before
            file.changed()

    def lseek(self, node: int, handle: int, offset: int, whence: int) -> int:
        with self.lock:
            content = self.data(node)
            found = content.seek(offset, whence == os.SEEK_DATA)
            if offset >= content.size or (found == content.size and whence == os.SEEK_DATA):
                raise error(errno.ENXIO)
            return found

# SPDX-License-Identifier: Apache-2.0
"""File systems in Python that tests serve by "python_trees.py:Class": what goes wrong in them goes wrong on purpose."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
import threading
from pathlib import Path

from virtiofs import Attributes, Entry, Filesystem, Opened, PathFilesystem

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from memory import MemoryFilesystem

ROOT = 1
DIRECTORY, FILE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644


class Pooled(MemoryFilesystem):
    """As the example, but on threads of the pool: names and values go there by a copy."""

    threads = 4


class Flat(Filesystem):
    """A root with one file for each name that is asked for, whose node is a number counted from 2."""

    def __init__(self):
        self.lock = threading.Lock()
        self.names: list[bytes] = []

    def name(self, node: int) -> bytes:
        return self.names[node - 2]

    def lookup(self, parent, name):
        with self.lock:
            if name not in self.names:
                self.names.append(name)
            return Entry(2 + self.names.index(name), Attributes(FILE, 1 << 20))

    def getattr(self, node, handle):
        return Attributes(DIRECTORY if node == ROOT else FILE, 1 << 20)


class Hanging(Flat):
    """`hang` is read once somebody writes to the FIFO; the size of `forgotten` is how many lookups were taken back."""

    threads = 2
    patience = 0.2

    def __init__(self, fifo: str):
        super().__init__()
        self.fifo = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        os.set_blocking(self.fifo, True)
        self.forgotten = 0

    def getattr(self, node, handle):
        return Attributes(DIRECTORY if node == ROOT else FILE, self.forgotten)

    def forget(self, node, lookups):
        self.forgotten += lookups

    def read(self, node, handle, offset, size):
        if self.name(node) == b"hang":
            os.read(self.fifo, 1)
        return b"at last"


class Waiting(Hanging):
    """As that, on four threads and with each read(2) a call."""

    threads = 4

    def open(self, node, flags):
        return Opened(direct_io=True)


class Nonsense(Flat):
    """Each file is named after what goes wrong when it is read, looked up, opened or listed."""

    def __init__(self):
        super().__init__()
        self.kept: list[memoryview] = []

    def lookup(self, parent, name):
        odd = {
            b"no-entry": lambda: {"node": 3},
            b"none": lambda: None,
            b"root": lambda: Entry(ROOT, Attributes(DIRECTORY)),
            b"no-type": lambda: Entry(3, Attributes(0o644)),
            b"no-attributes": lambda: Entry(3, None),
            b"validity": lambda: Entry(3, Attributes(FILE), valid=-1),
            b"not-a-number": lambda: Entry(3, Attributes(FILE, valid=float("nan"))),
            b"huge-node": lambda: Entry(1 << 64, Attributes(FILE)),
            b"negative-size": lambda: Entry(3, Attributes(FILE, -1)),
            b"huge-size": lambda: Entry(3, Attributes(FILE, 1 << 63)),
            b"bad-errno": self.raise_errno,
            b"text-errno": lambda: self.raise_errno("many"),
            b"no-errno": lambda: self.raise_errno(None),
            b"exit": sys.exit,
            b"recursion": lambda: self.lookup(parent, name),
            b"import": self.import_late,
        }.get(name)
        return odd() if odd is not None else super().lookup(parent, name)

    def raise_errno(self, number=-5):
        error = OSError()
        error.errno = number
        raise error

    def import_late(self):
        import colorsys

        return colorsys

    def open(self, node, flags):
        return {b"open-text": "handle", b"open-large": 1 << 70}.get(self.name(node), 7)

    def read(self, node, handle, offset, size):
        name = self.name(node)
        if name == b"kept":  # what was kept of a write
            try:
                return bytes(self.kept[0])
            except ValueError as error:
                return str(error).encode()
        if name == b"slice":
            return bytes(self.kept[1])
        if name == b"raise":
            raise RuntimeError("on purpose")
        return {b"long": bytes(size + 1), b"text": "text", b"number": 5, b"wide": memoryview(b"ab" * 9)[::2]}[
            name
        ]

    def write(self, node, handle, offset, data):
        self.kept = [data, data[1:]]
        return {b"too-much": len(data) + 1, b"negative": -1, b"written-none": None}.get(
            self.name(node), len(data)
        )

    def readlink(self, node):
        return bytes(5000)

    def opendir(self, node):
        return 0

    def readdir(self, node, handle):
        yield b"fine", FILE
        yield b"not/fine", FILE


class Endless(Flat):
    def readdir(self, node, handle):
        while True:
            yield b"again", FILE


class Fork(Flat):
    def read(self, node, handle, offset, size):
        os.fork()
        return b""


class Curious(PathFilesystem):
    """What the process that serves sees of the host: /root is its root directory, /open what opening `path` says."""

    def __init__(self, path: str = "/etc/passwd", needs: str = ""):
        self.path = path
        if needs:
            self.needs = set(needs.split(","))

    def start(self, directory):
        self.directory = directory

    def getattr(self, path, handle):
        return Attributes(DIRECTORY if path == "/" else FILE, 4096)

    def open(self, path, flags):
        return Opened(direct_io=True)

    def answer(self, path: str) -> object:
        try:
            if path == "/root":
                return sorted(os.listdir("/"))
            if path == "/make":
                os.mkdir("/made")
                return "made"
            if path == "/directory":
                return self.directory
            if path == "/capabilities":
                import ctypes

                return ctypes.__name__
            with open(self.path) as file:
                return file.read()
        except OSError as error:
            return errno.errorcode[error.errno]

    def read(self, path, handle, offset, size):
        return repr(self.answer(path)).encode()[offset : offset + size]


class Stuck(Filesystem):
    def start(self, directory):
        raise RuntimeError("no such thing")


class Sleepy(Flat):
    """INTERRUPT finds it waiting; the size of everything is how often that was cancelled."""

    def __init__(self):
        super().__init__()
        self.cancelled = 0

    def getattr(self, node, handle):
        return Attributes(DIRECTORY if node == ROOT else FILE, self.cancelled, valid=0)

    def open(self, node, flags):
        return Opened(direct_io=True)

    async def read(self, node, handle, offset, size):
        import asyncio

        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Whole(Flat):
    """What there is besides reading and writing: locks, ioctl 7 (reverses), poll, copies, times of birth."""

    threads = 2
    birth_times = True

    def __init__(self):
        super().__init__()
        self.data = bytearray(b"0123456789")
        self.locks: list[tuple[int, object]] = []
        self.flocks: dict[int, int] = {}
        self.wakes: list[int] = []
        self.ready = False

    def getattr(self, node, handle):
        mode = DIRECTORY if node == ROOT else FILE
        return Attributes(mode, len(self.data), mtime_ns=6_000_000_000, btime_ns=5_000_000_007)

    def open(self, node, flags):
        return Opened(9, direct_io=True)

    def opendir(self, node):
        return 10

    def read(self, node, handle, offset, size):
        return bytes(self.data[offset : offset + size])

    def setattr(self, node, changes, handle):
        self.ready = True
        for wake in self.wakes:
            self.notify_poll(wake)
        return self.getattr(node, handle)

    def copy_file_range(self, node, handle, offset, to_node, to_handle, to_offset, size):
        if to_offset == 7:
            return size + 1
        part = self.data[offset : offset + size]
        self.data[to_offset : to_offset + len(part)] = part
        return len(part)

    def ioctl(self, node, handle, command, data, room):
        answers = {
            7: lambda: data[::-1],
            8: lambda: (3, str(handle).encode()),
            9: lambda: bytes(room + 1),
            10: lambda: None,
        }
        if command & 255 not in answers:
            raise OSError(errno.ENOTTY, "none of mine")
        return answers[command & 255]()

    def bmap(self, node, block, block_size):
        return {0: 100 + block_size, 1: 0}.get(block, -1)

    def poll(self, node, handle, events, wake):
        if wake is not None:
            self.wakes.append(wake)
        return select.POLLIN if self.ready else 0

    def in_the_way(self, owner, lock):
        for other, held in self.locks:
            if other != owner and held.start <= lock.end and lock.start <= held.end:
                return held
        return None

    def getlk(self, node, handle, owner, lock):
        with self.lock:
            return self.in_the_way(owner, lock)

    def setlk(self, node, handle, owner, lock):
        with self.lock:
            if lock.kind != fcntl.F_UNLCK and self.in_the_way(owner, lock):
                raise BlockingIOError(errno.EAGAIN, "locked")
            self.locks = [(other, held) for other, held in self.locks if other != owner]
            if lock.kind != fcntl.F_UNLCK:
                self.locks.append((owner, lock))

    def flock(self, node, handle, owner, operation):
        with self.lock:
            if operation != fcntl.LOCK_UN and set(self.flocks) - {owner}:
                raise BlockingIOError(errno.EAGAIN, "locked")
            self.flocks.pop(owner, None)
            if operation != fcntl.LOCK_UN:
                self.flocks[owner] = operation


class Sticky(Flat):
    """Uses up memory where a file of that name is read."""

    threads = 2

    def read(self, node, handle, offset, size):
        if self.name(node) == b"memory":
            return bytes(1 << 50)
        return b"well"


class Trio(Sleepy):
    """As that, on a loop of trio."""

    loop = "trio"

    async def read(self, node, handle, offset, size):
        import trio

        try:
            await trio.sleep(3600)
        except trio.Cancelled:
            self.cancelled += 1
            raise


class Told(Flat):
    """Any file says "first" until its times are set: then the kernel is given "later" to keep.  `reads`: how many."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def getattr(self, node, handle):
        if node != ROOT and self.name(node) == b"reads":
            return Attributes(FILE, self.reads, valid=0)
        return Attributes(DIRECTORY if node == ROOT else FILE, 5)

    def lookup(self, parent, name):
        entry = super().lookup(parent, name)
        return Entry(entry.node, self.getattr(entry.node, None))

    def open(self, node, flags):
        return Opened(keep_cache=True)

    def read(self, node, handle, offset, size):
        self.reads += 1
        return b"first"

    def setattr(self, node, changes, handle):
        assert self.notify_store(node, 0, b"later")
        return self.getattr(node, handle)

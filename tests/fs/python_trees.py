# SPDX-License-Identifier: Apache-2.0
"""File systems in Python that tests serve by "python_trees.py:Class": what goes wrong in them goes wrong on purpose."""

from __future__ import annotations

import errno
import os
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

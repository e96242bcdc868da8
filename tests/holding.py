# SPDX-License-Identifier: Apache-2.0
"""A file system of the host that takes as long as a test wants: the daemon under test waits for its answers.

It holds the files `a` and `b` of `SIZE` bytes.  READ, FSYNC and FALLOCATE are answered only when the test says so;
anything else is answered at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from virtiofs.fuse import abi

SIZE = 1 << 20
ROOT = 1
FILES = {b"a": 2, b"b": 3}
DAY = 86400
HELD = ("read", "fsync", "fallocate")
ALL_AT_ONCE = abi.CONSTANTS["FUSE_ASYNC_READ"]
WAIT_SECONDS = 10.0
MS_NOSUID, MS_NODEV = 2, 4
BUFFER = (1 << 20) + 4096


def content(offset: int, size: int) -> bytes:
    """What the files hold."""
    first = offset // 8
    words = range(first, first + (offset % 8 + size) // 8 + 1)
    return struct.pack(f"<{len(words)}Q", *words)[offset % 8 :][: max(min(size, SIZE - offset), 0)]


class Held(NamedTuple):
    """A request of the host's kernel that waits for its answer."""

    name: str
    unique: int
    node: int
    arguments: bytes


class HoldingTree:
    """Mounted at `path` while the context lasts; whatever is still held at its end is answered."""

    def __init__(self, path: Path):
        self.path = path
        self.held: queue.Queue[Held] = queue.Queue()
        self.released: queue.Queue[int] = queue.Queue()  # nodes whose files were closed
        self._names = {operation.opcode: operation.name for operation in abi.OPERATIONS}
        self._free = False
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        if self._libc.mount(
            b"holding", os.fsencode(path), b"fuse.holding", MS_NOSUID | MS_NODEV, options.encode()
        ):
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number), str(path))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> HoldingTree:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go()
        self._libc.umount2(os.fsencode(self.path), 2)  # MNT_DETACH
        self._thread.join(WAIT_SECONDS)
        os.close(self._fd)

    def next(self, name: str) -> Held:
        """The next request that is held, which must be of this operation."""
        held = self.held.get(timeout=WAIT_SECONDS)
        assert held.name == name
        return held

    def answer(self, held: Held) -> None:
        """Do as the request asks."""
        payload = b""
        if held.name == "read":
            args = abi.FUSE_READ_IN.unpack(held.arguments)
            payload = content(args.offset, args.size)
        self._reply(held.unique, payload)

    def let_go(self) -> None:
        """Answer what is held, and from now on everything at once."""
        self._free = True
        while not self.held.empty():
            self.answer(self.held.get())

    def _reply(self, unique: int, payload: bytes = b"", error: int = 0) -> None:
        header = abi.FUSE_OUT_HEADER.pack(len=16 + len(payload), error=-error, unique=unique)
        try:
            os.write(self._fd, header + payload)
        except FileNotFoundError:
            pass  # the caller was killed: nobody waits any more

    def _serve(self) -> None:
        while True:
            try:
                message = os.read(self._fd, BUFFER)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                continue  # a request that was given up before it was read
            header = abi.FUSE_IN_HEADER.unpack(message)
            self._take(self._names.get(header.opcode, ""), header.unique, header.nodeid, message[40:])

    def _take(self, name: str, unique: int, node: int, rest: bytes) -> None:
        if name in ("forget", "batch_forget", "interrupt"):
            return
        if name in HELD:
            held = Held(name, unique, node, rest)
            if self._free:
                self.answer(held)
            else:
                self.held.put(held)
        elif name == "init":
            self._reply(
                unique,
                abi.FUSE_INIT_OUT.pack(major=7, minor=31, max_write=1 << 17, flags=ALL_AT_ONCE, time_gran=1),
            )
        elif name == "lookup":
            found = FILES.get(rest.rstrip(b"\0"))
            if found is None:
                self._reply(unique, error=errno.ENOENT)
                return
            valid = {"entry_valid": DAY, "attr_valid": DAY}
            self._reply(unique, abi.FUSE_ENTRY_OUT.pack(nodeid=found, attr=self._attr(found), **valid))
        elif name == "getattr":
            self._reply(unique, abi.FUSE_ATTR_OUT.pack(attr_valid=DAY, attr=self._attr(node)))
        elif name in ("open", "opendir"):
            self._reply(unique, abi.FUSE_OPEN_OUT.pack(fh=node, open_flags=abi.CONSTANTS["FOPEN_DIRECT_IO"]))
        elif name in ("release", "releasedir", "flush"):
            if name == "release":
                self.released.put(node)
            self._reply(unique)
        else:
            self._reply(unique, error=errno.ENOSYS)

    @staticmethod
    def _attr(node: int) -> dict[str, int]:
        mode = 0o40755 if node == ROOT else 0o100644
        return {"ino": node, "mode": mode, "nlink": 1, "size": 0 if node == ROOT else SIZE, "blksize": 4096}

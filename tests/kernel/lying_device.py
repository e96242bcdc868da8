# SPDX-License-Identifier: Apache-2.0
"""A vhost-user-fs device whose one file system has an empty root, and which lies about one operation.

It takes the ring's memory apart itself, as a hostile device would: it may write whatever it likes, wherever it likes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator

from virtiofs.fuse.abi import (
    BY_NAME,
    CONSTANTS,
    FUSE_ATTR_OUT,
    FUSE_IN_HEADER,
    FUSE_INIT_IN,
    FUSE_INIT_OUT,
    FUSE_OUT_HEADER,
)
from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.backend import BackEnd
from virtiofs.vhostuser.device import Device, VringState
from virtiofs.vhostuser.payloads import MemoryRegion
from virtiofs.vhostuser.transport import Connection, listen

DESCRIPTOR = struct.Struct("<QIHH")
WRITABLE = 2
INDIRECT = 4
NAMES = {operation.opcode: operation.name for operation in BY_NAME.values()}
ATTR = FUSE_ATTR_OUT.pack(attr={"ino": 1, "mode": 0o40755, "nlink": 2})
INIT = FUSE_INIT_OUT.pack(major=7, minor=31, max_write=4096)


class Request:
    """A chain that was taken: where its parts lie, and its message."""

    def __init__(self, queue: LyingQueue, head: int, pieces: list[tuple[int, int, int]]):
        self.queue = queue
        self.head = head
        self.writable = [(address, length) for address, length, flags in pieces if flags & WRITABLE]
        self.room = sum(length for _, length in self.writable)
        self.message = b"".join(
            queue.device.read(address, length) for address, length, flags in pieces if not flags & WRITABLE
        )
        header = FUSE_IN_HEADER.unpack(self.message)
        self.unique = header.unique
        self.opcode = header.opcode

    def reply(
        self,
        payload: bytes = b"",
        error: int = 0,
        length: int | None = None,
        unique: int | None = None,
        used: int | None = None,
        head: int | None = None,
    ) -> None:
        """Answer; what is named differs from the truth."""
        whole = FUSE_OUT_HEADER.size + len(payload)
        data = FUSE_OUT_HEADER.pack(
            len=whole if length is None else length,
            error=error,
            unique=self.unique if unique is None else unique,
        )
        data += payload
        for address, size in self.writable:
            self.queue.device.write(address, data[:size])
            data = data[size:]
        self.queue.use(self.head if head is None else head, whole if used is None else used)


Lie = Callable[[Request], None]


class LyingQueue:
    def __init__(self, device: LyingDevice, ring: VringState):
        self.device = device
        self.ring = ring
        self.kick, self.call = os.dup(ring.kick), os.dup(ring.call)
        self.next_avail = ring.base
        self.used = 0

    def use(self, head: int, length: int) -> None:
        element = self.ring.used + 4 + 8 * (self.used % self.ring.size)
        self.device.write(element, struct.pack("<II", head, length))
        self.jump(self.used + 1)

    def jump(self, index: int) -> None:
        """Let the used index be this."""
        self.used = index
        self.device.write(self.ring.used + 2, struct.pack("<H", index & 0xFFFF))
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.call, 1)

    def requests(self) -> Iterator[Request]:
        while self.next_avail != struct.unpack("<H", self.device.read(self.ring.avail + 2, 2))[0]:
            place = self.ring.avail + 4 + 2 * (self.next_avail % self.ring.size)
            (head,) = struct.unpack("<H", self.device.read(place, 2))
            self.next_avail = (self.next_avail + 1) & 0xFFFF
            address, length, flags, _ = DESCRIPTOR.unpack(self.device.read(self.ring.desc + 16 * head, 16))
            pieces = [(address, length, flags)]
            if flags & INDIRECT:
                table = self.device.read(address, length)
                pieces = [row[:3] for row in DESCRIPTOR.iter_unpack(table)]
            yield Request(self, head, pieces)


class LyingDevice(Device):
    """Answers INIT and GETATTR of the root, ENOENT to everything else; `lies` has other answers by operation."""

    features = m.VIRTIO_F_VERSION_1 | m.VIRTIO_RING_F_INDIRECT_DESC
    queue_count = 2

    def __init__(self, **lies: Lie):
        self.lies = lies
        self.seen: list[str] = []
        self.memory: list[tuple[MemoryRegion, mmap.mmap]] = []
        self.queues: dict[int, LyingQueue] = {}
        self.threads: list[threading.Thread] = []
        self.end = os.eventfd(0)

    def config(self) -> bytes:
        return b"liar".ljust(36, b"\0") + (1).to_bytes(4, "little")

    def map_memory(self, regions: list[MemoryRegion], fds: list[int]) -> None:
        self.memory = []
        for region, fd in zip(regions, fds, strict=True):
            self.add_memory(region, fd)

    def add_memory(self, region: MemoryRegion, fd: int) -> None:
        self.memory.append((region, mmap.mmap(fd, region.size + region.mmap_offset)))
        os.close(fd)

    def remove_memory(self, region: MemoryRegion) -> None:
        raise AssertionError("nobody removes memory")

    def _place(self, address: int) -> tuple[mmap.mmap, int]:
        for region, mapped in self.memory:
            if region.guest_phys <= address < region.guest_phys + region.size:
                return mapped, address - region.guest_phys + region.mmap_offset
        raise AssertionError(f"{address:#x} is outside memory")

    def read(self, address: int, length: int) -> bytes:
        mapped, offset = self._place(address)
        return mapped[offset : offset + length]

    def write(self, address: int, data: bytes) -> None:
        mapped, offset = self._place(address)
        mapped[offset : offset + len(data)] = data

    def start_queue(self, index: int, vring: VringState) -> None:
        queue = self.queues[index] = LyingQueue(self, vring)
        self.threads.append(threading.Thread(target=self._serve, args=(queue,), daemon=True))
        self.threads[-1].start()

    def _serve(self, queue: LyingQueue) -> None:
        while True:
            if self.end in select.select([queue.kick, self.end], [], [])[0]:
                return
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(queue.kick)
            for request in queue.requests():
                name = NAMES.get(request.opcode, str(request.opcode))
                self.seen.append(name)
                self.lies.get(name, honest)(request)

    def stop_queue(self, index: int) -> int:
        return self.queues[index].next_avail

    def set_call(self, index: int, fd: int) -> None:
        pass

    def set_err(self, index: int, fd: int) -> None:
        pass

    def set_enabled(self, index: int, enabled: bool) -> None:
        pass

    def reset(self) -> None:
        pass

    def disconnected(self) -> None:
        os.eventfd_write(self.end, 1)
        for thread in self.threads:
            thread.join(10)


def honest(request: Request) -> None:
    name = NAMES.get(request.opcode)
    if name == "init":
        request.reply(INIT)
    elif name == "getattr":
        request.reply(ATTR)
    elif name in ("forget", "batch_forget"):
        request.queue.use(request.head, 0)
    else:
        request.reply(error=-2)


def agreed_flags(request: Request) -> int:
    """The flags of an INIT request: what was offered to the device."""
    asked = FUSE_INIT_IN.unpack(request.message, FUSE_IN_HEADER.size)
    more: int = asked.flags2 if asked.flags & CONSTANTS["FUSE_INIT_EXT"] else 0
    return int(asked.flags) | more << 32


@contextlib.contextmanager
def lying(**lies: Lie) -> Iterator[tuple[str, LyingDevice]]:
    """Serve one connection with a lying device: its socket."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-test-") as place:
        path = f"{place}/s"
        device = LyingDevice(**lies)
        listener = listen(path)

        def serve() -> None:
            sock, _ = listener.accept()
            with Connection(sock) as connection:
                back_end = BackEnd(device, lambda line: None)
                try:
                    while back_end.step(connection):
                        pass
                finally:
                    back_end.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield path, device
        finally:
            listener.close()
            thread.join(10)

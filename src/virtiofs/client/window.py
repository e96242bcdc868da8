# SPDX-License-Identifier: Apache-2.0
"""A front end's shared memory regions: its DAX window, and a device's versions (docs/metadata-region.md).

It maps what the device asks for over its back-end channel, by the rules of QEMU 11.1 (seen).  Those are harsh, so
that a device which obeys them runs anywhere: every descriptor is writable; nothing is mapped past the end of its file,
over another mapping, or where it lacks whole pages; an unmapping names exactly what was mapped.  What breaks a rule is
refused and noted in `troubles`.  The answer is sent first; then the piece is announced like memory.

A thread of its own serves the channel, in turns with the exchanges of the front end (`FrontEnd.busy`), as a VMM does
that has one main loop.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from typing import NamedTuple

from virtiofs.client.versions import Versions
from virtiofs.metadata import region
from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.frontend import FrontEnd
from virtiofs.vhostuser.payloads import SHMEM_F_RW, MemoryRegion, ProtocolError
from virtiofs.vhostuser.transport import Connection
from virtiofs.virtqueue.memory import GuestMemory

WINDOW_BASE = 0x80_0000_0000  # where the guest sees the window
WINDOW_USER = 0x7D00_0000_0000  # user address = offset in the window + this
MOST_TABLE_REGIONS = 8
MOST_PIECES = 511  # QEMU dies of one more
PAGE = 4096
REFUSED = "refused"
FS_MAP, FS_UNMAP = 6, 7  # the older dialect (dax/channel.py)


class Piece(NamedTuple):
    """What is mapped at an offset of the window."""

    length: int
    region: MemoryRegion
    fd: int


class FrontWindow:
    """A window of `size` bytes (0: none).  `memory`, the driver's own, gets the mappings; `channel` is the device's.

    `announce`: show pieces as memory regions.  `others`: the regions that are memory, with their descriptors, for
    front ends that send whole tables.  `versions_size`: bytes of the region of versions, 0 for none.
    """

    def __init__(
        self,
        size: int,
        front_end: FrontEnd,
        memory: GuestMemory,
        announce: bool,
        others: list[tuple[MemoryRegion, int]],
        versions_size: int = 0,
    ):
        self.size = size
        self.pieces: dict[int, Piece] = {}
        self.troubles: list[str] = []
        self.requests = 0
        self.waiting = threading.Event()  # a request came, and is not obeyed yet
        self._front_end = front_end
        self._memory = memory
        self._announce = announce
        self._others = others
        self._versions_size = versions_size
        self._versions: Versions | None = None
        self._shown = threading.Event()  # the versions are there, or will never be
        if size:
            memory.reserve_window(size, zeros=True)
        ours, self.channel = socket.socketpair()
        self._connection = Connection(ours)
        self._thread = threading.Thread(target=self._serve, name="window", daemon=True)
        self._thread.start()

    def read(self, offset: int, length: int) -> bytes:
        """What a guest's program loads from there; zeros where nothing is mapped."""
        return self._memory.read_window(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """What a guest's program stores there."""
        self._memory.write_window(offset, data)

    def wait_for_versions(self, seconds: float) -> Versions | None:
        """What the device showed as its versions, within so many seconds, or None."""
        self._shown.wait(seconds)
        return self._versions

    def drop(self) -> None:
        """Forget all mappings without a word, as QEMU does when the device is reset."""
        with self._front_end.busy:
            self._versions = None
            self._shown.clear()
            for offset, piece in list(self.pieces.items()):
                self._unmap(offset)
                if self._announce:
                    self._show(piece.region, -1)

    def close(self) -> None:
        """Answer nothing more."""
        self.channel.close()
        try:
            self._connection._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the device was faster
        self._thread.join()
        self._connection.close()
        for piece in self.pieces.values():
            os.close(piece.fd)
        self.pieces.clear()

    def _serve(self) -> None:
        try:
            self._serve_requests()
        finally:
            self._shown.set()

    def _serve_requests(self) -> None:
        while True:
            try:
                received = self._connection.receive()
            except (ProtocolError, OSError) as error:
                self.troubles.append(str(error))
                return
            if received is None:
                return
            header, payload, fds = received
            self.waiting.set()
            with self._front_end.busy:
                self.waiting.clear()
                self.requests += 1
                trouble, change = self._obey(header.request, payload, fds)
                for fd in fds:
                    os.close(fd)
                if trouble and trouble != REFUSED:
                    self.troubles.append(trouble)
                if header.need_reply:
                    try:
                        self._connection.send(m.encode_acknowledgement(header.request, int(bool(trouble))))
                    except (ProtocolError, OSError):
                        return
                if change is not None and self._announce:
                    self._show(*change)

    def _obey(
        self, request: int, payload: bytes, fds: list[int]
    ) -> tuple[str, tuple[MemoryRegion, int] | None]:
        """What is wrong with a request, and the region that it brought (with its descriptor) or took (-1)."""
        if request == m.BACKEND_VRING_HOST_NOTIFIER_MSG:
            return REFUSED, None  # no rule broken: it is how a device waits until we are done
        if request in (FS_MAP, FS_UNMAP) and len(payload) == 256:
            words = struct.unpack("=32Q", payload)
            fd_offset, offset, length, flags = words[0::8]
            writable = bool(flags & 2)
        else:
            value = m.decode_payload(request, payload, from_front_end=False)
            fd_offset, offset, length = value.fd_offset, value.shm_offset, value.length
            writable = bool(value.flags & SHMEM_F_RW)
            if value.shmid == region.REGION and request == m.BACKEND_SHMEM_MAP:
                return self._map_versions(offset or fd_offset, length, fds), None
            if value.shmid:
                return f"there is nothing to map or unmap in region {value.shmid}", None
        if request in (m.BACKEND_SHMEM_MAP, FS_MAP):
            trouble = self._check(request == FS_MAP, writable, fd_offset, offset, length, fds)
            if trouble:
                return trouble, None
            fd = os.dup(fds[0])
            self._memory.map_window(offset, fd, fd_offset, length)
            shown = MemoryRegion(WINDOW_BASE + offset, length, WINDOW_USER + offset, fd_offset)
            self.pieces[offset] = Piece(length, shown, fd)
            return "", (shown, fd)
        piece = self.pieces.get(offset)
        if piece is None or piece.length != length:
            return f"nothing to unmap at {offset:#x}+{length:#x}", None
        self._unmap(offset)
        return "", (piece.region, -1)

    def _check(
        self, exact: bool, writable: bool, fd_offset: int, offset: int, length: int, fds: list[int]
    ) -> str:
        if len(fds) != 1:
            return f"{len(fds)} descriptors"
        size = os.fstat(fds[0]).st_size
        mode = fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_ACCMODE
        if mode != os.O_RDWR and (writable or not exact):
            return "the descriptor is not open for writing"
        if length == 0 or (fd_offset | offset | length) % PAGE or offset + length > self.size:
            return f"no whole pages, or outside: {offset:#x}+{length:#x} from {fd_offset:#x}"
        if size == 0:
            return "QEMU would make this empty file larger"
        if fd_offset + length > size:
            return f"past the end of a file of {size} bytes"
        if any(at < offset + length and offset < at + piece.length for at, piece in self.pieces.items()):
            return f"overlap at {offset:#x}+{length:#x}"
        if len(self.pieces) >= MOST_PIECES:
            return "QEMU would die of so many"
        return ""

    def _map_versions(self, offset: int, length: int, fds: list[int]) -> str:
        """What is wrong with how the device shows its versions: once, all of them, in one file."""
        if offset or length != self._versions_size or not length or len(fds) != 1 or self._versions:
            return f"{length} bytes of versions, where {self._versions_size} are due"
        try:
            self._versions = Versions(fds[0], length)
        except (ValueError, OSError) as error:
            return str(error)
        self._shown.set()
        return ""

    def _unmap(self, offset: int) -> None:
        piece = self.pieces.pop(offset)
        self._memory.unmap_window(offset, piece.length)
        os.close(piece.fd)

    def _show(self, piece: MemoryRegion, fd: int) -> None:
        """Tell the device what became of its memory, as QEMU does for all that is mapped for the guest."""
        front_end = self._front_end
        try:
            if front_end.protocol_features & m.PROTOCOL_F_CONFIGURE_MEM_SLOTS:
                if fd >= 0:
                    front_end.add_memory(piece, fd)
                else:
                    front_end.remove_memory(piece)
                return
            table = self._others + [(one.region, one.fd) for one in self.pieces.values()]
            if len(table) <= MOST_TABLE_REGIONS:  # QEMU complains of more, and sends nothing
                front_end.set_memory([one for one, _ in table], [fd for _, fd in table])
        except Exception as error:
            self.troubles.append(f"while telling of memory: {error}")

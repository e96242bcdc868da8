# SPDX-License-Identifier: Apache-2.0
"""A driver without manners: writes any bytes into the rings of a device, for tests of devices.

`RawQueue` takes a queue of a connected `Device` over.  Nothing is checked or kept in order: descriptors,
tables, indices and flags are written as they are given, and what the device did is read back from the rings.
Afterwards `Device.reset` gives the queue back to the well-behaved driver.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from virtiofs.client.device import Device

NEXT, WRITE, INDIRECT = 1, 2, 4  # descriptor flags
NO_INTERRUPT = 1  # flag of the available ring


class Descriptor(NamedTuple):
    """One entry of a descriptor table, exactly as it will lie in memory."""

    address: int = 0
    length: int = 0
    flags: int = 0
    next: int = 0

    def pack(self) -> bytes:
        return struct.pack("<QIHH", *self)


class Used(NamedTuple):
    """One entry of the used ring."""

    id: int
    length: int


class RawQueue:
    """The rings of queue `index` of a device, as bytes.  `seen`: the used index that `wait_used` counts
    from."""

    def __init__(self, device: Device, index: int = 1):
        queue = device.queues[index]
        ring = queue.ring
        self.memory = device.memory
        self.arena = device.arena
        self._placed: list[tuple[int, int]] = []
        self.size = queue.size
        self.desc, self.avail, self.used = ring.desc_address, ring.avail_address, ring.used_address
        self.kick_fd, self.call_fd, self.err_fd = queue.kick_fd, queue.call_fd, queue.err_fd
        self.next_avail = ring.next_avail
        self.seen = ring.next_used

    # --- memory ---

    def place(self, data: bytes, alignment: int = 16) -> int:
        """Put bytes somewhere in guest memory; their address."""
        length = max(len(data), 1)
        address = self.arena.take(length, alignment)
        self._placed.append((address, length))
        self.memory.write(address, data)
        return address

    def release(self) -> None:
        """Give the memory of everything that was placed back to the device's arena."""
        while self._placed:
            self.arena.give(*self._placed.pop())

    def room(self, length: int, alignment: int = 16) -> int:
        """Zeroed guest memory for the device to write; its address."""
        return self.place(bytes(length), alignment)

    # --- what the driver writes ---

    def descriptor(self, index: int, entry: Descriptor) -> None:
        """Write entry `index` of the ring's descriptor table."""
        self.memory.write(self.desc + 16 * index, entry.pack())

    def table(self, entries: Sequence[Descriptor], alignment: int = 16) -> int:
        """Write an indirect table; its address."""
        return self.place(b"".join(entry.pack() for entry in entries), alignment)

    def chain(self, entries: Sequence[Descriptor], first: int = 0) -> int:
        """Write entries to `first`, `first + 1`, ... of the descriptor table as they are; `first`."""
        for i, entry in enumerate(entries):
            self.descriptor(first + i, entry)
        return first

    def offer(self, *heads: int) -> None:
        """Put heads into the available ring and raise its index by their number."""
        for head in heads:
            self.memory.write(
                self.avail + 4 + 2 * (self.next_avail % self.size), struct.pack("<H", head & 0xFFFF)
            )
            self.next_avail = (self.next_avail + 1) & 0xFFFF
        self.publish(self.next_avail)

    def publish(self, index: int) -> None:
        """Set the available index to anything."""
        self.next_avail = index & 0xFFFF
        self.memory.write(self.avail + 2, struct.pack("<H", self.next_avail))

    def avail_flags(self, flags: int) -> None:
        """Set the flags of the available ring."""
        self.memory.write(self.avail, struct.pack("<H", flags))

    def used_event(self, index: int) -> None:
        """Set the used index at which the device is to call (event index)."""
        self.memory.write(self.avail + 4 + 2 * self.size, struct.pack("<H", index & 0xFFFF))

    def kick(self) -> None:
        """Kick the device, whether it wants that or not."""
        os.eventfd_write(self.kick_fd, 1)

    # --- what the device did ---

    def used_index(self) -> int:
        """The used index as it stands."""
        return int.from_bytes(self.memory.read(self.used + 2, 2), "little")

    def used_entry(self, position: int) -> Used:
        """The entry of the used ring at a free-running position."""
        return Used(*struct.unpack("<II", self.memory.read(self.used + 4 + 8 * (position % self.size), 8)))

    def wait_used(self, count: int = 1, timeout: float = 5.0) -> list[Used]:
        """The entries used since the last call, once there are `count` or the time is over."""
        deadline = time.monotonic() + timeout
        while (self.used_index() - self.seen) & 0xFFFF < count:
            self.used_event(self.seen + count - 1)
            if (self.used_index() - self.seen) & 0xFFFF >= count:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if select.select([self.call_fd], [], [], left)[0]:
                os.eventfd_read(self.call_fd)
        entries: list[Used] = []
        end = self.used_index()
        while self.seen != end and len(entries) < self.size:
            entries.append(self.used_entry(self.seen))
            self.seen = (self.seen + 1) & 0xFFFF
        return entries

    def wait_broken(self, timeout: float = 5.0) -> bool:
        """Whether the device writes the queue's err descriptor in time: it gave the ring up."""
        return bool(select.select([self.err_fd], [], [], timeout)[0])

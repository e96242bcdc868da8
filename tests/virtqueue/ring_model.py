# SPDX-License-Identifier: Apache-2.0
"""A device end of the split ring written in plain Python, straight from virtio 1.3 section 2.7: the tests'
oracle."""

from __future__ import annotations

import os
import struct

from virtiofs.virtqueue.driver import DriverQueue
from virtiofs.virtqueue.memory import GuestMemory

BASE = 0x8000_0000
MEMORY = 4 << 20
NEXT, WRITE, INDIRECT = 1, 2, 4


class ModelDevice:
    """Takes chains from the rings at the given guest addresses and gives them back."""

    def __init__(self, memory, size, desc, avail, used, event_idx, kick_fd=-1, call_fd=-1):
        self.memory, self.size, self.event_idx = memory, size, event_idx
        self.desc, self.avail, self.used = desc, avail, used
        self.kick_fd, self.call_fd = kick_fd, call_fd
        self.next_avail = self.next_used = self.signalled = 0
        self.calls = 0

    def u16(self, address):
        return struct.unpack("<H", self.memory.read(address, 2))[0]

    def put16(self, address, value):
        self.memory.write(address, struct.pack("<H", value & 0xFFFF))

    def pop(self):
        """The next chain as (head, readable pieces, writable pieces, was it indirect), or None."""
        if self.u16(self.avail + 2) == self.next_avail:
            return None
        head = self.u16(self.avail + 4 + 2 * (self.next_avail % self.size))
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        table, index, indirect = self.desc, head, False
        readable, writable = [], []
        while True:
            address, length, flags, following = struct.unpack(
                "<QIHH", self.memory.read(table + 16 * index, 16)
            )
            if flags & INDIRECT:
                assert not indirect
                assert length % 16 == 0
                table, index, indirect = address, 0, True
                continue
            assert not (writable and not flags & WRITE)
            (writable if flags & WRITE else readable).append((address, length))
            if not flags & NEXT:
                return head, readable, writable, indirect
            index = following

    def push(self, head, length):
        self.memory.write(self.used + 4 + 8 * (self.next_used % self.size), struct.pack("<II", head, length))
        self.next_used = (self.next_used + 1) & 0xFFFF
        self.put16(self.used + 2, self.next_used)

    def call_if_wanted(self):
        """Call the driver if it asked for that; whether it did."""
        if self.event_idx:
            event = self.u16(self.avail + 4 + 2 * self.size)
            wanted = (self.next_used - event - 1) & 0xFFFF < (self.next_used - self.signalled) & 0xFFFF
            self.signalled = self.next_used
        else:
            wanted = not self.u16(self.avail) & 1
        if wanted and self.call_fd >= 0:
            self.calls += 1
            os.eventfd_write(self.call_fd, 1)
        return wanted

    def want_kick(self, wanted=True):
        """Ask to be kicked for the next chain, or not."""
        if self.event_idx:
            self.put16(self.used + 4 + 8 * self.size, self.next_avail if wanted else self.next_avail - 1)
        else:
            self.put16(self.used, 0 if wanted else 1)


def make(size=8, event_idx=True, indirect=8, kick_fd=-1, call_fd=-1):
    """Both ends of a ring in new memory at BASE."""
    memory = GuestMemory()
    fd = os.memfd_create("ring")
    os.ftruncate(fd, MEMORY)
    memory.add(BASE, MEMORY, fd)
    os.close(fd)
    queue = DriverQueue(memory, BASE, size, event_idx, indirect, kick_fd, call_fd)
    rings = (queue.desc_address, queue.avail_address, queue.used_address)
    return queue, ModelDevice(memory, size, *rings, event_idx, kick_fd, call_fd)

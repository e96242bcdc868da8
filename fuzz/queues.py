# SPDX-License-Identifier: Apache-2.0
"""A guest as small as can be: some pages of memory, a ring in them, and a queue that serves it in this process."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence

from virtiofs.fs.filesystem import Filesystem
from virtiofs.fuse.loop import QueueLoop
from virtiofs.fuse.session import Session
from virtiofs.virtqueue.memory import GuestMemory
from virtiofs.virtqueue.split import SplitQueue

PAGE = mmap.PAGESIZE
NEXT, WRITE, INDIRECT = 1, 2, 4
ENTRY = struct.Struct("<QIHH")


class Memory:
    """Guest memory between two pages that may not be touched, so that a step over either edge is a SIGSEGV.

    `regions`: (guest address, size) of each; they lie one after another in `view`.
    """

    def __init__(self, *regions: tuple[int, int]):
        self.regions = regions
        self.guest = GuestMemory()
        size = sum(size for _, size in regions)
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size)
        self.view = mmap.mmap(fd, size)
        offset = 0
        self._guards: list[mmap.mmap] = []
        for address, length in regions:
            self._add_guarded(address, length, fd, offset)
            offset += length
        os.close(fd)
        self.size = size

    def _add_guarded(self, address: int, length: int, fd: int, offset: int) -> None:
        """The kernel maps downwards from what was mapped last: guard, memory, guard.  Checked, not assumed."""
        for _ in range(64):
            self._guards.append(mmap.mmap(-1, PAGE, prot=0))
            self.guest.add(address, length, fd, offset)
            self._guards.append(mmap.mmap(-1, PAGE, prot=0))
            if self._is_guarded(os.fstat(fd).st_ino, offset):
                return
            self.guest.remove(address, length)
        raise RuntimeError("the kernel leaves no room around guest memory for guard pages")

    @staticmethod
    def _is_guarded(inode: int, offset: int) -> bool:
        with open("/proc/self/maps") as maps:
            spans = [line.split()[:5] for line in maps]
        found = [
            i
            for i, span in enumerate(spans)
            if (int(span[2], 16), int(span[4])) == (offset, inode) and 0 < i < len(spans) - 1
        ]
        for i in found:
            (first, end), below, above = spans[i][0].split("-"), spans[i - 1], spans[i + 1]
            touching = below[0].endswith("-" + first) and above[0].startswith(end + "-")
            if touching and below[1].startswith("---") and above[1].startswith("---"):
                return True
        return False


class Ring:
    """A well-formed split ring at `base` of a memory whose guest addresses begin at 0, and the loop that serves it."""

    def __init__(self, memory: Memory, base: int, size: int, filesystem: Filesystem):
        self.memory, self.size = memory, size
        self.desc = base
        self.avail = base + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.end = self.used + 6 + 8 * size
        self.session = Session(filesystem)
        self.next = self.seen = 0
        queue = SplitQueue(memory.guest, size, self.desc, self.avail, self.used)
        self.loop = QueueLoop(self.session, queue, os.eventfd(0), -1)

    def offer(self, pieces: Sequence[tuple[int, int, bool]], first: int = 0, table: int = 0) -> None:
        """Make a chain of (address, length, writable) available, from descriptor `first` on.

        With `table`, the guest address of room for it, as an indirect table.
        """
        view, count = self.memory.view, len(pieces)
        start, index = (table, 0) if table else (self.desc + 16 * first, first)
        for i, (address, length, writable) in enumerate(pieces):
            flags = (NEXT if i + 1 < count else 0) | (WRITE if writable else 0)
            ENTRY.pack_into(view, start + 16 * i, address, length, flags, index + i + 1)
        if table:
            ENTRY.pack_into(view, self.desc + 16 * first, table, 16 * count, INDIRECT, 0)
        struct.pack_into("<H", view, self.avail + 4 + 2 * (self.next % self.size), first)
        self.next = (self.next + 1) & 0xFFFF
        struct.pack_into("<H", view, self.avail + 2, self.next)

    def used_index(self) -> int:
        return int(struct.unpack_from("<H", self.memory.view, self.used + 2)[0])

    def used_entry(self, position: int) -> tuple[int, int]:
        """Head and length of an entry of the used ring."""
        head, length = struct.unpack_from("<II", self.memory.view, self.used + 4 + 8 * (position % self.size))
        return head, length

    def end_waiting(self) -> None:
        """Give up what waits for a lock."""
        if self.loop.waiting_count:
            self.loop.stop()
            self.loop.run()
            self.loop.rearm()

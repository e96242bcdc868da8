# SPDX-License-Identifier: Apache-2.0
"""Any bytes as descriptors, rings, indirect tables and what they point to."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from fuzz.choices import Choices
from fuzz.queues import ENTRY, INDIRECT, NEXT, WRITE, Memory
from fuzz.shares import ROOT, Place
from virtiofs.fuse import abi
from virtiofs.fuse.loop import QueueLoop
from virtiofs.fuse.session import Session
from virtiofs.virtqueue.split import REASONS, SplitQueue

# Three regions: two that touch each other, and one beyond a hole.
REGIONS = ((0, 0x3000), (0x3000, 0x1000), (0x10000, 0x1000))
BODY = 0x1000  # where what follows the rings in the input lies


def _areas(size: int) -> tuple[int, int, int, int]:
    """Where descriptor table, available ring and used ring lie, and their end."""
    avail = 16 * size
    used = (avail + 6 + 2 * size + 3) & ~3
    return 0, avail, used, used + 6 + 8 * size


def _message(name: str, body: bytes, node: int = ROOT) -> bytes:
    operation = abi.BY_NAME[name]
    return abi.FUSE_IN_HEADER.pack(len=40 + len(body), opcode=operation.opcode, unique=2, nodeid=node) + body


def _input(chains: Sequence[Sequence[tuple[int, int, int, int]]], body: bytes, features: int = 3) -> bytes:
    """An input for a ring of 8: chains of (address, length, flags, next), one after another in the table."""
    table = b"".join(ENTRY.pack(*entry) for chain in chains for entry in chain)
    heads = []
    for i in range(len(chains)):
        heads.append(sum(len(before) for before in chains[:i]))
    ring = struct.pack("<HH", 0, len(heads)) + struct.pack(f"<{len(heads)}H", *heads)
    size = 8
    return bytes([3, features, 0, 0]) + table.ljust(16 * size, b"\0") + ring.ljust(6 + 2 * size, b"\0") + body


INIT = _message("init", abi.FUSE_INIT_IN.pack(major=7, minor=46, flags=0xFFFFFFFF, flags2=0xFFFFFFFF))
GETATTR = _message("getattr", bytes(16))
LOOKUP = _message("lookup", b"file\0")
TABLE = BODY + 0x400
SEEDS = [
    _input([[(BODY, len(INIT), NEXT, 1), (BODY + 0x200, 80, WRITE, 0)]], INIT),
    _input(
        [
            [(BODY, len(INIT), NEXT, 1), (BODY + 0x200, 80, WRITE, 0)],
            [(BODY + len(INIT), 40, NEXT, 3), (BODY + len(INIT) + 40, 16, NEXT, 4), (0x10000, 200, WRITE, 0)],
        ],
        INIT + GETATTR,
    ),
    _input(
        [[(BODY, len(INIT), NEXT, 1), (BODY + 0x200, 80, WRITE, 0)], [(TABLE, 48, INDIRECT, 0)]],
        (INIT + LOOKUP).ljust(TABLE - BODY, b"\0")
        + ENTRY.pack(BODY + len(INIT), 40, NEXT, 1)
        + ENTRY.pack(BODY + len(INIT) + 40, 5, NEXT, 2)
        + ENTRY.pack(0x2F00, 0x100, WRITE, 0),
    ),
    _input([[(BODY, len(GETATTR), NEXT, 1), (0x2FF0, 0x20, WRITE, 0)]], GETATTR, 0),
    _input([[(BODY, 40, NEXT, 0)]], GETATTR),
    _input([[(TABLE, 16, INDIRECT, 0)]], bytes(TABLE - BODY) + ENTRY.pack(TABLE, 16, INDIRECT, 0)),
]


class Target:
    """The queue serves, or stops and says why: each chain it took is given back once, and no memory but the guest's is
    used."""

    def __init__(self, scratch: Path):
        self.place = Place(scratch)
        self.share = self.place.shares()[0]
        self.memory = Memory(*REGIONS)

    def __call__(self, data: bytes) -> None:
        choices = Choices(data)
        size = 1 << choices.number(1) % 8
        features = choices.number(1)
        base = choices.number(2)
        desc, avail, used, end = _areas(size)
        view = self.memory.view
        view[:] = bytes(self.memory.size)
        rings = choices.take(16 * size + 6 + 2 * size)
        view[: len(rings)] = rings
        rest = choices.take(self.memory.size - BODY)
        view[BODY : BODY + len(rest)] = rest
        session = Session(self.share)
        queue = SplitQueue(
            self.memory.guest, size, desc, avail, used, base, bool(features & 1), bool(features & 2)
        )
        before = int(struct.unpack_from("<H", view, used + 2)[0])
        loop = QueueLoop(session, queue, os.eventfd(0), -1)
        served = loop.serve_available()
        assert loop.requests == served
        assert not queue.reason or queue.reason in REASONS.values()
        waiting = loop.waiting_count
        if waiting:
            loop.stop()
            loop.run()
        assert loop.waiting_count == 0
        assert (queue.base - base) & 0xFFFF == served & 0xFFFF
        if not queue.reason and end <= BODY:
            self._check_used(view, size, used, before, served)
        session.end()
        assert self.share.statistics()["handles"] == 0
        self.place.canaries.check()

    def _check_used(self, view: object, size: int, used: int, before: int, served: int) -> None:
        """The used index counts what was served; it may be written over by a reply only if a buffer lies on it."""
        if self._touches_rings(view, size):
            return
        after = int(struct.unpack_from("<H", view, used + 2)[0])  # type: ignore[arg-type]
        assert (after - before) & 0xFFFF == served & 0xFFFF
        for position in range(before, before + min(served, size)):
            head, _ = struct.unpack_from("<II", view, used + 4 + 8 * (position % size))  # type: ignore[arg-type]
            assert head < size

    @staticmethod
    def _touches_rings(view: object, size: int) -> bool:
        """Whether a writable buffer may overlap the rings; those in an indirect table may lie anywhere."""
        for i in range(size):
            address, length, flags, _ = ENTRY.unpack_from(view, 16 * i)  # type: ignore[arg-type]
            if flags & INDIRECT or (flags & WRITE and length and address < BODY):
                return True
        return False

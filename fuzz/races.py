# SPDX-License-Identifier: Apache-2.0
"""Guest memory that is rewritten by another thread while requests in it are handled."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from fuzz.choices import Choices
from fuzz.messages import INDEX, Known, Message
from fuzz.queues import Memory, Ring
from fuzz.requests import ALONE, MESSAGE, STORIES, TABLES
from fuzz.shares import Place

BATCH = 8
SLOT = 0x1000  # a message in the first half of each, its reply in the second
SIZE = MESSAGE + BATCH * SLOT
MOST_WRITES = 1 << 16

# The first bytes say what is rewritten: how many places, then offset and value of each.
# Lengths and addresses in the table of the ring and in indirect ones, the available index, a message's length and body.
PLACES = [
    [(16 * 4 + 9, 0x80), (16 * 12 + 8, 0x40)],
    [(16 * 4 + 2, 0xFF), (16 * 8 + 12, 0xFF)],
    [(TABLES + 0x40 + 8, 0xFF), (TABLES + 0x40 + 12, 7), (TABLES + 0x40 + 14, 0xFF)],
    [(16 * 32 + 2, 0x0C), (16 * 32 + 4, 0xFF)],
    [(0x4000 + number, 0xFF) for number in (0, 4, 16, 40, 48, 56)],
    [(0x4000 + 40, 0x2F), (0x4100 + 40, 0x2F), (0x4200 + 40, 0), (0x4300 + 41, 0)],
]
SEEDS = [
    bytes([len(places)])
    + b"".join(where.to_bytes(2, "little") + bytes([value]) for where, value in places)
    + bytes([number % 4])
    + story * 2
    for number, places in enumerate(PLACES)
    for story in [*STORIES, b"".join(ALONE)]
]


def place(number: int) -> int:
    """An offset into guest memory: mostly in the rings and tables, or in the first bytes of a message."""
    if number < 0x4000:
        return number % (TABLES + BATCH * 0x40)
    if number < 0xC000:
        return MESSAGE + (number >> 8) % BATCH * SLOT + number % 256
    return number % SIZE


class Rewriter(threading.Thread):
    """Writes old and new bytes to places of `view` by turns, between `begin` and `end` and at most `MOST_WRITES` times:
    a ring whose index never stands still would be served for ever."""

    def __init__(self, view: memoryview):
        super().__init__(daemon=True)
        self.view = view
        self.places: list[tuple[int, int]] = []
        self.go = threading.Semaphore(0)
        self.idle = threading.Semaphore(0)
        self.active = self.writing = False
        self.writes = 0

    def begin(self, places: list[tuple[int, int]]) -> None:
        self.places = [
            (place, old) for where, new in places for place, old in ((where, new), (where, self.view[where]))
        ]
        self.active = True
        self.writing = not places
        self.go.release()
        # Both threads write from here on: this one serves without the interpreter's lock, which the other then has.
        while not self.writing:
            time.sleep(0)

    def end(self) -> None:
        self.active = False
        self.idle.acquire()

    def run(self) -> None:
        while True:
            self.go.acquire()
            left = MOST_WRITES
            view, places = self.view, self.places
            while self.active and left > 0 and places:
                for where, value in places:
                    view[where] = value
                left -= len(places)
                self.writing = True
            self.writes += MOST_WRITES - left
            self.idle.release()


class Target:
    """Whatever the guest changes while its requests are handled, no memory but its own is used, and the files beside
    the share stay unread and untouched."""

    def __init__(self, scratch: Path):
        sys.setswitchinterval(1e-5)
        self.place = Place(scratch)
        self.shares = self.place.shares()
        self.memory = Memory((0, SIZE))
        self.rewriter = Rewriter(memoryview(self.memory.view))
        self.rewriter.start()

    def __call__(self, data: bytes) -> None:
        choices = Choices(data)
        places = [(place(choices.number(2)), choices.number(1)) for _ in range(choices.number(1) % 16)]
        number = choices.number(1) % len(self.shares)
        view = self.memory.view
        view[:] = bytes(SIZE)
        ring = Ring(self.memory, 0, 32, self.shares[number])
        known = Known()
        # What the driver would have learnt: the numbers of the first inodes and handles, in any generation so far.
        self._offer(ring, Message(Choices(bytes([INDEX["init"]])), known, 1), 0)
        ring.loop.serve_available()
        unique = 1
        while choices.left:
            for slot in range(BATCH):
                unique += 2
                self._offer(ring, Message(choices, known, unique), slot)
            self.rewriter.begin(places)
            ring.loop.serve_available()
            self.rewriter.end()
            if ring.loop.queue.reason:
                break
            ring.end_waiting()  # a head is not to be offered again before it was given back
            self._learn(ring, known)
        ring.end_waiting()
        ring.session.end()
        self.place.canaries.check()
        self.place.reset()

    def _offer(self, ring: Ring, message: Message, slot: int) -> None:
        at = MESSAGE + slot * SLOT
        data = message.data[: SLOT // 2]
        room = min(message.room, SLOT // 2)
        self.memory.view[at : at + len(data)] = data
        cut = min(40, len(data))
        pieces = [(at, cut, False), (at + cut, len(data) - cut, False), (at + SLOT // 2, room, True)]
        ring.offer(pieces, slot * 4, TABLES + slot * 0x40 if slot & 1 else 0)

    def _learn(self, ring: Ring, known: Known) -> None:
        """Take any number at the place of a node id or handle for one."""
        for slot in range(BATCH):
            at = MESSAGE + slot * SLOT + SLOT // 2 + 16
            number = int.from_bytes(self.memory.view[at : at + 8], "little")
            known.nodes.append(number)
            known.files.append(number)
            known.directories.append(number)

# SPDX-License-Identifier: Apache-2.0
"""Requests, nearly right, in any order."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

from fuzz.choices import Choices
from fuzz.messages import INDEX, Known, Message, step
from fuzz.queues import Memory, Ring
from fuzz.replies import Found, check
from fuzz.shares import Place
from virtiofs.fuse import abi
from virtiofs.fuse.abi import OPERATIONS

SIZE = 0x10000
TABLES, MESSAGE, REPLIES, SLOT = 0x400, 0x1000, 0x8000, 0x2000
SLOTS = 4
MOST_REQUESTS = 32
# Positions in shares.NAMES.
FILE, DIR, INNER, LINK, OUT, _, FIFO, MOUNT, NEW, OTHER, NULL, DEEP = range(12)
ATTRIBUTE, ANOTHER = 22, 23
OPEN_FILE = step("lookup", names=(FILE,)) + step("open", 1)
STORIES = [
    OPEN_FILE + step("read", 1) + step("write", 1) + step("read", 1, size=6) + step("flush", 1) + step("release", 1),
    OPEN_FILE + step("write", 1, flags=3) + step("fsync", 1) + step("lseek", 1) + step("fallocate", 1, length=4),
    OPEN_FILE + step("setlk", 1) + step("getlk", 1, owner=1) + step("setlkw", 1, owner=1) + step("interrupt", 1),
    OPEN_FILE + step("setlk", 1, lk_flags=1) + step("open", 1) + step("setlkw", 1, lk_flags=1) + step("release", 1),
    OPEN_FILE + b"".join(step("ioctl", 1, cmd=cmd) for cmd in range(4)),
    OPEN_FILE
    + step("create", names=(NEW,))
    + step("copy_file_range", 2, fh_in=1)
    + step("copy_file_range_64", 2, fh_in=1, off_out=3)
    + step("setattr", 1, valid=0x7F)
    + step("getattr", 1)
    + step("statx", 1),
    step("lookup", names=(FILE,))
    + step("setxattr", 1, (ANOTHER,), size=4)
    + step("getxattr", 1, (ANOTHER,))
    + step("listxattr", 1)
    + step("listxattr", 1, size=2)
    + step("removexattr", 1, (ATTRIBUTE,)),
    step("opendir") + step("readdir") + step("readdirplus") + step("readdirplus", offset=2) + step("fsyncdir")
    + step("releasedir"),
    step("mkdir", names=(NEW,))
    + step("mknod", 1, (OTHER,))
    + step("mknod", 2, (DEEP,), mode=2)
    + step("symlink", 3, (LINK, INNER))
    + step("readlink", 1)
    + step("rmdir", names=(NEW,))
    + step("getattr", 4),
    step("lookup", names=(FILE,)) + step("link", 0, (NEW,), oldnodeid=1) + step("rename", names=(NEW, OTHER))
    + step("unlink", names=(FILE,)) + step("getattr", 1) + step("forget", 1) + step("getattr", 1),
    step("lookup", names=(DIR,)) + step("lookup", 1, (INNER,)) + step("rename2", 2, (INNER, NEW), newdir=2)
    + step("rename2", 2, (NEW, DEEP), newdir=2, flags=2) + step("batch_forget") + step("unlink", 2, (NEW,)),
    step("tmpfile") + step("write", 1) + step("link", 0, (NEW,), oldnodeid=1) + step("lookup", names=(NEW,)),
    step("lookup", names=(MOUNT,)) + step("statfs", 1) + step("create", 1, (NEW,)) + step("opendir", 2)
    + step("readdirplus", 1) + step("syncfs") + step("access", 1),
    step("lookup", names=(FIFO,)) + step("open", 1) + step("lookup", names=(NULL,)) + step("open", 1)
    + step("lookup", names=(OUT,)) + step("open", 1) + step("setattr", 1, valid=8) + step("readlink", 1),
]  # fmt: skip
ALONE = [step(operation.name) for operation in OPERATIONS]
# First which share and with which INIT flags.
SEEDS = [bytes([share, 0]) + story for share in range(5) for story in [*STORIES, *ALONE]]

CAP_FSETID = 4  # linux/capability.h


class Target:
    """Every reply is one that Linux accepts, only the room for replies is written to, the files beside the share stay
    unread and untouched, and the thread ends with the identity it had."""

    def __init__(self, scratch: Path):
        self.place = Place(scratch)
        self.shares = self.place.shares()
        self.memory = Memory((0, SIZE))
        self.identity = self._identity()
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.unique = 0
        self.changed = False

    @staticmethod
    def _identity() -> tuple[object, ...]:
        with open(f"/proc/self/task/{threading.get_native_id()}/status") as status:
            capabilities = {
                name: int(mask, 16)
                for name, _, mask in (line.partition(":") for line in status if line.startswith("Cap"))
            }
        # A thread gives CAP_FSETID away, and takes it back, as the callers of its requests change.
        capabilities["CapEff"] &= ~(1 << CAP_FSETID)
        return os.getresuid(), os.getresgid(), os.getgroups(), capabilities

    def __call__(self, data: bytes) -> None:
        choices = Choices(data)
        number = choices.number(1) % len(self.shares)
        self.ring = self._clean_ring(number)
        self.known = Known()
        self.outstanding: dict[int, tuple[Message, int, list[tuple[int, int]]]] = {}
        begin = Message(
            Choices(bytes([INDEX["init"], 0, 0]) + bytes(16) + bytes([choices.number(1)])), self.known, 1
        )
        self._send(begin, Choices(b""))
        count = 0
        while choices.left and count < MOST_REQUESTS:
            self.unique += 2
            self._send(Message(choices, self.known, self.unique), choices)
            count += 1
        self.ring.end_waiting()
        self._collect()
        assert not self.outstanding, "requests were lost"
        self.ring.session.end()
        statistics = self.shares[number].statistics()
        assert statistics["handles"] == 0 and statistics["inodes"] <= 1, statistics
        del self.ring
        assert self._identity() == self.identity
        # Each share may keep one for its root and one for each mount it met; a leak would not end there.
        assert len(os.listdir("/proc/self/fd")) <= self.descriptors + 4 * len(self.shares), "descriptors leak"
        self.place.canaries.check()
        if self.changed:
            self.place.reset()
            self.changed = False

    def _clean_ring(self, number: int) -> Ring:
        self.memory.view[:MESSAGE] = bytes(MESSAGE)
        return Ring(self.memory, 0, 16, self.shares[number])

    def _send(self, message: Message, choices: Choices) -> None:
        """Give the queue one message, in pieces, and judge what comes back."""
        if len(self.outstanding) == SLOTS:
            self.ring.end_waiting()
            self._collect()
        slot = next(slot for slot in range(SLOTS) if 4 * slot not in self.outstanding)
        data = message.data[: REPLIES - MESSAGE]
        room = min(message.room, SLOT - 64)
        layout = choices.number(1)
        readable = self._pieces(MESSAGE, len(data), layout & 7, choices)
        writable = self._pieces(REPLIES + slot * SLOT, room, layout >> 3 & 7, choices)
        pieces = [(*piece, False) for piece in readable] + [(*piece, True) for piece in writable]
        self.memory.view[MESSAGE : MESSAGE + len(data)] = data
        if not pieces:
            pieces = [(MESSAGE, 0, False)]
        table = TABLES + slot * 0x100 if len(pieces) > 4 or layout & 64 else 0
        self.ring.offer(pieces, slot * 4, table)
        self.outstanding[slot * 4] = (message, room, writable)
        before = self.memory.view[:]
        assert self.ring.loop.serve_available() == 1, "a request was not taken"
        assert not self.ring.loop.queue.reason, self.ring.loop.queue.reason
        self._compare(before)
        self._collect()

    @staticmethod
    def _pieces(start: int, size: int, splits: int, choices: Choices) -> list[tuple[int, int]]:
        """`size` bytes from `start` on, cut at up to seven places; with seven, empty pieces may be among them."""
        cuts = sorted(choices.number(2) % (size + 1) for _ in range(splits))
        ends = [0, *cuts, size]
        pieces = [(start + a, b - a) for a, b in itertools.pairwise(ends)]
        return [piece for piece in pieces if piece[1] or splits == 7]

    def _compare(self, before: bytes) -> None:
        """Nothing but the room for replies and the used ring may have changed."""
        after = bytearray(self.memory.view[:])
        after[self.ring.used : self.ring.end] = before[self.ring.used : self.ring.end]
        for _, _, pieces in self.outstanding.values():
            for address, length in pieces:
                after[address : address + length] = before[address : address + length]
        assert after == before, "guest memory was written outside the room for replies"

    def _collect(self) -> None:
        ring = self.ring
        end = ring.used_index()
        while ring.seen != end:
            head, length = ring.used_entry(ring.seen)
            ring.seen = (ring.seen + 1) & 0xFFFF
            message, room, pieces = self.outstanding.pop(head)
            assert length <= room
            unique = int.from_bytes(message.data[8:16], "little")  # as far as there is a header
            written = b"".join(self.memory.view[address : address + size] for address, size in pieces)[
                :length
            ]
            error, found = check(
                message.operation, message.values, unique, room, written, self.place.canaries.inodes
            )
            self._note(message, error, found)

    def _note(self, message: Message, error: int, found: Found) -> None:
        self.known.learn(found)
        operation = message.operation
        if (
            error == 0
            and operation is not None
            and (operation.flags & abi.MUTATES or operation.name in ("open", "ioctl"))
        ):
            self.changed = True

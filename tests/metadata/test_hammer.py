# SPDX-License-Identifier: Apache-2.0
"""Many processes at one table, and some of them killed: what the readers and the followers were promised.

Memory that all share stands for the host's file system: for each key a number for each writer, which that writer raises
between `begin` and `end`, and a second one, raised after `end` returned.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from virtiofs.metadata import layout, registry
from virtiofs.metadata.table import Table

KEYS, WRITERS, KILLS = 5, 3, 9
DEVICE = 7


class Host:
    """What is, and what `end` has said, for each key and writer."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * 8 * KEYS * WRITERS)

    def _at(self, table: int, key: int, writer: int) -> int:
        return 8 * ((table * KEYS + key) * WRITERS + writer)

    def get(self, table: int, key: int, writer: int) -> int:
        return int(struct.unpack_from("Q", self._memory, self._at(table, key, writer))[0])

    def put(self, table: int, key: int, writer: int, value: int) -> None:
        struct.pack_into("Q", self._memory, self._at(table, key, writer), value)

    def all(self, table: int, key: int) -> tuple[int, ...]:
        return struct.unpack_from(f"{WRITERS}Q", self._memory, self._at(table, key, 0))


def attach(tmp_path: Path) -> Table:
    return registry.attach(str(tmp_path), 1 << 10, str(tmp_path))


def process(what: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        status = 1
        try:
            what()
            status = 0
        finally:
            os._exit(status)
    return pid


def write_for_ever(tmp_path: Path, host: Host, writer: int, bound: int) -> None:
    """Change keys at random.  Each change says in the journal which one of this writer's it is."""
    table = attach(tmp_path)
    chance = random.Random(os.getpid())
    for _ in range(bound):
        key = chance.randrange(KEYS)
        value = host.get(0, key, writer) + 1
        table.begin(DEVICE, key)
        host.put(0, key, writer, value)
        table.end(DEVICE, key, layout.ENTRY, b"%d" % writer, (DEVICE, value))
        host.put(1, key, writer, value)


def read_until(tmp_path: Path, host: Host, stop: int) -> None:
    """Keep what may be kept; nothing that is kept may be older than what an `end` had completed."""
    table = attach(tmp_path)
    slots = [table.slot(DEVICE, key) for key in range(KEYS)]
    kept: dict[int, tuple[int, tuple[int, ...]]] = {}
    used = 0
    os.set_blocking(stop, False)
    while True:
        for key in range(KEYS):
            promised = host.all(1, key)
            if key in kept and table.word(slots[key]) == kept[key][0]:
                found = kept[key][1]
                assert all(a >= b for a, b in zip(found, promised, strict=True)), (key, found, promised)
                used += 1
                continue
            word = table.word(slots[key])
            found = host.all(0, key)
            if not word & layout.IN_PROGRESS and table.word(slots[key]) == word:
                kept[key] = word, found
        try:
            if os.read(stop, 1) == b"":
                break
        except BlockingIOError:
            pass
    assert used, "nothing was ever kept"


def follow_until(tmp_path: Path, host: Host, stop: int) -> None:
    """Every change comes, in each writer's order, or EVERYTHING instead."""
    table = attach(tmp_path)
    follower = table.follow()
    table.bump_everything()
    known: dict[tuple[int, int], int] = {}
    os.set_blocking(stop, False)
    ended = False
    while True:
        change = follower.next(0.01)
        if change is None:
            if ended:
                break
            try:
                ended = os.read(stop, 1) == b""
            except BlockingIOError:
                pass
        elif change.kind == layout.EVERYTHING:
            known.clear()
        else:
            which = change.ino, int(change.name)
            if which in known:
                assert change.child_ino == known[which] + 1, (which, change, known[which])
            known[which] = change.child_ino
    for (key, writer), value in known.items():
        assert value == host.get(0, key, writer)


@pytest.mark.parametrize("killed", [False, True], ids=["in-peace", "killed"])
def test_no_reader_keeps_what_is_older_than_an_end_and_no_follower_misses_a_change(
    tmp_path: Path, killed: bool
) -> None:
    host = Host()
    table = attach(tmp_path)
    stop, hold = os.pipe()

    def watch(what: Callable[[Path, Host, int], None]) -> int:
        def run() -> None:
            os.close(hold)
            what(tmp_path, host, stop)

        return process(run)

    watchers = [watch(read_until), watch(read_until), watch(follow_until)]
    bound = 1 << 40 if killed else 3000

    def write(writer: int) -> int:
        return process(lambda: write_for_ever(tmp_path, host, writer, bound))

    writers = [write(writer) for writer in range(WRITERS)]
    chance = random.Random(4711)
    if killed:
        for kill in range(KILLS):
            writer = kill % WRITERS
            before = [host.get(1, key, writer) for key in range(KEYS)]
            while [host.get(1, key, writer) for key in range(KEYS)] == before:
                assert os.waitpid(writers[writer], os.WNOHANG) == (0, 0), "the writer failed"
                os.sched_yield()
            for _ in range(chance.randrange(20)):  # some while, which is not the same each time
                os.sched_yield()
            os.kill(writers[writer], signal.SIGKILL)
            os.waitpid(writers[writer], 0)
            registry.tidy(table)
            writers[writer] = write(writer)
        for pid in writers:
            os.kill(pid, signal.SIGKILL)
    for pid in writers:
        os.waitpid(pid, 0)
    registry.tidy(table)
    os.close(hold)
    assert [os.waitpid(pid, 0)[1] for pid in watchers] == [0, 0, 0]
    os.close(stop)
    for key in range(KEYS):
        assert table.word(table.slot(DEVICE, key)) & layout.IN_PROGRESS == 0
        if not killed:
            assert host.all(0, key) == host.all(1, key)
    registry.tidy(table)
    assert registry.living(table) == table.taken() == [table.member]
    table.close()

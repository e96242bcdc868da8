# SPDX-License-Identifier: Apache-2.0
"""The table by itself: words, times, the journal and those who follow it."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtiofs.metadata import layout, registry
from virtiofs.metadata.table import MetadataError, Table

INODE = (7, 4711)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    table = attach(tmp_path)
    yield table
    table.close()


def attach(tmp_path: Path, slots: int = 1 << 10) -> Table:
    tree = tmp_path / "tree"
    tree.mkdir(exist_ok=True)
    return registry.attach(str(tree), slots, str(tmp_path))


def cacheable(word: int) -> bool:
    return not word & layout.IN_PROGRESS


def test_a_change_in_progress_is_never_cacheable_and_leaves_another_word(table: Table) -> None:
    slot = table.slot(*INODE)
    before = table.word(slot)
    assert cacheable(before) and table.changed_at(slot) == 0
    started = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    table.begin(*INODE)
    table.begin(*INODE)
    table.end(*INODE, layout.DATA)
    assert not cacheable(table.word(slot)) and table.pending() == 1
    table.end(*INODE, layout.ATTRIBUTES)
    after = table.word(slot)
    assert cacheable(after) and after != before and table.pending() == 0
    assert started <= table.changed_at(slot) <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_an_end_without_a_beginning_is_refused(table: Table) -> None:
    table.begin(7, 1)
    with pytest.raises(MetadataError, match="no change of inode 2 has begun"):
        table.end(7, 2, layout.DATA)
    table.end(7, 1, layout.DATA)


def test_members_share_words_slots_and_the_key(tmp_path: Path, table: Table) -> None:
    other = attach(tmp_path, 1 << 12)  # one that is there stays as it is
    assert other.slots == table.slots and other.member != table.member
    assert other.slot(*INODE) == table.slot(*INODE)
    table.bump(*INODE, layout.DATA)
    assert other.word(other.slot(*INODE)) == table.word(table.slot(*INODE)) == 2 << layout.VERSION_SHIFT
    other.close()


def test_inodes_spread_over_all_slots(table: Table) -> None:
    assert len({table.slot(7, number) for number in range(20 * table.slots)}) == table.slots


def test_a_follower_sees_each_change_and_its_origin(tmp_path: Path, table: Table) -> None:
    other = attach(tmp_path)
    table.bump(*INODE, layout.DATA)  # before anybody follows
    follower = other.follow()
    assert follower.next(0) is None and table.followers() == [other.member]
    table.bump(*INODE, layout.ENTRY, b"name", (7, 12))
    other.begin(*INODE)
    other.end(*INODE, layout.GONE, b"n" * 255, (7, 13))
    first, second = follower.next(10), follower.next(10)
    assert first is not None and second is not None
    assert first[1:8] == (layout.ENTRY, *INODE, b"name", 7, 12, table.member)
    assert second[1:8] == (layout.GONE, *INODE, b"n" * 255, 7, 13, other.member)
    assert second.sequence == first.sequence + 1 and second.time >= first.time
    follower.close()
    assert table.followers() == [] and follower.next(0) is None
    written = table.changes
    table.bump(*INODE, layout.DATA)
    assert table.changes == written  # nobody follows: nothing is written
    other.close()


def test_a_follower_that_lags_is_told_so_and_goes_on_from_now(table: Table) -> None:
    follower = table.follow()
    for number in range(layout.RECORDS + 10):
        table.bump(7, number, layout.DATA)
    change = follower.next(10)
    assert change is not None and change.kind == layout.EVERYTHING and follower.lagged == 1
    assert follower.next(0) is None
    table.bump(*INODE, layout.DATA)
    change = follower.next(10)
    assert change is not None and (change.kind, change.ino) == (layout.DATA, INODE[1])


def test_everything_reaches_a_follower_that_sleeps(table: Table) -> None:
    follower = table.follow()
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(follower.next(60)))
    thread.start()
    deadline = time.monotonic() + 30
    while not table.sleeping and time.monotonic() < deadline:
        os.sched_yield()
    word = table.everything
    table.bump_everything()
    thread.join(30)
    assert not thread.is_alive() and table.everything != word and table.everything_at > 0
    assert seen[0] is not None and seen[0].kind == layout.EVERYTHING  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", ["follower", "table"])
def test_closing_ends_a_sleep(tmp_path: Path, what: str) -> None:
    table = attach(tmp_path)
    follower = table.follow()
    seen: list[object] = [1]
    thread = threading.Thread(target=lambda: seen.append(follower.next()))
    thread.start()
    deadline = time.monotonic() + 30
    while not table.sleeping and time.monotonic() < deadline:
        os.sched_yield()
    (follower if what == "follower" else table).close()
    thread.join(30)
    assert not thread.is_alive() and seen == [1, None]
    follower.close()
    table.close()


def test_a_closed_table_says_so(tmp_path: Path) -> None:
    table = attach(tmp_path)
    table.close()
    table.close()
    for use in (lambda: table.word(0), table.bump_everything, table.follow, lambda: table.begin(*INODE)):
        with pytest.raises(MetadataError, match="was detached"):
            use()


def test_what_makes_no_sense_is_refused(tmp_path: Path, table: Table) -> None:
    for slot in (-1, table.slots):
        with pytest.raises(IndexError):
            table.word(slot)
    with pytest.raises(ValueError, match="kind"):
        table.bump(*INODE, layout.EVERYTHING)
    with pytest.raises(ValueError, match="255"):
        table.bump(*INODE, layout.ENTRY, b"x" * 256)
    with pytest.raises(MetadataError, match="power of two"):
        attach(tmp_path, 1000)
    (tmp_path / "file").touch()
    with pytest.raises(MetadataError, match="not a directory"):
        registry.attach(str(tmp_path / "file"), directory=str(tmp_path))

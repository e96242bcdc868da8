# SPDX-License-Identifier: Apache-2.0
"""Two guests on one directory, each with a daemon of its own: what one does the other sees."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import probe as probes
import pytest
from shares import Place, Served, directory_for_a_share, serve

pytestmark = pytest.mark.guest

LINES = 200


class Two(NamedTuple):
    """The same directory in both guests."""

    one: Place
    other: Place

    @property
    def host(self) -> Path:
        return self.one.host


@pytest.fixture(scope="module")
def both(probe: Path) -> Iterator[tuple[Served, Served]]:
    with (
        directory_for_a_share() as directory,
        serve(directory, probe, memory="256M") as one,
        serve(directory, probe, memory="256M") as other,
    ):
        yield one, other


_number = itertools.count(1)


@pytest.fixture
def two(both: tuple[Served, Served]) -> Iterator[Two]:
    name = f"test-{next(_number)}"
    places = Two(*(Place(served, name) for served in both))
    places.host.mkdir()
    yield places
    for served in both:
        assert served.daemon.alive
        assert served.daemon.log == []
    shutil.rmtree(places.host)


def test_what_one_writes_the_other_reads(two: Two) -> None:
    two.one.output("echo first >f")
    assert two.other.output("cat f") == "first"
    two.one.output("echo 'longer than before' >f")
    two.other.wait("grep -q longer f")
    two.other.output("echo back >f")
    two.one.wait("[ $(cat f) = back ]")


def test_what_one_writes_in_place_the_other_reads_though_it_has_the_page(two: Two) -> None:
    two.one.output("echo 0000 >f")
    assert two.other.output("cat f") == "0000"
    # The size stays, so only the time of change tells that the cached page is old.
    two.one.do(("open", "f", "f", "rw"), ("pwrite", "f", 0, "1111"))
    two.other.wait("[ $(cat f) = 1111 ]")


def test_a_large_file_of_one_is_whole_in_the_other(two: Two, probe: Path) -> None:
    two.one.do(("fill", "f", 32 << 20, 11))
    (expected,) = probes.host(probe, ("sum", str(two.host / "f")))
    assert two.other.do(("sum", "f")) == expected


def test_appending_from_both_loses_nothing(two: Two) -> None:
    def append(place: Place, who: str) -> None:
        # Each line is a write of its own to one open file.
        steps: list[probes.Step] = [("open", "f", "log", "w,creat,append")]
        steps += [("write", "f", f"{who} {number:04}\n") for number in range(LINES)]
        written.append(place.steps(*steps)[1:])

    written: list[list[probes.Value]] = []
    threads = [threading.Thread(target=append, args=pair) for pair in ((two.one, "one"), (two.other, "two"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [[9] * LINES] * 2
    lines = (two.host / "log").read_text().splitlines()
    for who in ("one", "two"):
        assert [line for line in lines if line.startswith(who)] == [
            f"{who} {number:04}" for number in range(LINES)
        ]
    assert len(lines) == 2 * LINES


def test_renaming_and_unlinking_in_one_is_seen_in_the_other(two: Two) -> None:
    two.one.output("mkdir a b; echo 1 >a/f; echo 2 >gone")
    assert two.other.output("cat a/f gone") == "1\n2"
    two.one.output("mv a/f b/g; rm gone; mv a c")
    two.other.wait("[ ! -e gone ] && [ ! -e a ] && [ -e b/g ] && [ -d c ]")
    assert two.other.output("cat b/g; ls") == "1\nb\nc"


def test_a_file_one_unlinks_stays_readable_where_the_other_has_it_open(two: Two) -> None:
    two.one.output("echo kept >f")
    values = two.other.steps(
        ("open", "f", "f", "rw"),
        ("wait", "unlink"),
        ("pread", "f", 0, 10),
        ("pwrite", "f", 5, "written"),
        ("pread", "f", 0, 20),
        answers={"unlink": lambda: two.one.output("rm f")},
    )
    assert values[2:] == [b"kept\n", 7, b"kept\nwritten"]
    assert os.listdir(two.host) == []


def test_only_one_makes_a_file_that_both_want(two: Two) -> None:
    def make(place: Place) -> None:
        steps: list[probes.Step] = [("open", "f", f"lock-{number}", "w,creat,excl") for number in range(100)]
        results.append(place.steps(*steps))

    results: list[list[probes.Value]] = []
    threads = [threading.Thread(target=make, args=(place,)) for place in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, second in zip(*results, strict=True):
        assert {first, second} == {None, "EEXIST"}


def test_renaming_a_directory_under_the_other_gives_no_wrong_file(two: Two) -> None:
    two.one.output("mkdir d1 d2; echo one >d1/f; echo two >d2/f")
    assert two.other.output("cat d1/f d2/f") == "one\ntwo"
    two.one.do(("rename", "d1", "d2", "exchange"))
    two.other.wait("[ $(cat d1/f) = two ] && [ $(cat d2/f) = one ]")


# How a program takes a lock, by kind: without waiting, waiting, and giving it back.
LOCKS: dict[str, tuple[probes.Step, probes.Step, probes.Step]] = {
    "flock": (("flock", "f", "exclusive,nonblock"), ("flock", "f", "exclusive"), ("flock", "f", "none")),
    "posix": (
        ("lock", "f", "posix", "exclusive", 2, 3),
        ("lock", "f", "posix-wait", "exclusive", 0, 10),
        ("lock", "f", "posix", "none", 0, 0),
    ),
    "ofd": (
        ("lock", "f", "ofd", "exclusive", 2, 3),
        ("lock", "f", "ofd-wait", "exclusive", 0, 10),
        ("lock", "f", "ofd", "none", 0, 0),
    ),
}


@pytest.mark.parametrize("by_exit", [False, True], ids=["unlock", "exit"])
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_of_one_keeps_the_other_out_and_its_end_wakes_the_other(
    two: Two, lock: str, by_exit: bool
) -> None:
    attempt, wait, unlock = LOCKS[lock]
    (two.host / "f").write_text("before")
    locked, refused = threading.Event(), threading.Event()
    results: list[list[probes.Value]] = []

    def other() -> None:
        assert locked.wait(60)
        # What it reads under the lock was written under the lock: it did wait.
        steps: list[probes.Step] = [("open", "f", "f", "rw"), attempt, ("wait", "refused"), wait]
        steps += [("pread", "f", 0, 10), ("pwrite", "f", 0, "second")]
        results.append(two.other.steps(*steps, answers={"refused": refused.set}))

    def locked_until_the_other_waits() -> None:
        locked.set()
        assert refused.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    held: list[probes.Step] = [
        ("open", "f", "f", "rw"),
        attempt,
        ("wait", "held"),
        ("pwrite", "f", 0, "first!"),
    ]
    if not by_exit:
        held += [unlock, wait, ("pread", "f", 0, 10)]
    values = two.one.steps(*held, answers={"held": locked_until_the_other_waits})
    thread.join()
    assert results == [[None, "EAGAIN", None, None, b"first!", 6]]
    assert values[:4] == [None, None, None, 6]
    assert (two.host / "f").read_text() == "second"

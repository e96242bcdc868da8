# SPDX-License-Identifier: Apache-2.0
"""--cache adaptive: names and attributes are trusted for a tenth of the time since they last changed."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from sharing import ROOT, refusal, shared
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.metadata import layout, registry
from virtiofs.metadata.table import Table

SECOND = 1_000_000_000
OLD = Path(os.__file__).parent  # files that nobody changes meanwhile
LONGEST = 2.5


class Watched:
    """A tree of old files, as a guest sees it, and its table."""

    def __init__(self, session: Session, table: Table):
        self.session, self.table = session, table
        self.tree = OLD.stat()
        self.file = (OLD / "os.py").stat()
        if time.time() - self.file.st_ctime < 100 * LONGEST:
            pytest.skip(f"{OLD}/os.py changed a moment ago")

    def changed(self, status: os.stat_result, seconds_ago: float) -> None:
        """Let the table say so of an inode."""
        slot = self.table.slot(status.st_dev, status.st_ino)
        self.table.bump(status.st_dev, status.st_ino, layout.DATA)
        when = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(seconds_ago * SECOND)
        os.pwrite(self.table.fd, struct.pack("<Q", when), layout.SLOTS_AT + 16 * slot + 8)

    def made(self, seconds_ago: float) -> None:
        """Let the table say that it was made then."""
        when = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(seconds_ago * SECOND)
        for field in ("created", "everything_at"):
            os.pwrite(self.table.fd, struct.pack("<Q", when), layout.HEADER.offset(field))

    def validity(self) -> tuple[float, float]:
        """Seconds for which the name and the attributes of the file are to be trusted."""
        entry = self.session.lookup(ROOT, "os.py")
        again = self.session.call("getattr", entry.nodeid)
        valid = again.attr_valid + again.attr_valid_nsec / SECOND
        assert valid == pytest.approx(entry.attr_valid + entry.attr_valid_nsec / SECOND, abs=2)
        return entry.entry_valid + entry.entry_valid_nsec / SECOND, valid


@pytest.fixture
def watched() -> Iterator[Watched]:
    options = ("--cache", "adaptive", "--metadata-table", "--adaptive-max", str(LONGEST))
    with devices.start_ours(OLD, options) as running, Device.connect(running.socket) as device:
        table = registry.attach(str(OLD))
        watched = Watched(Session(device), table)
        assert devices.wait_until(lambda: table.watched, 20.0)
        watched.made(1000)
        yield watched
        table.close()


def test_validity_grows_with_the_time_since_the_last_change_up_to_the_bound(watched: Watched) -> None:
    assert watched.validity() == (LONGEST, LONGEST)  # never changed, as far as anybody knows
    watched.changed(watched.tree, 10)
    watched.changed(watched.file, 20)
    entry, attributes = watched.validity()
    assert 1 <= entry < LONGEST and 2 <= attributes <= LONGEST
    watched.changed(watched.tree, 1000)
    assert watched.validity()[0] == LONGEST


def test_what_is_changing_or_has_just_changed_is_not_trusted(watched: Watched) -> None:
    for status in (watched.tree, watched.file):
        watched.table.begin(status.st_dev, status.st_ino)
    assert watched.validity() == (0, 0)
    for status in (watched.tree, watched.file):
        watched.table.end(status.st_dev, status.st_ino, layout.DATA)
        watched.changed(status, -50)  # of a clock that was wrong
    assert watched.validity() == (0, 0)


def test_a_change_of_everything_is_one_of_each(watched: Watched) -> None:
    watched.table.bump_everything()
    when = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 10 * SECOND
    os.pwrite(watched.table.fd, struct.pack("<Q", when), layout.HEADER.offset("everything_at"))
    entry, attributes = watched.validity()
    assert 1 <= entry < LONGEST and 1 <= attributes < LONGEST


def test_without_a_watcher_the_bound_is_a_second(watched: Watched) -> None:
    watched.table.announce_watch(True)  # in the daemon's watcher's place
    watched.table.announce_watch(False)
    assert max(watched.validity()) < 1, "all that was known changed with that"
    when = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 1000 * SECOND
    os.pwrite(watched.table.fd, struct.pack("<Q", when), layout.HEADER.offset("everything_at"))
    assert watched.validity() == (1, 1)
    watched.changed(watched.file, 2)
    assert watched.validity()[1] < 1


def test_what_a_guest_changes_is_young() -> None:
    with shared("--cache", "adaptive", "--metadata-table") as share:
        made, _ = share.session.create(ROOT, "f")
        assert made.entry_valid == made.attr_valid == made.entry_valid_nsec == 0
        assert share.session.call("getattr", made.nodeid).attr_valid < 2


def test_it_needs_the_table() -> None:
    assert "--cache adaptive needs --metadata-table" in refusal("--cache", "adaptive")
    assert "--adaptive-max goes with --cache adaptive" in refusal("--adaptive-max", "5")
    said = refusal("--cache", "adaptive", "--metadata-table", "--adaptive-max", "-1")
    assert "--adaptive-max takes 0 to 86400" in said

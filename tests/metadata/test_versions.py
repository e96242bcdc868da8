# SPDX-License-Identifier: Apache-2.0
"""Versions in shared memory: what a driver keeps, for how long, and what it makes of a hostile device."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import devices
from virtiofs.client.device import Device, WindowOptions
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.client.versions import Known, Versions
from virtiofs.metadata import layout, region, registry
from virtiofs.metadata.copy import Copy
from virtiofs.metadata.table import Table

SECONDS = 20.0


class Guest(NamedTuple):
    """A device of a daemon with a table, a tree of it, and the directory on the host."""

    host: Path
    device: Device
    tree: Tree
    running: devices.RunningDevice

    def requests(self) -> int:
        """How many were made so far."""
        return self.device.unique()


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with tempfile.TemporaryDirectory(prefix="virtiofs-share-") as place:
        host = Path(place)
        with (
            devices.start_ours(host, ("--metadata-table",)) as running,
            Device.connect(running.socket, versions=True) as device,
        ):
            tree = Tree(Session(device), table=True)
            wait_for_watcher(host)
            yield Guest(host, device, tree, running)


def wait_for_watcher(directory: Path) -> None:
    """Until what the host does enters the table of a directory."""
    table = registry.attach(str(directory))
    assert devices.wait_until(lambda: table.watched, SECONDS)
    table.close()


def becomes(condition: object) -> bool:
    return devices.wait_until(condition, SECONDS)


# --- through a real device ---


def test_a_repeated_stat_asks_nobody(guest: Guest) -> None:
    guest.tree.mkdir("often")
    guest.tree.write_file("often/file", b"12345")
    assert becomes(lambda: costs_nothing(guest, lambda: guest.tree.stat("often/file")))
    assert guest.tree.stat("often/file").st_size == 5


def costs_nothing(guest: Guest, question: object) -> bool:
    before = guest.requests()
    question()  # type: ignore[operator]
    return guest.requests() == before + 2  # each look at the number takes one


def test_a_listing_and_a_link_and_an_absent_name_are_known_too(guest: Guest) -> None:
    guest.tree.mkdir("listed")
    guest.tree.symlink("target", "listed/link")
    for question in (
        lambda: guest.tree.listdir("listed"),
        lambda: guest.tree.readlink("listed/link"),
        lambda: guest.tree.exists("listed/absent"),
    ):
        assert becomes(lambda: costs_nothing(guest, question))  # noqa: B023
    assert guest.tree.listdir("listed") == ["link"]
    assert guest.tree.readlink("listed/link") == "target"
    assert not guest.tree.exists("listed/absent")


def test_what_the_guest_itself_changes_is_seen_at_once(guest: Guest) -> None:
    guest.tree.mkdir("own")
    for size in range(1, 50):
        guest.tree.write_file("own/file", b"x" * size)
        assert guest.tree.stat("own/file").st_size == size
        guest.tree.chmod("own/file", 0o600 + size % 8)
        assert guest.tree.stat("own/file").st_mode & 0o777 == 0o600 + size % 8
        guest.tree.rename("own/file", "own/other")
        assert not guest.tree.exists("own/file")
        assert guest.tree.listdir("own") == ["other"]
        guest.tree.unlink("own/other")
        assert guest.tree.listdir("own") == []


def test_what_the_host_changes_is_seen_and_never_an_older_state_after_it(guest: Guest) -> None:
    path = guest.host / "host"
    path.write_bytes(b"")
    assert becomes(lambda: guest.tree.exists("host"))
    for size in range(1, 30):
        path.write_bytes(b"x" * size)
        assert becomes(lambda: guest.tree.stat("host").st_size == size)  # noqa: B023
    path.unlink()
    assert becomes(lambda: not guest.tree.exists("host"))
    path.write_bytes(b"again")
    assert becomes(lambda: guest.tree.exists("host"))


def test_a_change_of_everything_makes_the_guest_ask_again(guest: Guest) -> None:
    guest.tree.mkdir("all")
    assert becomes(lambda: costs_nothing(guest, lambda: guest.tree.stat("all")))
    table = registry.attach(str(guest.host))
    table.bump_everything()
    assert becomes(lambda: not costs_nothing(guest, lambda: guest.tree.stat("all")))
    table.close()


def test_a_driver_that_does_not_ask_for_versions_gets_the_usual_replies(guest: Guest) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="virtiofs-share-") as place,
        devices.start_ours(Path(place), ("--metadata-table",)) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        assert session.versions is None and not any(session.init.unused)
        tree = Tree(session)
        tree.write_file("file", b"1")
        assert tree.stat("file").st_size == 1
        with pytest.raises(ValueError, match="--metadata-table"):
            Tree(session, table=True)


def test_versions_and_a_dax_window_share_the_back_end_channel() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="virtiofs-share-") as place,
        devices.start_ours(Path(place), ("--metadata-table", "--dax-window", "16M")) as running,
        Device.connect(running.socket, versions=True, window=WindowOptions()) as device,
    ):
        session = Session(device)
        assert session.versions is not None and device.window is not None
        Tree(session).write_file("file", b"x" * 8192)
        nodeid = session.lookup(1, "file").nodeid
        session.setupmapping(nodeid, 0, 2 << 20, 0)
        assert device.window.read(0, 8) == b"x" * 8
        assert device.window.troubles == []


def test_versions_are_shown_again_after_a_reset() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="virtiofs-share-") as place,
        devices.start_ours(Path(place), ("--metadata-table",)) as running,
        Device.connect(running.socket, versions=True) as device,
    ):
        for _ in range(3):
            tree = Tree(Session(device), table=True)
            assert tree.stat("/").st_nlink
            device.reset()


# --- the copy ---


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    tree = tmp_path / "tree"
    tree.mkdir()
    table = registry.attach(str(tree), slots=1024, directory=str(tmp_path))
    yield table
    table.close()


def test_a_copy_shows_only_what_the_guest_was_told_of(table: Table) -> None:
    copy = Copy(table)
    versions = Versions(copy.fd, copy.size)
    for ino in range(100):
        table.bump(1, ino, layout.DATA)
        copy.renew(1, ino)
    assert not any(versions.word(slot) for slot in range(versions.slots))
    word = copy.show(1, 7)
    assert word == table.word(table.slot(1, 7)) | region.SHOWN
    assert [slot for slot in range(versions.slots) if versions.word(slot)] == [table.slot(1, 7)]
    table.bump(1, 7, layout.DATA)
    assert versions.word(table.slot(1, 7)) == word
    copy.renew(1, 7)
    assert versions.word(table.slot(1, 7)) == table.word(table.slot(1, 7)) | region.SHOWN


def test_an_answer_holds_as_long_as_all_that_it_rests_on(table: Table) -> None:
    copy = Copy(table)
    versions = Versions(copy.fd, copy.size)
    known = Known(versions, 2)

    def proofs(*inodes: int) -> list[tuple[int, int]]:
        return [(table.slot(1, ino), copy.show(1, ino)) for ino in inodes]

    known.put("a", 1, versions.everything, proofs(1, 2))
    known.put("b", 2, versions.everything, proofs(2, 3))
    assert (known.get("a"), known.get("b"), known.get("c")) == (1, 2, None)
    table.bump(1, 3, layout.DATA)
    copy.renew(1, 3)
    assert (known.get("a"), known.get("b")) == (1, None)
    known.put("b", 2, versions.everything, proofs(3))
    known.put("c", 3, versions.everything, proofs(3))
    assert len(known) == 2 and known.get("a") is None, "the one that is there longest went"
    copy.change_everything()
    assert known.get("b") is None and known.get("c") is None
    known.put("d", 4, versions.everything, [(0, 0)])
    assert known.get("d") is None, "a word of 0 is none"


# --- a device that lies ---


def region_file(slots: int, size: int, seals: int = fcntl.F_SEAL_SHRINK, magic: int = region.MAGIC) -> int:
    fd = os.memfd_create("lie", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, magic.to_bytes(8, "little") + slots.to_bytes(8, "little"), 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.parametrize(
    ("what", "arguments", "size"),
    [
        ("may shrink", (1024, region.size_of(1024), 0), region.size_of(1024)),
        ("holds no versions", (1024, region.size_of(1024)), region.size_of(2048)),
        ("holds no versions", (1000, region.size_of(1000)), region.size_of(1000)),
        ("holds no versions", (1, 4096), 4096),
        ("something else", (2048, region.size_of(1024)), region.size_of(1024)),
        ("something else", (1024, region.size_of(1024), fcntl.F_SEAL_SHRINK, 1), region.size_of(1024)),
    ],
)
def test_a_region_that_is_none_is_refused(what: str, arguments: tuple[int, ...], size: int) -> None:
    fd = region_file(*arguments)
    try:
        with pytest.raises(ValueError, match=what):
            Versions(fd, size)
    finally:
        os.close(fd)


def test_a_file_that_can_not_be_sealed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(region.size_of(1024)))
    with path.open("rb") as file, pytest.raises(ValueError, match=r"sealed|shrink"):
        Versions(file.fileno(), region.size_of(1024))


def test_slots_beyond_the_region_are_not_believed() -> None:
    fd = region_file(1024, region.size_of(1024))
    versions = Versions(fd, region.size_of(1024))
    os.close(fd)
    known = Known(versions, 10)
    known.put("a", 1, versions.everything, [(1 << 32 - 1, 5)])
    assert known.get("a") is None
    with pytest.raises(IndexError):
        versions.word(1024)

# SPDX-License-Identifier: Apache-2.0
"""Set-id bits and capabilities go when a program is changed by somebody who may not keep them."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator

import pytest

from sharing import ROOT, USER, Shared, shared
from virtiofs.client.session import OFFER
from virtiofs.fuse.abi import CONSTANTS

WRITE_KILL = CONSTANTS["FUSE_WRITE_KILL_SUIDGID"]
OPEN_KILL = CONSTANTS["FUSE_OPEN_KILL_SUIDGID"]
ATTR_KILL = CONSTANTS["FATTR_KILL_SUIDGID"]
# VFS_CAP_REVISION_2, effective: cap_net_raw
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="keeping the bits needs CAP_FSETID")


def write(place: Shared, node: int, kill: bool) -> None:
    handle = place.session.open(node, os.O_WRONLY).fh
    place.session.write(node, handle, 0, b"x", write_flags=WRITE_KILL if kill else 0)
    place.session.release(node, handle)


def open_truncated(place: Shared, node: int, kill: bool) -> None:
    handle = place.session.open(node, os.O_WRONLY | os.O_TRUNC, OPEN_KILL if kill else 0).fh
    place.session.release(node, handle)


def create_over(place: Shared, node: int, kill: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    record = place.session.call(
        "create", ROOT, ["f"], flags=flags, mode=0o644, open_flags=OPEN_KILL if kill else 0
    )
    place.session.release(node, record.open.fh)
    after = place.session.getattr(node)
    assert (record.entry.attr.mode, record.entry.attr.size) == (after.mode, after.size), (
        "the reply is up to date"
    )


def truncate(place: Shared, node: int, kill: bool) -> None:
    place.session.setattr(node, size=1, valid=ATTR_KILL if kill else 0)


def truncate_open(place: Shared, node: int, kill: bool) -> None:
    handle = place.session.open(node, os.O_WRONLY).fh
    place.session.setattr(node, size=2, fh=handle, valid=ATTR_KILL if kill else 0)
    place.session.release(node, handle)


def allocate(place: Shared, node: int, kill: bool) -> None:
    handle = place.session.open(node, os.O_WRONLY).fh
    with place.caller(*((USER, USER) if kill else (0, 0))):
        place.session.fallocate(node, handle, 0, 8192)
    place.session.release(node, handle)


def copy(place: Shared, node: int, kill: bool) -> None:
    (place.host / "source").write_bytes(b"data")
    source = place.session.lookup(ROOT, "source").nodeid
    read, handle = place.session.open(source).fh, place.session.open(node, os.O_WRONLY).fh
    with place.caller(*((USER, USER) if kill else (0, 0))):
        assert place.session.copy_file_range(source, read, 0, node, handle, 0, 4) == 4
    place.session.release(node, handle)
    place.session.release(source, read)


CHANGES: list[Callable[[Shared, int, bool], None]] = [
    write,
    open_truncated,
    create_over,
    truncate,
    truncate_open,
    allocate,
    copy,
]


def program(place: Shared, mode: int = 0o6755) -> int:
    (place.host / "f").write_bytes(b"#!/bin/sh\n")
    (place.host / "f").chmod(mode)
    return int(place.session.lookup(ROOT, "f").nodeid)


def mode(place: Shared) -> int:
    return stat.S_IMODE((place.host / "f").stat().st_mode)


@pytest.fixture(scope="module")
def place() -> Iterator[Shared]:
    with shared() as place:
        assert place.session.has("HANDLE_KILLPRIV_V2")
        yield place


@pytest.mark.parametrize("change", CHANGES)
def test_a_caller_who_may_not_keep_them_loses_the_bits(place, change):
    change(place, program(place), True)
    assert mode(place) == 0o755


@needs_root
@pytest.mark.parametrize("change", CHANGES)
def test_a_caller_who_may_keep_them_keeps_the_bits(place, change):
    change(place, program(place), False)
    assert mode(place) == 0o6755


@needs_root
def test_each_request_is_judged_by_itself(place):
    """The thread's privilege changes with the requests, not behind their backs."""
    for kill in (True, False, False, True, True, False):
        write(place, program(place), kill)
        assert mode(place) == (0o755 if kill else 0o6755)
        with place.caller(USER, USER):
            # Acting as a user and coming back gives a thread all its capabilities.
            place.host.chmod(0o777)
            place.session.mkdir(ROOT, "d")
        (place.host / "d").rmdir()


@needs_root
@pytest.mark.parametrize("change", [write, open_truncated, truncate, allocate, copy])
@pytest.mark.parametrize("kill", [True, False])
def test_a_capability_goes_with_every_change(change, kill):
    with shared("--xattr") as place:
        node = program(place, 0o755)
        place.session.setxattr(node, "security.capability", CAPABILITY)
        change(place, node, kill)
        assert os.listxattr(place.host / "f") == []


@needs_root
def test_a_change_of_owner_takes_the_bits_away(place):
    node = program(place)
    place.session.setattr(node, uid=USER, valid=ATTR_KILL)
    assert mode(place) == 0o755
    place.session.setattr(node, mode=0o6755)
    assert mode(place) == 0o6755


def test_a_guest_that_does_it_itself_is_left_to_it():
    for options, flags in (
        (["--no-killpriv-v2"], OFFER),
        ([], OFFER & ~CONSTANTS["FUSE_HANDLE_KILLPRIV_V2"]),
    ):
        with shared(*options, flags=flags) as place:
            assert not place.session.has("HANDLE_KILLPRIV_V2")


@needs_root
def test_a_daemon_without_privilege_takes_the_bits_away_always():
    with shared(user=USER) as place:
        for kill in (True, False):
            node = program(place)
            os.chown(place.host / "f", USER, USER)
            (place.host / "f").chmod(0o4755)
            write(place, node, kill)
            assert mode(place) == 0o755


@needs_root
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kill", [True, False])
def test_stored_bits_go_by_the_same_rules(change, kill):
    with shared("--ownership", "xattr", user=USER) as place:
        entry, handle = place.session.create(ROOT, "f", mode=0o6755)
        place.session.write(entry.nodeid, handle.fh, 0, b"x")
        place.session.release(entry.nodeid, handle.fh)
        assert place.session.getattr(entry.nodeid).mode & 0o7777 == 0o6755
        if change is copy:
            (place.host / "source").touch()
            os.chown(place.host / "source", USER, USER)
        change(place, entry.nodeid, kill)
        assert place.session.getattr(entry.nodeid).mode & 0o7777 == (0o755 if kill else 0o6755)


@needs_root
def test_ordinary_writes_cost_no_system_call_more(place):
    """Only a change from one kind of caller to the other does: capset once."""
    if not os.access("/usr/bin/strace", os.X_OK):
        pytest.skip("strace is not installed")
    import subprocess
    import tempfile

    node = program(place, 0o644)
    handle = place.session.open(node, os.O_WRONLY).fh
    worker = place.running.worker
    with tempfile.NamedTemporaryFile("r") as log:
        tracer = subprocess.Popen(
            ["strace", "-f", "-o", log.name, "-e", "trace=capset,pwritev2", "-p", str(worker)],
            stderr=subprocess.PIPE,
        )
        assert tracer.stderr is not None
        tracer.stderr.readline()  # attached
        for kill in (True, False):
            for _ in range(5):
                place.session.write(node, handle, 0, b"x", write_flags=WRITE_KILL if kill else 0)
        place.session.release(node, handle)
        tracer.terminate()
        tracer.communicate()
        calls = [line.split()[1].split("(")[0] for line in log if "(" in line]
    assert calls.count("pwritev2") == 10
    assert calls.count("capset") <= 2

# SPDX-License-Identifier: Apache-2.0
"""A trace's ring: what a loop writes there, and what its reader makes of whatever is in it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_queue_loop import MESSAGES, Guest

from virtiofs.fuse.abi import BY_NAME, FUSE_IN_HEADER, FUSE_OUT_HEADER, FUSE_READ_IN
from virtiofs.fuse.records import HEAD, LAYOUT, NEXT, RECORDS, Reader
from virtiofs.fuse.records import RING_BYTES as READ_BYTES
from virtiofs.fuse.tracing import RING_BYTES, Ring

ENOSYS, EINVAL, EIO = 38, 22, 5


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("ring")
    os.ftruncate(fd, RING_BYTES)
    yield fd
    os.close(fd)


def ask(guest: Guest, name: str, body: bytes = b"", **header: int) -> None:
    """Have a request served that is not the first of its session: INIT came before."""
    page = MESSAGES
    size = FUSE_IN_HEADER.size + len(body)
    guest.memory.write(page, FUSE_IN_HEADER.pack(len=size, opcode=BY_NAME[name].opcode, **header) + body)
    guest.driver.add([(page, size)], [(page + 2048, FUSE_OUT_HEADER.size + 144)])
    assert guest.loop.serve_available() == 1
    guest.taken()


def start() -> Guest:
    guest = Guest()
    ask(guest, "init", struct.pack("<IIII", 7, 46, 0, 0) + bytes(48))
    return guest


def test_both_ends_mean_the_same_bytes() -> None:
    assert READ_BYTES == RING_BYTES


def test_a_record_says_what_was_asked_and_what_came_of_it(memory: int) -> None:
    guest = start()
    ring = Ring(memory)
    reader = Reader(memory)
    guest.loop.trace_to(ring, 3)
    ask(guest, "lookup", b"a name\0", unique=7, nodeid=9, uid=1, gid=2, pid=3)
    read = FUSE_READ_IN.pack(offset=4096, size=100)
    ask(guest, "read", read, unique=8, nodeid=10)
    (first, second), lost = reader.read()
    assert lost == 0
    assert (first.operation, first.unique, first.nodeid, first.names) == ("lookup", 7, 9, (b"a name",))
    assert (first.uid, first.gid, first.pid, first.queue, first.error) == (1, 2, 3, 3, ENOSYS)
    assert (first.length_in, first.length_out) == (FUSE_IN_HEADER.size + 7, FUSE_OUT_HEADER.size)
    assert first.took > 0 and second.began >= first.began
    assert (second.operation, second.names, second.offset, second.size) == ("read", (), 4096, 100)
    assert reader.read() == ([], 0)


def test_names_of_an_earlier_request_are_not_shown_with_one_that_was_refused(memory: int) -> None:
    guest = start()
    ring = Ring(memory)
    reader = Reader(memory)
    guest.loop.trace_to(ring, 0)
    ask(guest, "lookup", b"secret\0")
    ask(guest, "lookup", b"no end")
    records, _ = reader.read()
    assert [(record.names, record.error) for record in records] == [((b"secret",), ENOSYS), ((), EINVAL)]


def test_long_names_are_cut_and_that_is_said(memory: int) -> None:
    guest = start()
    ring = Ring(memory)
    reader = Reader(memory)
    guest.loop.trace_to(ring, 0)
    ask(guest, "rename", bytes(8) + b"a" * 100 + b"\0" + b"b" * 100 + b"\0")
    ((record,), _) = reader.read()
    assert record.names == (b"a" * 100, b"b" * 52) and record.cut


def test_nothing_is_written_before_and_after_a_trace(memory: int) -> None:
    guest = start()
    ring = Ring(memory)
    reader = Reader(memory)
    ask(guest, "statfs")
    guest.loop.trace_to(ring, 0)
    ask(guest, "statfs", unique=1)
    guest.loop.trace_to(None, 0)
    ask(guest, "statfs")
    assert [record.unique for record in reader.read()[0]] == [1]
    with pytest.raises(ValueError):
        guest.loop.trace_to(Ring(memory), 0)


def test_who_is_too_slow_learns_how_many_were_lost(memory: int) -> None:
    guest = start()
    ring = Ring(memory)
    reader = Reader(memory)
    guest.loop.trace_to(ring, 0)
    more = RECORDS // 32 + 3
    for _ in range(more):
        for _ in range(32):
            guest.add("statfs")
        guest.loop.serve_available()
        guest.taken()
    records, lost = reader.read()
    assert (len(records), lost) == (RECORDS, 32 * more - RECORDS)


def test_a_record_that_nobody_finishes_is_given_up(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(memory)
    os.pwrite(memory, struct.pack("<Q", 2), NEXT)
    os.pwrite(memory, struct.pack("<Q", 2), HEAD + LAYOUT.size)
    assert reader.read() == ([], 0)
    monkeypatch.setattr("virtiofs.fuse.records.PATIENCE_SECONDS", 0.0)
    records, lost = reader.read()
    assert (len(records), lost) == (1, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=3), st.binary(max_size=4 * LAYOUT.size))
def test_whatever_the_memory_holds_reading_ends(claims: list[int], data: bytes) -> None:
    """Oracle: at most a ring of records, and a count of lost ones that is not negative."""
    fd = os.memfd_create("ring")
    try:
        os.ftruncate(fd, RING_BYTES)
        reader = Reader(fd)
        os.pwrite(fd, data, HEAD)
        for claimed in claims:
            os.pwrite(fd, struct.pack("<Q", claimed), NEXT)
            records, lost = reader.read()
            assert len(records) <= RECORDS and lost >= 0
            for record in records:
                assert record.operation
        reader.close()
    finally:
        os.close(fd)


def test_a_queue_says_how_many_chains_wait_and_how_often_it_told_the_guest() -> None:
    guest = start()
    told = guest.loop.notifications
    for _ in range(3):
        guest.add("statfs")
    assert guest.loop.depth == 3
    guest.loop.set_enabled(False)
    assert guest.loop.depth == 0
    guest.loop.set_enabled(True)
    assert guest.loop.serve_available() == 3
    assert guest.loop.depth == 0 and guest.loop.notifications > told

# SPDX-License-Identifier: Apache-2.0
"""Locks that two guests and the host all see, and waits that hold up nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.hostile import RawQueue
from virtiofs.client.session import Session
from virtiofs.fuse.abi import FUSE_INTERRUPT_IN

ROOT = 1
READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
LAST = (1 << 63) - 1
FLOCK = 1


class File:
    """A file that one guest has open; `owner` stands for a process of the guest."""

    def __init__(self, session: Session, name: str, flags: int = os.O_RDWR):
        self.session = session
        self.node = session.lookup(ROOT, name).nodeid
        self.fh = session.open(self.node, flags).fh

    def arguments(self, type_: int, owner: int, start: int, end: int, flags: int) -> dict:
        lock = {"start": start, "end": end, "type": type_, "pid": 1}
        return {"fh": self.fh, "owner": owner, "lk": lock, "lk_flags": flags}

    def lock(self, type_: int, owner: int = 1, start: int = 0, end: int = LAST, flags: int = 0) -> None:
        self.session.call("setlk", self.node, **self.arguments(type_, owner, start, end, flags))

    def wait(self, type_: int, owner: int = 1, start: int = 0, end: int = LAST, flags: int = 0):
        """Begin to wait for a lock; returns what `finish` takes."""
        return self.session.begin("setlkw", self.node, **self.arguments(type_, owner, start, end, flags))

    def finish(self, pending) -> None:
        self.session.finish(pending, "setlkw")

    def test(self, type_: int, owner: int = 1, start: int = 0, end: int = LAST):
        return self.session.call("getlk", self.node, **self.arguments(type_, owner, start, end, 0)).lk

    def close(self, owner: int = 1) -> None:
        self.session.flush(self.node, self.fh, owner)
        self.session.release(self.node, self.fh)


class Guests(NamedTuple):
    host: Path
    one: Session
    two: Session


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    directory = tmp_path_factory.mktemp("share")
    with devices.start_ours(directory) as one, devices.start_ours(directory, ["--lock-wait", "0.2"]) as two:
        yield directory, one.socket, two.socket
        assert one.alive
        assert two.alive


@pytest.fixture
def guests(daemons) -> Iterator[Guests]:
    """Two guests on one directory, each with its own daemon; the second waits a fifth of a second at most."""
    host, first, second = daemons
    (host / "f").write_bytes(b"x" * 100)
    with Device.connect(first) as one, Device.connect(second) as two:
        yield Guests(host, Session(one), Session(two))


def refused(act) -> int:
    with pytest.raises(OSError) as caught:
        act()
    return caught.value.errno


@pytest.mark.parametrize("flags", [0, FLOCK], ids=["posix", "flock"])
def test_two_guests_exclude_each_other(guests, flags):
    a, b = File(guests.one, "f"), File(guests.two, "f")
    a.lock(WRITE, flags=flags)
    assert refused(lambda: b.lock(WRITE, flags=flags)) == errno.EAGAIN
    assert refused(lambda: b.lock(READ, flags=flags)) == errno.EAGAIN
    a.lock(READ, flags=flags)
    b.lock(READ, flags=flags)
    assert refused(lambda: a.lock(WRITE, flags=flags)) == errno.EAGAIN
    b.lock(UNLOCK, flags=flags)
    a.lock(WRITE, flags=flags)
    a.lock(UNLOCK, flags=flags)
    b.lock(WRITE, flags=flags)


def test_a_program_of_the_host_and_a_guest_exclude_each_other(guests):
    a = File(guests.one, "f")
    with open(guests.host / "f", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
        assert refused(lambda: a.lock(WRITE, start=14, end=20)) == errno.EAGAIN
        a.lock(WRITE, start=15, end=20)
        assert refused(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 15)) == errno.EAGAIN
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert refused(lambda: a.lock(READ, flags=FLOCK)) == errno.EAGAIN


def test_ranges_of_one_file_are_locked_apart(guests):
    a, b = File(guests.one, "f"), File(guests.two, "f")
    a.lock(WRITE, start=0, end=9)
    b.lock(WRITE, start=10, end=19)
    found = b.test(WRITE, start=5, end=15)
    assert (found.type, found.start, found.end) == (WRITE, 0, 9)
    found = b.test(WRITE, start=10, end=30)
    assert found.type == UNLOCK
    a.lock(WRITE, start=20, end=LAST)
    assert b.test(READ, start=1000, end=1000).end == LAST


def test_two_processes_of_one_guest_exclude_each_other_and_one_never_itself(guests):
    first, second = File(guests.one, "f"), File(guests.one, "f")
    first.lock(WRITE, owner=1)
    second.lock(WRITE, owner=1)  # another descriptor of the same process
    assert refused(lambda: second.lock(WRITE, owner=2)) == errno.EAGAIN
    second.close(owner=1)  # closing any descriptor drops all locks of the process on the file
    first.lock(WRITE, owner=2)


def test_a_lock_of_an_open_file_goes_with_its_handle_whoever_is_named_at_closing(guests):
    """F_OFD_SETLK: its owner is the open file, of which Linux says no more than RELEASE."""
    first, second, other = File(guests.one, "f"), File(guests.one, "f"), File(guests.two, "f")
    first.lock(WRITE, owner=11, start=0, end=9)
    second.lock(WRITE, owner=22, start=10, end=19)
    guests.one.flush(first.node, first.fh, 1)  # a process that closes one descriptor of it
    assert refused(lambda: other.lock(WRITE, start=0, end=9)) == errno.EAGAIN
    guests.one.release(first.node, first.fh)
    other.lock(WRITE, start=0, end=9)
    assert refused(lambda: other.lock(WRITE, start=10, end=19)) == errno.EAGAIN
    guests.one.release(second.node, second.fh)
    other.lock(WRITE, start=10, end=19)


def test_flock_belongs_to_the_open_file(guests):
    first, second = File(guests.one, "f"), File(guests.one, "f")
    first.lock(WRITE, owner=1, flags=FLOCK)
    assert refused(lambda: second.lock(WRITE, owner=1, flags=FLOCK)) == errno.EAGAIN
    first.session.release(first.node, first.fh)
    second.lock(WRITE, flags=FLOCK)


@pytest.mark.parametrize("flags", [0, FLOCK], ids=["posix", "flock"])
def test_a_wait_ends_when_the_lock_is_free_and_holds_up_nobody(guests, flags):
    a, b = File(guests.two, "f"), File(guests.one, "f")
    a.lock(WRITE, flags=flags)
    waits = [b.wait(WRITE, flags=flags)]
    # Same queue: other requests, and another wait, go on.
    assert guests.one.getattr(b.node).size == 100
    assert guests.one.read(b.node, b.fh, 0, 3) == b"xxx"
    assert not waits[0].done
    a.lock(UNLOCK, flags=flags)
    b.finish(waits[0])
    assert refused(lambda: a.lock(READ, flags=flags)) == errno.EAGAIN


def test_a_wait_ends_in_a_ring_that_is_never_empty(daemons):
    """A busy guest fills the ring faster than it is served; others of its requests are not to starve of that."""
    host, first, _ = daemons
    (host / "f").touch()
    with Device.connect(first, queue_size=1024) as device:
        session = Session(device)
        file, other = File(session, "f"), File(session, "f")
        file.lock(WRITE, owner=1)
        ring = RawQueue(device)
        device.front_end.enable(1, False)  # so that the ring is full before anything is served
        wait = other.wait(WRITE, owner=2)
        unlock = session.begin("setlk", file.node, **file.arguments(UNLOCK, 1, 0, LAST, 0))
        others = [session.begin("getattr", ROOT) for _ in range(900)]
        heads = {id(pending): head for head, pending in device.queues[1].pending.items()}
        device.front_end.enable(1, True)
        session.finish(unlock, "setlk")
        for pending in others:
            session.finish(pending, "getattr")
        other.finish(wait)
        order = [ring.used_entry(ring.seen + position).id for position in range(902)]
        assert order[0] == heads[id(unlock)], "the wait is set aside"
        # Without a look at it in between, it would be the last.  The loop looks after every 64 requests.
        assert order.index(heads[id(wait)]) <= 128
        other.lock(UNLOCK, owner=2)


def test_many_waits_get_the_lock_one_after_the_other(guests):
    holder = File(guests.two, "f")
    holder.lock(WRITE)
    files = [File(guests.one, "f") for _ in range(20)]
    pending = {owner: file.wait(WRITE, owner=owner) for owner, file in enumerate(files, start=10)}
    holder.lock(UNLOCK)
    while pending:
        assert devices.wait_until(lambda: first_done(guests.one, pending) is not None)
        owner = first_done(guests.one, pending)
        files[owner - 10].finish(pending.pop(owner))
        assert first_done(guests.one, pending) is None
        files[owner - 10].lock(UNLOCK, owner=owner)


def first_done(session: Session, pending: dict) -> int | None:
    """The owner whose wait has ended; any request makes the client look at the used ring."""
    session.getattr(ROOT)
    return next((owner for owner, wait in pending.items() if wait.done), None)


def test_a_wait_that_is_over_its_time_is_refused(guests):
    a, b = File(guests.one, "f"), File(guests.two, "f")
    a.lock(WRITE)
    assert refused(lambda: b.finish(b.wait(WRITE))) == errno.ENOLCK


def test_a_queue_holds_no_more_waits_than_it_has_room_for(guests):
    holder, file = File(guests.two, "f"), File(guests.one, "f")
    holder.lock(WRITE)
    waits = [file.wait(WRITE, owner=owner) for owner in range(100, 228)]
    assert refused(lambda: file.finish(file.wait(WRITE, owner=300))) == errno.ENOLCK
    holder.lock(UNLOCK)
    file.finish(waits[0])


def test_an_interrupt_that_overtakes_its_request_still_ends_the_wait(guests):
    a, b = File(guests.two, "f"), File(guests.one, "f")
    a.lock(WRITE)
    device = guests.one.device
    # INTERRUPT takes the next number, and the request the one after.
    step = -device.unique() + device.unique()
    unique = device.unique() + 2 * step
    device.request("interrupt", 0, FUSE_INTERRUPT_IN.pack(unique=unique), queue=0)
    pending = b.wait(WRITE)
    assert pending.unique == unique
    assert refused(lambda: b.finish(pending)) == errno.EINTR


def test_interrupt_ends_a_wait(guests):
    a, b = File(guests.two, "f"), File(guests.one, "f")
    a.lock(WRITE)
    pending = b.wait(WRITE)
    other = b.wait(WRITE, owner=2)
    device = guests.one.device
    reply = device.request("interrupt", 0, FUSE_INTERRUPT_IN.pack(unique=pending.unique), queue=0)
    assert reply.error == 0
    assert refused(lambda: b.finish(pending)) == errno.EINTR
    assert not other.done
    a.lock(UNLOCK)
    b.finish(other)


def test_stopping_the_queue_ends_a_wait_with_eio_which_no_program_sees_as_errno_512(guests):
    """Linux takes EINTR for a lock to mean that a signal is pending (ERESTARTSYS)."""
    a, b = File(guests.two, "f"), File(guests.one, "f")
    a.lock(WRITE)
    pending = b.wait(WRITE)
    guests.one.getattr(ROOT)
    guests.one.device.stop_queue(1)
    assert refused(lambda: b.finish(pending)) == errno.EIO


def test_the_end_of_the_session_ends_a_wait_with_eio(guests):
    a, b = File(guests.two, "f"), File(guests.one, "f")
    a.lock(WRITE)
    pending = b.wait(WRITE)
    guests.one.call("destroy")
    assert refused(lambda: b.finish(pending)) == errno.EIO


def test_the_end_of_the_session_drops_its_locks(daemons):
    host, first, _ = daemons
    (host / "f").touch()
    with Device.connect(first) as device:
        file = File(Session(device), "f")
        file.lock(WRITE)
        file.lock(WRITE, flags=FLOCK)
        again = File(Session(device), "f")
        with open(host / "f", "r+b") as outside:
            fcntl.flock(outside, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(outside, fcntl.LOCK_EX | fcntl.LOCK_NB)
        again.lock(WRITE)
    with open(host / "f", "r+b") as outside:
        assert devices.wait_until(lambda: can_lock(outside)), "the connection's end drops them, too"


def can_lock(file) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "bad",
    [{"type_": 3}, {"type_": 77}, {"start": 5, "end": 4}, {"start": 1 << 63, "end": (1 << 64) - 1}],
    ids=str,
)
def test_a_lock_that_makes_no_sense_is_refused(guests, bad):
    file = File(guests.one, "f")
    assert refused(lambda: file.lock(**({"type_": WRITE} | bad))) == errno.EINVAL


def test_directories_and_unknown_files_are_not_locked(guests):
    file = File(guests.one, "f")
    file.node = 4711
    assert refused(lambda: file.lock(WRITE)) == errno.ESTALE
    file.node = ROOT
    assert refused(lambda: file.lock(WRITE)) == errno.EINVAL
    file.fh = 4711
    assert refused(lambda: file.lock(WRITE, flags=FLOCK)) == errno.EBADF


def test_a_guest_holds_a_bounded_number_of_locks(guests):
    file = File(guests.one, "f")

    def lock_many() -> None:
        for owner in range(1, 5000):
            file.lock(READ, owner=owner)

    assert refused(lock_many) == errno.ENOLCK
    for owner in range(1, 5000):
        guests.one.flush(file.node, file.fh, owner)
    file.lock(WRITE, owner=1)


def test_local_locks_are_not_offered(tmp_path):
    (tmp_path / "f").touch()
    with (
        devices.start_ours(tmp_path, ["--locks", "local"]) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        assert not session.has("POSIX_LOCKS")
        assert not session.has("FLOCK_LOCKS")
        assert refused(lambda: File(session, "f").lock(WRITE)) == errno.ENOSYS


# --- file flags ---

GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820
NODUMP, IMMUTABLE, APPEND = 0x40, 0x10, 0x20


def control(session: Session, node: int, fh: int, command: int, data: bytes = b"", room: int = 0) -> bytes:
    reply = session.call(
        "ioctl", node, tail=data, room=16 + room, fh=fh, cmd=command, in_size=len(data), out_size=room
    )
    return bytes(reply[16:])


@pytest.fixture
def flagged(guests):
    """A file whose file system has flags."""
    file = File(guests.one, "f")
    try:
        control(guests.one, file.node, file.fh, GETFLAGS, room=4)
    except OSError as error:
        pytest.skip(f"the file system of {guests.host} has no file flags: {error}")
    return file


def test_a_guest_changes_the_flags_that_any_owner_may_change(guests, flagged):
    before = struct.unpack("<I", control(guests.one, flagged.node, flagged.fh, GETFLAGS, room=4))[0]
    control(guests.one, flagged.node, flagged.fh, SETFLAGS, struct.pack("<I", before | NODUMP))
    after = struct.unpack("<I", control(guests.one, flagged.node, flagged.fh, GETFLAGS, room=4))[0]
    assert after == before | NODUMP
    with open(guests.host / "f") as file:
        assert struct.unpack("<I", fcntl.ioctl(file, GETFLAGS, bytes(4)))[0] == after
    control(guests.one, flagged.node, flagged.fh, SETFLAGS, struct.pack("<I", before))


@pytest.mark.parametrize("flag", [IMMUTABLE, APPEND])
def test_a_guest_makes_no_file_that_the_host_cannot_remove(guests, flagged, flag):
    before = struct.unpack("<I", control(guests.one, flagged.node, flagged.fh, GETFLAGS, room=4))[0]
    act = lambda: control(guests.one, flagged.node, flagged.fh, SETFLAGS, struct.pack("<I", before | flag))  # noqa: E731
    assert refused(act) == errno.EPERM


def test_a_guest_changes_no_project_id(guests, flagged):
    value = control(guests.one, flagged.node, flagged.fh, FSGETXATTR, room=28)
    control(guests.one, flagged.node, flagged.fh, FSSETXATTR, value)
    xflags, extsize, nextents, projid, cowextsize = struct.unpack_from("<5I", value)
    other = struct.pack("<5I8x", xflags, extsize, nextents, projid + 7, cowextsize)
    assert refused(lambda: control(guests.one, flagged.node, flagged.fh, FSSETXATTR, other)) == errno.EPERM


@pytest.mark.parametrize("command", [0, 0x5401, 0x1277, 0x40049409, 0xFFFFFFFF], ids=hex)
def test_any_other_command_is_enotty(guests, command):
    """Terminals, block devices, clones: nothing that acts on more than the file."""
    file = File(guests.one, "f")
    assert refused(lambda: control(guests.one, file.node, file.fh, command, bytes(64), 64)) == errno.ENOTTY


def test_a_command_without_its_data_or_room_is_refused(guests):
    file = File(guests.one, "f")
    assert refused(lambda: control(guests.one, file.node, file.fh, SETFLAGS, b"abc")) == errno.EINVAL
    assert refused(lambda: control(guests.one, file.node, file.fh, GETFLAGS, room=3)) == errno.EINVAL

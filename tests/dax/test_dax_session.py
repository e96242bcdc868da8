# SPDX-License-Identifier: Apache-2.0
"""The life of a window: sessions, queues that stop in the middle of a mapping, buffers inside the window."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

import pytest
from mapping import OFFER_DAX, PAGE, RANGE, Mapped

import devices
from virtiofs.client.device import Device, WindowOptions
from virtiofs.client.session import Session
from virtiofs.client.window import WINDOW_BASE
from virtiofs.fuse.abi import CONSTANTS, FUSE_IN_HEADER, FUSE_READ_IN, FUSE_ROOT_ID, FUSE_WRITE_IN
from virtiofs.vhostuser import messages as m


@pytest.mark.parametrize("how", ["init", "destroy"])
def test_the_end_of_a_session_ends_its_mappings(mapped: Mapped, how: str) -> None:
    node = mapped.make("f", b"x" * PAGE)
    mapped.map(node)
    if how == "init":
        Session(mapped.device, flags=OFFER_DAX)
    else:
        mapped.session.destroy()
    assert not mapped.window.pieces


def test_after_a_reset_files_are_mapped_again(mapped: Mapped) -> None:
    """QEMU forgot all mappings by then."""
    node = mapped.make("f", b"x" * PAGE)
    mapped.map(node)
    mapped.device.reset()
    session = Session(mapped.device, flags=OFFER_DAX)
    mapped.window.troubles.clear()  # what was asked to be unmapped was not there any more
    session.setupmapping(session.lookup(FUSE_ROOT_ID, "f").nodeid, 0, RANGE, 0)
    assert mapped.window.read(0, 1) == b"x"


def test_a_front_end_that_keeps_mappings_over_a_reset_is_asked_to_drop_them(mapped: Mapped) -> None:
    """crosvm does."""
    node = mapped.make("f", b"x" * PAGE)
    for at in range(3):
        mapped.map(node, at=at)
    mapped.window.drop = lambda: None  # type: ignore[method-assign]
    mapped.device.reset()
    Session(mapped.device, flags=OFFER_DAX)
    assert not mapped.window.pieces


@pytest.mark.parametrize("writes", [False, True], ids=["setup", "append"])
def test_a_queue_is_stopped_while_it_waits_for_the_front_end(
    connect: Callable[..., Mapped], writes: bool
) -> None:
    """The front end, with one main loop, waits for the queue to stop, and the queue for the front end to map."""
    mapped = connect()
    node = mapped.make("f", b"x" * PAGE)
    fh = mapped.open(node)
    if writes:
        mapped.map(node)
    session, device = mapped.session, mapped.device
    with device.front_end.busy:  # the front end's main loop does something else
        if writes:
            pending = session.begin("write", node, tail=b"y" * PAGE, fh=fh, offset=PAGE, size=PAGE)
        else:
            pending = session.begin(
                "setupmapping", node, fh=(1 << 64) - 1, foffset=0, len=RANGE, flags=3, moffset=0
            )
        wait_for_request(mapped)
        base = device.stop_queue(1)
        assert pending.done == writes  # a mapping is left in the ring, what was done is not
        device.start_queue(1, base)
    if not writes:
        session.finish(pending, "setupmapping")
    session.getattr(node)  # behind what the queue had to catch up with
    expected = b"x" * PAGE + (b"y" * PAGE if writes else b"")
    assert mapped.window.read(0, len(expected)) == expected


def test_memory_changes_while_a_queue_waits_for_the_front_end(
    connect: Callable[..., Mapped],
) -> None:
    """Memory that is taken away makes the queues stand still."""
    mapped = connect()
    node = mapped.make("f", b"x" * PAGE)
    front_end = mapped.device.front_end
    fd = os.memfd_create("more")
    os.ftruncate(fd, 1 << 20)
    region = m.MemoryRegion(0x90_0000_0000, 1 << 20, 0x7C00_0000_0000, 0)
    fds = mapped.device._memory_fds
    ram = mapped.device.regions
    with front_end.busy:
        pending = mapped.session.begin(
            "setupmapping", node, fh=(1 << 64) - 1, foffset=0, len=RANGE, flags=3, moffset=0
        )
        wait_for_request(mapped)
        front_end.set_memory([*ram, region], [*fds, fd])
        front_end.set_memory(ram, fds)
    mapped.session.finish(pending, "setupmapping")
    assert mapped.window.read(0, 1) == b"x"
    os.close(fd)


def wait_for_request(mapped: Mapped) -> None:
    """Wait until the device has asked the front end for something that it does not obey now."""
    thread = mapped.window._thread
    seen = mapped.window.waiting
    assert devices.wait_until(seen.is_set, 20), thread


def test_two_queues_map_at_the_same_time(connect: Callable[..., Mapped]) -> None:
    mapped = connect(queues=2)
    nodes = [mapped.make(f"f{i}", bytes([i]) * (2 * PAGE)) for i in range(4)]
    sessions = [mapped.session, Session.__new__(Session)]
    sessions[1].__dict__.update(mapped.session.__dict__, queue=2)
    failures: list[BaseException] = []

    def work(session: Session, at: int) -> None:
        try:
            for number in range(30):
                session.setupmapping(nodes[(number + at) % 4], 0, RANGE, at * RANGE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(session, at)) for at, session in enumerate(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [mapped.window.read(at * RANGE, 1)[0] for at in range(2)] == [29 % 4, 30 % 4]


def test_data_goes_from_a_mapped_page_to_another_file_and_back(mapped: Mapped) -> None:
    """Direct I/O of a program that mapped one file: the buffer lies in the window."""
    source = mapped.make("mapped", bytes(range(256)) * 32)
    target = mapped.make("target", b"t" * PAGE)
    fh = mapped.open(target)
    mapped.map(source)
    device, arena, memory = mapped.device, mapped.device.arena, mapped.device.memory
    header, args, reply = arena.take(40), arena.take(40), arena.take(64)
    queue = device.queues[1]

    def ask(opcode: str, structure: bytes, data: int, size: int) -> int:
        write = opcode == "write"
        total = 40 + len(structure) + (size if write else 0)
        memory.write(header, FUSE_IN_HEADER.pack(len=total, opcode=16 if write else 15, nodeid=target))
        memory.write(args, structure)
        readable = [(header, 40), (args, 40)] + ([(data, size)] if write else [])
        writable = [(reply, 24)] if write else [(reply, 16), (data, size)]
        queue.ring.add(readable, writable)
        queue.ring.kick()
        assert queue.ring.wait(20) is not None
        return int.from_bytes(memory.read(reply + 4, 4), "little", signed=True)

    in_window = WINDOW_BASE + PAGE
    assert ask("write", FUSE_WRITE_IN.pack(fh=fh, offset=0, size=512), in_window, 512) == 0
    assert (mapped.host / "target").read_bytes()[:512] == bytes(range(256)) * 2
    assert ask("read", FUSE_READ_IN.pack(fh=fh, offset=1024, size=512), in_window, 512) == 0
    assert (mapped.host / "mapped").read_bytes()[PAGE : PAGE + 512] == b"t" * 512
    # Nothing is mapped there: the system call says so, and nobody dies.
    assert ask("write", FUSE_WRITE_IN.pack(fh=fh, offset=0, size=512), WINDOW_BASE + RANGE, 512) == -14
    # What is behind the end of the file is no different.
    os.truncate(mapped.host / "mapped", 0)
    assert ask("read", FUSE_READ_IN.pack(fh=fh, offset=0, size=512), in_window, 512) == -14


def test_requests_that_would_be_copied_out_of_the_window_are_refused(mapped: Mapped) -> None:
    """A page of a file may vanish under the worker, which would die of touching it."""
    node = mapped.make("bait", bytes(PAGE))
    mapped.map(node)
    device, arena, memory = mapped.device, mapped.device.arena, mapped.device.memory
    header, reply = arena.take(64), arena.take(128)
    memory.write(header, FUSE_IN_HEADER.pack(len=56, opcode=3, nodeid=FUSE_ROOT_ID))
    queue = device.queues[1]
    for readable, writable, error in (
        ([(WINDOW_BASE, 56)], [(reply, 120)], -22),  # no header that could be read
        ([(header, 40), (WINDOW_BASE, 16)], [(reply, 120)], -14),
        ([(header, 56)], [(reply, 16), (WINDOW_BASE, 104)], -14),
        ([(header, 56)], [(WINDOW_BASE, 120)], 1),  # nowhere to say anything
    ):
        memory.write(reply, (1).to_bytes(4, "little") * 4)
        queue.ring.add(readable, writable)
        queue.ring.kick()
        assert queue.ring.wait(20) is not None
        assert int.from_bytes(memory.read(reply + 4, 4), "little", signed=True) == error


def test_a_daemon_of_an_ordinary_user_maps_files_and_watches_them() -> None:
    kind = "ours-unprivileged"
    if reason := devices.available(kind):
        pytest.skip(reason)
    with (
        devices.share_for(kind) as share,
        devices.start_ours(share, ["--dax-window", "8M"], devices.NOBODY) as running,
        Device.connect(running.socket, window=WindowOptions(), timeout=20) as device,
    ):
        mapped = Mapped(device, share)
        with devices.as_user_of(kind):
            node = mapped.make("f", b"x" * (3 * PAGE))
        mapped.map(node)
        assert mapped.window.read(0, 3 * PAGE) == b"x" * (3 * PAGE)
        os.truncate(share / "f", PAGE)
        assert devices.wait_until(lambda: list(mapped.window.pieces) == [0] and ends(mapped) == PAGE, 20)
        # What the user may not write to is not mapped.
        node = mapped.make("of-root", b"x" * PAGE)
        with pytest.raises(PermissionError):
            mapped.map(node)
        assert mapped.window.troubles == []
    assert running.log == []


def ends(mapped: Mapped) -> int:
    """Where the last piece ends; 0 without any."""
    return max((at + piece.length for at, piece in list(mapped.window.pieces.items())), default=0)


def test_memory_slots_are_not_offered_beside_a_window(mapped: Mapped) -> None:
    """With them QEMU 11.1 dies when a guest is reset while files are mapped."""
    offered = mapped.device.front_end.offered_protocol_features
    assert not offered & m.PROTOCOL_F_CONFIGURE_MEM_SLOTS


def test_without_a_window_nothing_is_offered(daemon: devices.RunningDevice) -> None:
    """A front end that has none, as QEMU's vhost-user-fs-pci, is served as ever."""
    with Device.connect(daemon.socket) as device:
        session = Session(device, flags=OFFER_DAX)
        assert not session.has("MAP_ALIGNMENT") and not session.has("HAS_INODE_DAX")
        (daemon.directory / "f").write_bytes(bytes(64 << 10))
        entry = session.lookup(FUSE_ROOT_ID, "f")
        assert not entry.attr.flags & CONSTANTS["FUSE_ATTR_DAX"]
        with pytest.raises(OSError):
            session.setupmapping(entry.nodeid, 0, RANGE, 0)


def test_a_front_end_that_goes_in_the_middle_of_a_mapping(daemon: devices.RunningDevice) -> None:
    device = Device.connect(daemon.socket, window=WindowOptions(), timeout=20)
    mapped = Mapped(device, daemon.directory)
    node = mapped.make("gone", b"x" * PAGE)
    with device.front_end.busy:
        mapped.session.begin("setupmapping", node, fh=(1 << 64) - 1, foffset=0, len=RANGE, flags=3, moffset=0)
        wait_for_request(mapped)
        os.close(os.dup(device.fileno()))
        device.front_end.close()
    device.disconnect()
    with Device.connect(daemon.socket, window=WindowOptions(), timeout=20) as again:
        Session(again, flags=OFFER_DAX).lookup(FUSE_ROOT_ID, "gone")
    assert select.select([], [], [], 0) == ([], [], [])

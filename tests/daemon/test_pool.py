# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for the host's disk leave their queue to the others."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import devices
from holding import SIZE, HoldingTree, content
from virtiofs.cli import ctl
from virtiofs.client.device import Device
from virtiofs.client.session import Session

ROOT = 1
MOST_JOBS = 1024
SLOW_SECONDS = 0.005  # what no read from memory takes

needs_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK), reason="mounting needs root and /dev/fuse"
)


class Served:
    """Our daemon on a directory, and what it says of its pool."""

    def __init__(self, running: devices.RunningDevice, control: Path):
        self.running = running
        self.socket = running.socket
        self._control = control

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ctl.ask(str(self._control), {"do": "status"})["result"][0]
        return found

    def pool(self, name: str) -> int:
        return int(self.status()["pool"][name])

    def metrics(self) -> str:
        return str(ctl.ask(str(self._control), {"do": "metrics"})["result"])


@contextlib.contextmanager
def served(directory: Path, place: Path, *options: str) -> Iterator[Served]:
    control = place / "control"
    with devices.start_ours(directory, ["--control", str(control), *options]) as running:
        yield Served(running, control)
        assert running.alive, "\n".join(running.log)


@contextlib.contextmanager
def held(place: Path, *options: str) -> Iterator[tuple[HoldingTree, Served]]:
    """A tree that answers when it is told to, served with two threads in the pool."""
    mount = place / "mount"
    mount.mkdir()
    with (
        HoldingTree(mount) as tree,
        served(mount, place, *(options or ("--thread-pool-size", "2"))) as daemon,
    ):
        try:
            yield tree, daemon
        finally:
            tree.let_go()


class File:
    """A file of the tree that the guest has open."""

    def __init__(self, session: Session, name: str):
        self.session = session
        self.node = session.lookup(ROOT, name).nodeid
        self.fh = session.open(self.node, os.O_RDWR).fh

    def fsync(self) -> Any:
        """Begin FSYNC, which waits until the tree answers."""
        return self.session.begin("fsync", self.node, fh=self.fh)

    def read(self, offset: int, size: int) -> Any:
        return self.session.begin("read", self.node, room=size, fh=self.fh, offset=offset, size=size)


@needs_mount
def test_metadata_is_answered_while_a_request_waits_for_the_disk(tmp_path):
    with held(tmp_path) as (tree, daemon), Device.connect(daemon.socket) as device:
        session = Session(device)
        file = File(session, "a")
        for name, fields in (("fsync", {}), ("fallocate", {"length": 4096})):
            pending = session.begin(name, file.node, fh=file.fh, **fields)
            waiting = tree.next(name)
            assert session.getattr(file.node).size == SIZE
            assert session.lookup(ROOT, "b").attr.size == SIZE
            assert not pending.done
            assert daemon.status()["queues"]["1"]["pooled"] == 1
            assert daemon.pool("busy") == 1
            tree.answer(waiting)
            session.finish(pending, name)
        assert devices.wait_until(lambda: daemon.pool("jobs") == 0)
        assert daemon.pool("taken") == 2
        assert 'virtiofs_pool_requests_total{share="virtiofs"} 2' in daemon.metrics()
        assert 'virtiofs_requests_total{share="virtiofs",operation="fsync"} 1' in daemon.metrics()


def niceness(served: Served) -> list[int]:
    """Of each thread of the worker, lowest first."""
    worker = served.running.worker
    return sorted(os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir(f"/proc/{worker}/task"))


def test_what_waited_for_the_disk_yields_the_processor_to_the_queues(tmp_path):
    base = os.getpriority(os.PRIO_PROCESS, 0)
    with (
        served(tmp_path, tmp_path, "--thread-pool-size", "3") as daemon,
        Device.connect(daemon.socket) as device,
    ):
        Session(device)
        assert (
            niceness(daemon) == [base] * 3 + [min(base + 5, 19)] * 3
        )  # the main thread, two queues, the pool


@needs_mount
def test_requests_are_answered_in_the_order_in_which_the_disk_is_done(tmp_path):
    with held(tmp_path) as (tree, daemon), Device.connect(daemon.socket) as device:
        session = Session(device)
        first, second = File(session, "a").fsync(), File(session, "b").fsync()
        waiting = {request.node: request for request in (tree.next("fsync"), tree.next("fsync"))}
        tree.answer(waiting[3])
        session.finish(second, "fsync")
        assert not first.done
        tree.answer(waiting[2])
        session.finish(first, "fsync")


@needs_mount
def test_without_a_pool_the_queue_waits(tmp_path):
    with held(tmp_path, "--thread-pool-size", "0") as (tree, daemon), Device.connect(daemon.socket) as device:
        session = Session(device)
        file = File(session, "a")
        pending = file.fsync()
        waiting = tree.next("fsync")
        other = session.begin("getattr", file.node)
        assert daemon.status()["pool"] == {}
        assert device.queues[1].ring.poll() is None
        tree.answer(waiting)
        session.finish(other, "getattr")
        assert pending.done, "served in order"
        session.finish(pending, "fsync")


@needs_mount
def test_a_queue_that_stops_finishes_what_the_pool_has_of_it(tmp_path):
    with held(tmp_path) as (tree, daemon), Device.connect(daemon.socket) as device:
        session = Session(device)
        files = [File(session, name) for name in "ab"]
        pending = [file.fsync() for file in files + files]  # two of them wait for a thread
        waiting = [tree.next("fsync"), tree.next("fsync")]
        assert devices.wait_until(lambda: daemon.pool("taken") == 4)
        stopping = threading.Thread(target=device.stop_queue, args=(1,))
        stopping.start()
        for request in waiting:
            tree.answer(request)
        for _ in range(2):
            tree.answer(tree.next("fsync"))
        stopping.join()
        assert all(request.done and request.reply.error == 0 for request in pending)
        device.start_queue(1)
        assert session.getattr(files[0].node).size == SIZE


@needs_mount
def test_a_file_that_is_closed_while_a_request_uses_it_stays_open_until_then(tmp_path):
    with held(tmp_path) as (tree, daemon), Device.connect(daemon.socket) as device:
        session = Session(device)
        file = File(session, "a")
        pending = file.fsync()
        waiting = tree.next("fsync")
        session.release(file.node, file.fh)
        assert daemon.status()["filesystem"]["handles"] == 1
        with pytest.raises(OSError) as caught:
            session.read(file.node, file.fh, 0, 1)
        assert caught.value.errno == errno.EBADF
        assert tree.released.empty()
        tree.answer(waiting)
        session.finish(pending, "fsync")
        assert tree.released.get(timeout=10) == waiting.node
        assert daemon.status()["filesystem"]["handles"] == 0


@needs_mount
def test_a_reset_waits_for_what_the_pool_has_and_a_new_session_begins(tmp_path):
    with held(tmp_path) as (tree, daemon), Device.connect(daemon.socket) as device:
        file = File(Session(device), "a")
        file.fsync()
        waiting = tree.next("fsync")
        resetting = threading.Thread(target=device.reset)
        resetting.start()
        tree.answer(waiting)
        resetting.join()
        assert tree.released.get(timeout=10) == waiting.node
        session = Session(device)
        assert session.getattr(ROOT).nlink == 1
        with pytest.raises(OSError):
            session.getattr(file.node)


@needs_mount
def test_a_guest_that_begins_anew_while_requests_wait_gets_both_answers(tmp_path):
    with held(tmp_path) as (tree, daemon), Device.connect(daemon.socket) as device:
        first = Session(device)
        pending = File(first, "a").fsync()
        waiting = tree.next("fsync")
        second = Session(device)
        assert second.getattr(ROOT).nlink == 1
        tree.answer(waiting)
        first.finish(pending, "fsync")
        second.destroy()


@needs_mount
def test_a_worker_ends_when_its_last_request_is_done(tmp_path):
    with held(tmp_path) as (tree, daemon):
        device = Device.connect(daemon.socket)
        File(Session(device), "a").fsync()
        waiting = tree.next("fsync")
        before = daemon.status()["worker"]
        device.disconnect()
        assert devices.wait_until(lambda: daemon.status()["worker"] not in (before, None))
        assert os.path.exists(f"/proc/{before}")
        with Device.connect(daemon.socket) as device:
            assert Session(device).lookup(ROOT, "b").attr.size == SIZE
            tree.answer(waiting)
            assert devices.wait_until(lambda: not os.path.exists(f"/proc/{before}"))


@needs_mount
def test_queues_share_the_pool_and_neither_waits_for_the_other(tmp_path):
    with (
        held(tmp_path, "--queues", "2", "--thread-pool-size", "1") as (tree, daemon),
        Device.connect(daemon.socket, queues=2) as device,
    ):
        one = Session(device)
        file = File(one, "a")
        requests = [
            device.begin("fsync", file.node, file.fh.to_bytes(16, "little"), 0, queue) for queue in (1, 2)
        ]
        waiting = tree.next("fsync")
        assert devices.wait_until(lambda: daemon.pool("jobs") == 2)
        for queue in (1, 2):
            assert device.request("getattr", file.node, bytes(16), 104, queue).error == 0
        tree.answer(waiting)
        tree.answer(tree.next("fsync"))
        for request in requests:
            reply = device.finish(request)
            assert reply is not None and reply.error == 0


@needs_mount
def test_what_the_pool_has_no_room_for_is_served_by_the_queue(tmp_path):
    with (
        held(tmp_path, "--thread-pool-size", "1") as (tree, daemon),
        Device.connect(daemon.socket, queue_size=2048, memory=96 << 20) as device,
    ):
        session = Session(device)
        file = File(session, "a")
        requests = [file.fsync() for _ in range(MOST_JOBS + 1)]
        assert devices.wait_until(lambda: daemon.pool("refused") == 1, 30.0)
        assert daemon.pool("taken") == MOST_JOBS
        other = session.begin("getattr", file.node)
        assert not any(request.done for request in requests)
        tree.let_go()
        session.finish(other, "getattr")
        for request in requests:
            session.finish(request, "fsync")


@needs_mount
def test_after_a_slow_read_of_a_file_system_that_can_not_say_the_next_ones_go_to_the_pool(tmp_path):
    with held(tmp_path) as (tree, daemon), Device.connect(daemon.socket) as device:
        session = Session(device)
        file = File(session, "a")
        pending = file.read(4096, 100)
        waiting = tree.next("read")
        time.sleep(SLOW_SECONDS)  # the slowness itself
        tree.answer(waiting)
        assert session.finish(pending, "read", 100) == content(4096, 100)
        assert daemon.pool("taken") == 0
        for offset, size in ((0, 4096), (8193, 70000), (SIZE - 10, 4096), (SIZE, 4096)):
            pending = file.read(offset, size)
            waiting = tree.next("read")
            assert session.getattr(file.node).size == SIZE
            assert not pending.done
            tree.answer(waiting)
            while not pending.done and not tree.held.empty():
                tree.answer(tree.next("read"))
            assert session.finish(pending, "read", size) == content(offset, size)
        assert daemon.pool("taken") == 4


def resident(path: Path) -> int:
    """How many pages of a file are cached."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as view:
        pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(view)
        libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), found)
        del start
    return sum(byte & 1 for byte in found)


def cool(path: Path) -> None:
    """Drop a file from the page cache; skips where it stays, or where the file system can not say."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        file.read()
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as error:
            pytest.skip(f"this file system can not say whether a read would block: {error}")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path):
        pytest.skip("the file stays in the page cache")


@pytest.mark.parametrize("size", [4096 * 64, 4096 * 64 + 1, 4096 * 64 - 1])
def test_reads_from_the_disk_and_from_the_cache_are_the_same(tmp_path, size):
    share = tmp_path / "share"
    share.mkdir()
    data = os.urandom(size)
    (share / "f").write_bytes(data)
    with served(share, tmp_path) as daemon, Device.connect(daemon.socket) as device:
        session = Session(device)
        node = session.lookup(ROOT, "f").nodeid
        for start, length in (
            (0, size),
            (4096, 4096),
            (100, 8000),
            (size - 4096, 65536),
            (0, 800000),
            (size, 1),
        ):
            cool(share / "f")
            fh = session.open(node).fh
            before = daemon.pool("taken")
            for _ in range(2):
                assert session.read(node, fh, start, length) == data[start : start + length]
            assert daemon.pool("taken") <= before + 1, "the second read is from memory"
            # Half of it from memory.
            cool(share / "f")
            with (share / "f").open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                os.pread(file.fileno(), 4096, start - start % 4096)
            assert session.read(node, fh, start, length) == data[start : start + length]
            session.release(node, fh)
        assert daemon.pool("taken") > 0
        assert daemon.pool("refused") == 0


def test_writes_past_the_cache_leave_the_queue(tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    (share / "f").write_bytes(b"old")
    with served(share, tmp_path) as daemon, Device.connect(daemon.socket) as device:
        session = Session(device)
        node = session.lookup(ROOT, "f").nodeid
        data = os.urandom(20000)
        plain = session.open(node, os.O_RDWR).fh
        assert session.write(node, plain, 0, data) == len(data)
        assert daemon.pool("taken") == 0
        synced = session.open(node, os.O_RDWR | os.O_SYNC).fh
        assert session.write(node, synced, 5, data) == len(data)
        assert daemon.pool("taken") == 1
        assert session.read(node, plain, 0, 30000) == data[:5] + data
        copy, copied = session.create(ROOT, "copy", os.O_RDWR)
        assert session.copy_file_range(node, plain, 1, copy.nodeid, copied.fh, 0, 100) == 100
        session.fsync(copy.nodeid, copied.fh)
        session.syncfs()
        directory = session.opendir(ROOT).fh
        session.fsyncdir(ROOT, directory)
        assert devices.wait_until(lambda: daemon.pool("jobs") == 0)
        assert daemon.pool("taken") == 5
        assert (share / "copy").read_bytes() == (data[:5] + data)[1:101]


def test_a_pool_that_is_too_large_or_no_number_is_refused(tmp_path):
    for size in ("-1", "65", "many"):
        starting = devices.start_ours(tmp_path, [f"--thread-pool-size={size}"])
        with pytest.raises(RuntimeError, match="thread-pool-size"), starting:
            pass

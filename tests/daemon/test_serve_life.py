# SPDX-License-Identifier: Apache-2.0
"""The life of `virtiofs serve`: how it says that it is ready, whom it serves, and how it ends."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Device, DeviceGone
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.vhostuser.frontend import FrontEndError

SECONDS = 10.0


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "file").write_text("contents")
    return tmp_path / "share"


def read(device: Device) -> bytes:
    """What a fresh session of a device reads from the file that each share has."""
    with Tree(Session(device)).open("file", os.O_RDONLY) as file:
        return file.pread(100, 0)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, the outermost first: where the worker has walls around it, it is the last."""
    return [below for child in children(pid) for below in (child, *descendants(child))]


def is_dead(pid: int) -> bool:
    """Whether a process has ended; somebody else's child may still wait to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def said(device: devices.RunningDevice, pattern: str) -> bool:
    """Whether the daemon says a line that matches, now or soon."""
    return devices.wait_until(lambda: any(re.search(pattern, line) for line in device.log), SECONDS)


@contextlib.contextmanager
def daemon(
    *words: str | Path, pass_fds: Sequence[int] = (), **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Start `virtiofs serve`; stopped at the end if it still runs."""
    command = [sys.executable, "-m", "virtiofs", "serve", *map(str, words)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, pass_fds=pass_fds, env=os.environ | environment
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def test_a_ready_descriptor_hears_of_it_when_a_vmm_may_connect(share: Path, tmp_path: Path) -> None:
    ready, ready_end = os.pipe()
    path = tmp_path / "s"
    with daemon(share, "--socket", path, "--ready-fd", str(ready_end), pass_fds=[ready_end]):
        os.close(ready_end)
        assert os.read(ready, 64) == b"READY\n"
        with Device.connect(str(path)) as device:
            assert read(device) == b"contents"
        assert os.read(ready, 64) == b""  # it was closed
    os.close(ready)


def test_a_ready_descriptor_of_a_daemon_that_fails_just_ends(tmp_path: Path) -> None:
    ready, ready_end = os.pipe()
    with daemon(
        tmp_path / "missing", "--socket", tmp_path / "s", "--ready-fd", str(ready_end), pass_fds=[ready_end]
    ):
        os.close(ready_end)
        assert os.read(ready, 64) == b""
    os.close(ready)


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(share: Path, tmp_path: Path, abstract: bool) -> None:
    path = f"virtiofs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path if abstract else path)
        manager.settimeout(SECONDS)
        with daemon(share, "--socket", tmp_path / "s", NOTIFY_SOCKET=("@" if abstract else "") + path):
            assert "READY=1" in manager.recv(4096).decode().split("\n")
            with Device.connect(str(tmp_path / "s")) as device:
                assert read(device) == b"contents"


def test_a_service_manager_that_does_not_listen_is_no_reason_not_to_serve(
    share: Path, tmp_path: Path
) -> None:
    ready, ready_end = os.pipe()
    words = (share, "--socket", tmp_path / "s", "--ready-fd", str(ready_end))
    with daemon(*words, pass_fds=[ready_end], NOTIFY_SOCKET=str(tmp_path / "nobody")):
        os.close(ready_end)
        assert os.read(ready, 64) == b"READY\n"
    os.close(ready)


def test_a_listening_socket_that_is_passed_serves_one_vmm_after_the_other(
    share: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with daemon(share, "--fd", str(listener.fileno()), pass_fds=[listener.fileno()]) as process:
            for _ in range(2):
                with Device.connect(path) as device:
                    assert read(device) == b"contents"
            process.terminate()
            assert process.wait(SECONDS) == 0
    # Whoever made the socket's file removes it.
    assert os.path.exists(path)


def test_a_connected_socket_that_is_passed_is_served_until_it_ends(share: Path) -> None:
    from virtiofs.vhostuser.transport import Connection

    ours, theirs = socket.socketpair()
    with daemon(share, "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        with Device(Connection(ours)) as device:
            assert read(device) == b"contents"
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("connected", [False, True], ids=["idle", "serving"])
def test_a_signal_ends_it_cleanly(share: Path, number: signal.Signals, connected: bool) -> None:
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(devices.start_ours(share))
        workers = descendants(running.process.pid)
        assert workers
        if connected:
            device = Device.connect(running.socket)
            stack.callback(device.disconnect)
            assert read(device) == b"contents"
        running.process.send_signal(number)
        assert running.process.wait(SECONDS) == 0
        assert not os.path.exists(running.socket)
        assert [pid for pid in workers if os.path.exists(f"/proc/{pid}")] == []
        assert running.log == []


def test_ending_does_not_remove_the_socket_of_a_successor(share: Path) -> None:
    with devices.start_ours(share) as running:
        os.unlink(running.socket)
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(running.socket)
            running.process.terminate()
            assert running.process.wait(SECONDS) == 0
            assert os.path.exists(running.socket)


def test_a_request_that_was_taken_is_answered_before_the_end(share: Path) -> None:
    with devices.start_ours(share) as running, Device.connect(running.socket) as device:
        session = Session(device)
        entry, handle = session.create(1, "new")
        pending = [
            session.device.begin("fsync", entry.nodeid, handle.fh.to_bytes(8, "little") + bytes(8))
            for _ in range(20)
        ]
        running.process.terminate()
        assert running.process.wait(SECONDS) == 0
        # What the daemon took from the ring has its reply there; the rest it never touched.
        with contextlib.suppress(DeviceGone):
            for one in pending:
                device.finish(one)
        assert [one.reply.error for one in pending if one.reply] == [0] * sum(one.done for one in pending)
        assert not device.queues[1].is_broken()
        device.disconnect()


def test_a_second_vmm_is_refused_while_the_first_is_served(share: Path) -> None:
    with devices.start_ours(share) as running, Device.connect(running.socket) as first:
        session = Session(first)
        with pytest.raises(FrontEndError):
            Device.connect(running.socket)
        assert said(running, rf"warning: refused process {os.getpid()}: another VMM is connected")
        assert session.getattr(1).mode
        assert running.alive


def test_the_next_vmm_starts_afresh(share: Path) -> None:
    with devices.start_ours(share) as running:
        with Device.connect(running.socket) as device:
            session = Session(device)
            entry = session.lookup(1, "file")
            handle = session.open(entry.nodeid, os.O_RDONLY)
            (first_worker,) = children(running.process.pid)
            device.disconnect()  # without a word
        assert devices.wait_until(lambda: children(running.process.pid) not in ([], [first_worker]), SECONDS)
        with Device.connect(running.socket) as device:
            session = Session(device)
            # Node ids and handles of the first mean nothing now.
            for request in (lambda: session.getattr(entry.nodeid), lambda: session.read(1, handle.fh, 0, 10)):
                with pytest.raises(OSError):
                    request()
            with Tree(session).open("file", os.O_RDONLY) as file:
                assert file.pread(100, 0) == b"contents"
        assert running.log == []


def test_a_vmm_that_talks_nonsense_is_put_out_and_the_next_is_served(share: Path) -> None:
    with devices.start_ours(share) as running:
        with socket.socket(socket.AF_UNIX) as vmm:
            vmm.connect(running.socket)
            vmm.settimeout(SECONDS)
            vmm.sendall(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")
            try:
                assert vmm.recv(64) == b""
            except ConnectionResetError:
                pass  # it was put out before it had been read to the end
        assert said(running, "error: closing the connection: ")
        with Device.connect(running.socket) as device:
            assert read(device) == b"contents"
        assert running.alive


@pytest.mark.parametrize(
    ("which", "number"),
    [
        pytest.param(0, signal.SIGKILL, id="outermost-KILL"),
        pytest.param(0, signal.SIGSEGV, id="outermost-SEGV"),
        pytest.param(0, signal.SIGABRT, id="outermost-ABRT"),
        # The first process of a process id namespace gets no other signal that it does not expect.
        pytest.param(-1, signal.SIGKILL, id="innermost-KILL"),
    ],
)
def test_a_worker_that_is_killed_ends_the_daemon_with_a_reason(
    share: Path, which: int, number: signal.Signals
) -> None:
    with devices.start_ours(share) as running:
        device = Device.connect(running.socket)
        assert read(device) == b"contents"
        workers = descendants(running.process.pid)
        os.kill(workers[which], number)
        assert running.process.wait(SECONDS) == 1
        assert said(running, rf"error: the worker \(process {workers[0]}\) died: {number.name}")
        assert not os.path.exists(running.socket)
        assert devices.wait_until(lambda: all(is_dead(pid) for pid in workers), SECONDS)
        with pytest.raises(DeviceGone):
            device.request("getattr", 1, bytes(16), 104)
        device.disconnect()


@pytest.mark.parametrize("which", [0, -1], ids=["outermost", "innermost"])
def test_a_worker_that_is_killed_while_nobody_is_served_ends_the_daemon_too(share: Path, which: int) -> None:
    with devices.start_ours(share) as running:
        workers = descendants(running.process.pid)
        os.kill(workers[which], signal.SIGKILL)
        assert running.process.wait(SECONDS) == 1
        assert said(running, rf"error: the worker \(process {workers[0]}\) died: SIGKILL")


def test_a_supervisor_that_is_killed_takes_its_worker_with_it(share: Path) -> None:
    with devices.start_ours(share) as running:
        device = Device.connect(running.socket)
        assert read(device) == b"contents"
        watched = [os.pidfd_open(worker) for worker in descendants(running.process.pid)]
        running.process.kill()
        for worker in watched:
            assert select.select([worker], [], [], SECONDS)[0] == [worker]
            os.close(worker)
        with pytest.raises(DeviceGone):
            device.request("getattr", 1, bytes(16), 104)
        device.disconnect()


def test_guest_memory_that_shrinks_ends_the_worker_and_is_reported(
    share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory: list[int] = []
    create = os.memfd_create

    def remember(*arguments: object) -> int:
        fd = create(*arguments)  # type: ignore[arg-type]
        memory.append(os.dup(fd))
        return fd

    with devices.start_ours(share) as running:
        monkeypatch.setattr(os, "memfd_create", remember)
        device = Device.connect(running.socket)
        monkeypatch.undo()
        assert read(device) == b"contents"
        (worker,) = children(running.process.pid)
        os.ftruncate(memory[0], 0)
        # From here on this process may not touch that memory either.
        os.eventfd_write(device.queues[1].kick_fd, 1)
        assert running.process.wait(SECONDS) == 1
        assert said(running, rf"error: the worker \(process {worker}\) died: SIGBUS: guest memory vanished")
        assert not os.path.exists(running.socket)
        device.disconnect()
    for fd in memory:
        os.close(fd)


def test_the_tag_and_the_queues_are_what_was_asked_for(share: Path) -> None:
    with (
        devices.start_ours(share, ["--tag", "über data", "--queues", "3"]) as running,
        Device.connect(running.socket, queues=3) as device,
    ):
        assert (device.tag, device.queue_count) == ("über data", 3)
        Session(device)
        for queue in (1, 2, 3):
            assert device.request("getattr", 1, bytes(16), 104, queue=queue).error == 0


def test_a_directory_that_is_replaced_by_another_stays_the_one_that_was_shared(share: Path) -> None:
    with devices.start_ours(share) as running, Device.connect(running.socket) as device:
        share.rename(share.with_name("moved"))
        share.mkdir()
        assert read(device) == b"contents"


def test_descriptors_do_not_add_up_over_many_vmms(share: Path) -> None:
    with devices.start_ours(share) as running:
        pid = running.process.pid
        with Device.connect(running.socket) as device:
            assert read(device) == b"contents"
            first = len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(4):
            with Device.connect(running.socket) as device:
                assert read(device) == b"contents"
                # The worker before may not be buried yet.
                assert devices.wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= first, SECONDS)
        assert running.log == []

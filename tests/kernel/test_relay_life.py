# SPDX-License-Identifier: Apache-2.0
"""How a mounted device lives and ends: several queues, FORGET, INTERRUPT, and every way to stop."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from mounting import USER, Mounted, command, mounted, unavailable
from sharing import failure
from virtiofs.fuse.mountpoint import mounts

pytestmark = [pytest.mark.skipif(bool(unavailable()), reason=unavailable()), pytest.mark.also_rust]


@pytest.fixture
def device(kind: str, tmp_path: Path) -> Iterator[devices.RunningDevice]:
    """A daemon for one test, serving a directory with one file."""
    if reason := devices.available(kind):
        pytest.skip(reason)
    share = tmp_path / "share"
    share.mkdir()
    (share / "file").write_text("contents")
    with devices.start(kind, share) as running:
        yield running


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[devices.RunningDevice]:
    """Our daemon with two queues and a control socket."""
    share = tmp_path / "share"
    share.mkdir()
    with devices.start_ours(share, ["--queues", "2", "--control", str(tmp_path / "control")]) as running:
        yield running


def status(ours: devices.RunningDevice) -> dict:
    from virtiofs.cli.ctl import ask

    path = str(ours.directory.parent / "control")
    return ask(path, {"do": "status"})["result"][0]


def test_unmounting_from_outside_ends_it_with_success(device, tmp_path):
    with mounted(tmp_path, socket=device.socket) as mount:
        assert (mount.place / "file").read_text() == "contents"
        subprocess.run(["umount", str(mount.place)], check=True)
        assert mount.wait()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unmounts_and_ends_it_with_success(number, device, tmp_path):
    with mounted(tmp_path, socket=device.socket) as mount:
        still_open = os.open(mount.place / "file", os.O_RDONLY)
        mount.process.send_signal(number)
        assert mount.wait()[0] == 0
        assert not mounts(str(mount.place))
        assert os.listdir(mount.place) == []
        failure(os.close, still_open)  # nobody is left to tell


def test_its_sudden_death_unmounts(device, tmp_path):
    with mounted(tmp_path, socket=device.socket) as mount:
        assert (mount.place / "file").exists()
        mount.process.kill()
        assert devices.wait_until(lambda: not mounts(str(mount.place)))
        assert os.listdir(mount.place) == []


def test_a_daemon_that_dies_ends_it_with_a_word_why(device, tmp_path):
    with mounted(tmp_path, socket=device.socket) as mount:
        assert (mount.place / "file").read_text() == "contents"
        for pid in device.family:
            os.kill(pid, signal.SIGKILL)
        ended, said = mount.wait()
        assert ended == 1
        assert "the device is gone" in said and len(said.splitlines()) == 1
        assert not mounts(str(mount.place))
        assert os.listdir(mount.place) == []


def test_what_waits_when_the_daemon_dies_gets_an_error(ours, tmp_path):
    (ours.directory / "lock").touch()
    with mounted(tmp_path, socket=ours.socket) as mount, (ours.directory / "lock").open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        told: list[int] = []

        def wait() -> None:
            fd = os.open(mount.place / "lock", os.O_RDONLY)
            told.append(failure(fcntl.flock, fd, fcntl.LOCK_EX))
            failure(os.close, fd)

        thread = threading.Thread(target=wait)
        thread.start()
        assert devices.wait_until(lambda: waiting(ours) == 1)
        for pid in reversed(ours.family):  # the worker first: it ends waits itself when it is told to stop
            os.kill(pid, signal.SIGKILL)
        assert mount.wait()[0] == 1
        thread.join(10)
        assert told[0] in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)


def waiting(ours: devices.RunningDevice) -> int:
    """Requests that wait for a lock in our daemon."""
    queues = status(ours)["queues"]
    return sum(queue["waiting"] for queue in queues.values())


LOCK = """
import fcntl, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: 1 / 0)
file = open(sys.argv[1])
try:
    fcntl.flock(file, fcntl.LOCK_EX)
except ZeroDivisionError:
    print("interrupted")
"""


def test_a_signal_interrupts_the_wait_for_a_lock(ours, tmp_path):
    (ours.directory / "lock").touch()
    with mounted(tmp_path, socket=ours.socket) as mount, (ours.directory / "lock").open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        waiter_command = [sys.executable, "-c", LOCK, str(mount.place / "lock")]
        with subprocess.Popen(waiter_command, stdout=subprocess.PIPE, text=True) as waiter:
            assert devices.wait_until(lambda: waiting(ours) == 1)
            waiter.send_signal(signal.SIGUSR1)
            assert waiter.communicate(timeout=20)[0] == "interrupted\n"
        assert waiting(ours) == 0
        assert (mount.place / "lock").read_text() == ""


def test_what_the_kernel_forgets_the_device_forgets(ours, tmp_path):
    with mounted(tmp_path, socket=ours.socket) as mount:
        (mount.place / "d").mkdir()
        for number in range(200):
            (mount.place / "d" / str(number)).touch()
        assert status(ours)["filesystem"]["inodes"] > 200
        for number in range(200):
            os.unlink(mount.place / "d" / str(number))
        assert devices.wait_until(lambda: status(ours)["filesystem"]["inodes"] < 10)


def test_every_queue_carries_requests_where_there_are_processors(ours, tmp_path):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor, so one queue is used")
    with mounted(tmp_path, socket=ours.socket) as mount:
        load(mount, 8)
        queues = status(ours)["queues"]
        assert queues["1"]["requests"] > 0 and queues["2"]["requests"] > 0


def load(mount: Mounted, count: int) -> None:
    """Keep `count` programs busy at once until each has written and read its file."""

    def work(number: int) -> None:
        place = mount.place / f"load-{number}"
        for turn in range(20):
            place.write_bytes(bytes([turn]) * 200_000)
            assert place.read_bytes() == bytes([turn]) * 200_000

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_one_queue_may_be_asked_for(ours, tmp_path):
    with mounted(tmp_path, "--queues", "1", socket=ours.socket) as mount:
        load(mount, 4)
        assert set(status(ours)["queues"]) == {"0", "1"}


def test_a_read_only_mount_refuses_changes_before_the_device_is_asked(ours, tmp_path):
    with mounted(tmp_path, "--readonly", socket=ours.socket) as mount:
        assert failure((mount.place / "new").touch) == errno.EROFS


def test_the_next_mount_finds_the_daemon_as_new(ours, tmp_path):
    for turn in range(2):
        with mounted(tmp_path, socket=ours.socket) as mount:
            (mount.place / f"file-{turn}").touch()
            mount.process.terminate()
            assert mount.wait()[0] == 0
    assert sorted(os.listdir(ours.directory)) == ["file-0", "file-1"]


@pytest.mark.parametrize("order", [["--socket", "SOCKET", "PLACE"], ["PLACE", "--socket=SOCKET"]])
def test_the_mount_point_may_stand_before_and_after_the_socket(order, ours, tmp_path):
    (tmp_path / "place").mkdir()
    words = [word.replace("SOCKET", ours.socket).replace("PLACE", str(tmp_path / "place")) for word in order]
    ready, ready_end = os.pipe()
    with subprocess.Popen(command(*words, "--ready-fd", str(ready_end)), pass_fds=[ready_end]) as process:
        os.close(ready_end)
        assert os.read(ready, 64)
        os.close(ready)
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("words", [["--cache", "never"], ["--threads", "2"], ["--queues", "0"], ["/srv"]])
def test_what_is_for_the_daemon_is_refused(words, tmp_path):
    done = subprocess.run(
        command(*words, "--socket", tmp_path / "socket", tmp_path),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert words[0] in done.stderr or "unrecognized" in done.stderr


@pytest.mark.skipif(bool(unavailable(user=True)), reason=unavailable(user=True))
def test_an_ordinary_user_mounts_a_device_of_its_own():
    with tempfile.TemporaryDirectory(prefix="virtiofs-test-") as place:
        base = Path(place)
        for directory in (base, base / "share"):
            directory.mkdir(exist_ok=True)
            os.chown(directory, USER, USER)
        (base / "share" / "file").write_text("contents")
        with (
            devices.start_ours(base / "share", ["--queues", "2"], user=USER) as running,
            mounted(base, user=USER, socket=running.socket) as mount,
        ):
            look = subprocess.run(
                ["cat", mount.place / "file"], user=USER, group=USER, capture_output=True, check=False
            )
            assert look.stdout == b"contents"
            assert mount.end(signal.SIGTERM)[0] == 0
            assert not mounts(str(mount.place))


def test_in_the_background_the_command_returns_when_the_device_is_mounted(ours, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    (ours.directory / "file").write_text("contents")
    subprocess.run(command("--background", "--socket", ours.socket, place), timeout=20, check=True)
    try:
        assert (place / "file").read_text() == "contents"
    finally:
        subprocess.run(["umount", place], check=True)

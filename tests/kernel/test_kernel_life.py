# SPDX-License-Identifier: Apache-2.0
"""The life of `virtiofs mount`: however it ends, no mount point and no process is left."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from mounting import SECONDS, USER, Mounted, command, gone, mounted, unavailable
from virtiofs.cli.ctl import ask
from virtiofs.cli.trace import Talk
from virtiofs.fuse.mountpoint import mounts
from virtiofs.fuse.records import Reader

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
as_user = pytest.mark.skipif(bool(unavailable(user=True)), reason=unavailable(user=True))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path) as it:
        (it.share / "file").write_text("contents")
        assert (it.place / "file").read_text() == "contents"
        yield it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unmounts_and_is_success(running: Mounted, number: signal.Signals) -> None:
    processes = running.processes
    status, said = running.end(number)
    assert status == 0
    assert said == f"virtiofs: info: unmounting {running.place} on {number.name}\n"
    assert gone(running, processes)


def test_an_unmount_from_outside_is_success_and_is_said(running: Mounted) -> None:
    processes = running.processes
    subprocess.run(["umount", running.place], check=True)
    status, said = running.wait()
    assert (status, said) == (0, f"virtiofs: info: {running.place} was unmounted\n")
    assert gone(running, processes)


def test_a_worker_that_is_killed_ends_it_all_and_is_a_failure(running: Mounted) -> None:
    processes = running.processes
    os.kill(running.worker, signal.SIGKILL)
    status, said = running.wait()
    assert status == 1
    assert "died: SIGKILL; unmounting" in said
    assert gone(running, processes)


def test_a_first_process_that_is_killed_leaves_nothing(running: Mounted) -> None:
    processes = running.processes
    running.end(signal.SIGKILL)
    assert gone(running, processes)


def test_the_guardian_heeds_no_signal_of_the_terminal(running: Mounted) -> None:
    guardian = running.guardian
    assert os.getsid(guardian) == guardian
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        os.kill(guardian, number)
    processes = running.processes
    running.end(signal.SIGKILL)
    assert gone(running, processes)


def test_an_open_file_does_not_keep_it_from_ending(running: Mounted) -> None:
    processes = running.processes
    fd = os.open(running.place / "file", os.O_RDWR)
    os.write(fd, b"CONTENTS")
    assert running.end(signal.SIGTERM)[0] == 0
    assert gone(running, processes)
    for act in (lambda: os.fstat(fd), lambda: os.pwrite(fd, b"x", 0), lambda: os.close(fd)):
        with pytest.raises(OSError):
            act()
    assert (running.share / "file").read_text() == "CONTENTS"


def test_what_a_shared_mapping_changed_is_written_before_it_ends(running: Mounted) -> None:
    fd = os.open(running.place / "file", os.O_RDWR)
    with mmap.mmap(fd, 0) as memory:
        memory[:8] = b"CONTENTS"
        assert running.end(signal.SIGTERM)[0] == 0
        assert (running.share / "file").read_text() == "CONTENTS"
    with contextlib.suppress(OSError):
        os.close(fd)


def test_what_is_mounted_there_since_stays(running: Mounted, tmp_path: Path) -> None:
    subprocess.run(["umount", running.place], check=True)
    running.wait()
    with mounted(tmp_path) as second:
        assert (second.place / "file").read_text() == "contents"
        running.process.poll()
        assert [mount[1] for mount in mounts(str(second.place))] == ["fuse.virtiofs"]


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-test-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@as_user
def test_an_ordinary_user_mounts_its_own_directory(public: Path) -> None:
    with mounted(public, user=USER) as it:
        (it.share / "mine").write_text("contents")
        os.chown(it.share / "mine", USER, USER)
        script = (
            f"import os, sys; os.setgroups([]); os.setgid({USER}); os.setuid({USER}); os.chdir(sys.argv[1]);"
            "os.mkdir('new'); open('new/file', 'w').write('x');"
            "print(open('mine').read(), *(os.stat(p).st_uid for p in ('mine', 'new', 'new/file')))"
        )
        told = subprocess.run(
            ["/usr/bin/env", "python3", "-c", script, it.place], capture_output=True, text=True, check=True
        )
        assert told.stdout.split() == ["contents", str(USER), str(USER), str(USER)]
        assert (it.share / "new" / "file").stat().st_uid == USER
        with pytest.raises(PermissionError):  # nobody else, not even root
            os.listdir(it.place)
        processes = it.processes
        it.end(signal.SIGKILL)
        assert gone(it, processes)


def refused(*words: str | Path, user: int | None = None) -> str:
    """What the command says that refuses to mount."""
    done = subprocess.run(
        command(*words, user=user), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("share", "place", "reason"),
    [
        ("share", "missing", "there is no directory {place}; make it: mkdir -p {place}"),
        ("share", "file", "{place} is not a directory"),
        ("missing", "place", "there is no directory {share}"),
        ("share", "share", "cannot be mounted on itself"),
        ("share", "share/below", "{place} lies inside {share}"),
        ("share/below", "share", "{place} holds {share}"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(
    tmp_path: Path, share: str, place: str, reason: str
) -> None:
    (tmp_path / "share" / "below").mkdir(parents=True)
    (tmp_path / "place").mkdir()
    (tmp_path / "file").touch()
    paths = {"share": tmp_path / share, "place": tmp_path / place}
    said = refused(paths["share"], paths["place"])
    assert said.startswith("virtiofs mount: ") and reason.format(**paths) in said


def test_a_second_mount_at_the_same_place_is_refused(running: Mounted, tmp_path: Path) -> None:
    assert "is mounted" in refused(running.share, running.place)
    assert (running.place / "file").read_text() == "contents"


def test_a_mount_whose_daemon_is_dead_is_refused_with_the_command_to_unmount(running: Mounted) -> None:
    os.kill(running.guardian, signal.SIGKILL)
    running.end(signal.SIGKILL)
    try:
        assert devices.wait_until(lambda: dead(running.place), SECONDS)
        assert f"umount {running.place}" in refused(running.share, running.place)
    finally:
        subprocess.run(["umount", running.place], check=True)


def dead(place: Path) -> bool:
    try:
        os.stat(place)
    except OSError:
        return True
    return False


@as_user
def test_other_users_take_a_line_of_the_administrator(public: Path) -> None:
    with open("/etc/fuse.conf") as file:
        if any(line.strip() == "user_allow_other" for line in file):
            pytest.skip("/etc/fuse.conf allows it here")
    for name in ("share", "place"):
        (public / name).mkdir()
        os.chown(public / name, USER, USER)
    assert "user_allow_other in /etc/fuse.conf" in refused(
        public / "share", public / "place", "--allow-other", user=USER
    )


def test_in_the_background_the_command_returns_when_it_is_mounted(tmp_path: Path) -> None:
    share, place = tmp_path / "share", tmp_path / "place"
    share.mkdir(), place.mkdir()
    (share / "file").write_text("contents")
    done = subprocess.run(
        command("--background", share, place), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert (place / "file").read_text() == "contents"
    finally:
        subprocess.run(["umount", place], check=True)
    assert "there is no directory" in refused("--background", share, tmp_path / "missing")


def test_a_mount_answers_on_its_control_socket(tmp_path: Path) -> None:
    control = str(tmp_path / "control")
    with mounted(tmp_path, "--control", control) as running:
        with Talk(control) as talk:
            _, (fd,) = talk.ask({"do": "trace", "tag": str(running.place)})
            reader = Reader(fd)
            os.close(fd)
            (running.place / "new").write_text("x")
            operations = {record.operation for record in reader.read()[0]}
            assert operations >= {"create", "write"}
            reader.close()
        (status,) = ask(control, {"do": "status"})["result"]
        assert status["tag"] == str(running.place) and status["filesystem"]["inodes"] == 2
        node = {"do": "paths", "tag": status["tag"], "nodes": [1]}
        assert ask(control, node) == {"result": {"1": "/"}}
        assert 'operation="create"} 1' in ask(control, {"do": "metrics"})["result"]
        assert "one directory" in ask(control, {"do": "add", "share": f"x={tmp_path}"})["error"]
        assert "one directory" in ask(control, {"do": "remove", "tag": status["tag"]})["error"]
        assert ask(control, {"do": "log-level", "level": "debug"}) == {"result": None}
    assert not os.path.exists(control)


def test_a_control_socket_in_what_is_mounted_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "place"
    share = tmp_path / "share"
    place.mkdir()
    share.mkdir()
    done = subprocess.run(
        command(share, place, "--control", str(place / "control")),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1 and "choose a place outside of it" in done.stderr

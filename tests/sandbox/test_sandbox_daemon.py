# SPDX-License-Identifier: Apache-2.0
"""The daemon behind its walls: the file system works in every mode, and nothing of it outlives its first process."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from inside import needs_root

import devices
from virtiofs.client.device import Caller, Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.sandbox import capabilities
from virtiofs.sandbox.walls import HANDLES, SHARE

MODES = ("namespace", "chroot", "none")
USER = 1000
END_SECONDS = 10.0


def field(pid: int, name: str, thread: int = 0) -> str:
    path = f"/proc/{pid}/task/{thread}/status" if thread else f"/proc/{pid}/status"
    for line in Path(path).read_text().splitlines():
        if line.startswith(name + ":"):
            return line.split(":", 1)[1].strip()
    raise KeyError(name)


def use(tree: Tree) -> None:
    """A little of everything a guest does."""
    tree.write_file("/a", b"x" * 300_000)
    assert tree.read_file("/a") == b"x" * 300_000
    tree.mkdir("/d")
    tree.mkdir("/e")
    tree.rename("/a", "/d/a")
    tree.rename("/d/a", "/e/a")
    tree.link("/e/a", "/d/b")
    tree.symlink("/etc/passwd", "/e/s")
    assert tree.readlink("/e/s") == "/etc/passwd"
    tree.setxattr("/e/a", "user.name", b"value")
    assert tree.getxattr("/e/a", "user.name") == b"value"
    tree.truncate("/e/a", 5)
    tree.utime("/e/a", (1, 2))
    tree.chmod("/e/a", 0o640)
    assert stat.S_IMODE(tree.stat("/d/b").st_mode) == 0o640
    assert tree.stat("/d/b").st_size == 5
    assert sorted(tree.listdir("/e")) == ["a", "s"]
    for path in ("/d/b", "/e/a", "/e/s"):
        tree.unlink(path)
    for path in ("/d", "/e"):
        tree.rmdir(path)


@needs_root
@pytest.mark.parametrize("handles", ["prefer", "never"])
@pytest.mark.parametrize("mode", MODES)
def test_the_file_system_works_in_every_mode(tmp_path, mode, handles):
    options = ["--sandbox", mode, "--inode-file-handles", handles]
    with devices.start_ours(tmp_path, options) as running:
        for _ in range(2):  # a fresh worker for the second
            with Device.connect(running.socket) as device:
                session = Session(device)
                use(Tree(session))
                session.caller = Caller(1234, 1234, 1)
                os.chmod(tmp_path, 0o777)
                Tree(session).write_file("/theirs", b"")
                assert os.stat(tmp_path / "theirs").st_uid == 1234
                os.unlink(tmp_path / "theirs")
        assert running.stop() == 0, running.log
    warned = [line for line in running.log if "--sandbox none" in line]
    assert len(warned) == (mode == "none")


@needs_root
def test_a_namespace_worker_has_nothing_of_the_host(tmp_path):
    (tmp_path / "sub").mkdir()
    with devices.start_ours(tmp_path) as running, Device.connect(running.socket) as device:
        tree = Tree(Session(device))
        tree.write_file("/sub/f", b"")
        worker = running.worker
        for kind in ("mnt", "pid", "net", "ipc"):
            assert os.readlink(f"/proc/{worker}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        assert field(worker, "NSpid").split()[-1] == "1"
        mounts = Path(f"/proc/{worker}/mountinfo").read_text().splitlines()
        assert [line.split()[4] for line in mounts] == ["/"]
        assert {"nodev", "nosuid", "noexec"} <= set(mounts[0].split()[5].split(","))
        interfaces = Path(f"/proc/{worker}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
        inside = {(s.st_dev, s.st_ino) for s in (os.stat(tmp_path), os.stat(tmp_path / "sub"))}
        for fd in os.listdir(f"/proc/{worker}/fd"):
            found = os.stat(f"/proc/{worker}/fd/{fd}")
            if stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) not in inside:
                entries = os.listdir(f"/proc/{worker}/fd/{fd}")
                assert entries and all(name.isdigit() for name in entries), "not /proc/self/fd"


@needs_root
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("handles", "expected"), [("prefer", SHARE | HANDLES), ("never", SHARE)])
def test_every_thread_of_the_worker_is_restricted(tmp_path, mode, handles, expected):
    options = ["--sandbox", mode, "--queues", "3", "--inode-file-handles", handles]
    with devices.start_ours(tmp_path, options) as running, Device.connect(running.socket) as device:
        Tree(Session(device)).listdir("/")
        worker = running.worker
        threads = [int(name) for name in os.listdir(f"/proc/{worker}/task")]
        assert len(threads) > 1
        for thread in threads:
            assert field(worker, "NoNewPrivs", thread) == "1"
            assert field(worker, "Seccomp", thread) == "2"
            for name in ("CapPrm", "CapEff", "CapBnd"):
                assert int(field(worker, name, thread), 16) == expected & capabilities.permitted()
            for name in ("CapInh", "CapAmb"):
                assert int(field(worker, name, thread), 16) == 0
        assert field(worker, "Groups") == ""
        # Those outside: the supervisor may make the next worker, who waits in between may do nothing.
        assert field(running.family[0], "NoNewPrivs") == "1"
        for between in running.family[1:-1]:
            assert int(field(between, "CapPrm"), 16) == 0
            assert len(os.listdir(f"/proc/{between}/fd")) == 3


def host_mounts() -> list[str]:
    """What is mounted on the host, without what other tests mount over /dev/fuse meanwhile."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if " - fuse." not in line]


@needs_root
@pytest.mark.parametrize("mode", ["namespace", "none"])
@pytest.mark.parametrize("victim", [0, 1, -1])
def test_killing_any_of_its_processes_ends_the_daemon(tmp_path, mode, victim):
    before = host_mounts()
    with devices.start_ours(tmp_path, ["--sandbox", mode]) as running:
        with Device.connect(running.socket) as device:
            Tree(Session(device)).write_file("/f", b"")
            family = running.family
            assert len(family) == (3 if mode == "namespace" else 2)
            handles = [os.pidfd_open(pid) for pid in family]
            os.kill(family[victim], signal.SIGKILL)
            for handle in handles:
                assert select.select([handle], [], [], END_SECONDS)[0], "a process outlived the daemon"
                os.close(handle)
        expected = -signal.SIGKILL if victim == 0 else 1
        assert running.process.wait(END_SECONDS) == expected
        if victim:
            assert any("died: SIGKILL" in line for line in running.log)
    assert host_mounts() == before


@needs_root
def test_a_worker_that_makes_a_forbidden_call_dies_and_the_daemon_says_so(tmp_path):
    """The worker's commands are replaced by what an attacker might do next."""
    program = (
        "import ctypes, sys; from virtiofs.daemon import worker; from virtiofs.cli import main\n"
        "libc = ctypes.CDLL(None)\n"
        "worker.COMMANDS = dict.fromkeys(worker.COMMANDS, lambda *_, **__: libc.socket(1, 1, 0))\n"
        "sys.exit(main.main(sys.argv[1:]))"
    )
    ready, theirs = os.pipe()
    socket = str(tmp_path / "s")
    share = tmp_path / "share"
    share.mkdir()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            program,
            "serve",
            str(tmp_path / "share"),
            "--socket",
            socket,
            "--ready-fd",
            str(theirs),
        ],
        pass_fds=[theirs],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    try:
        assert os.read(ready, 16)
        with contextlib.suppress(Exception), Device.connect(socket) as device:
            Session(device)
        _, said = process.communicate(timeout=END_SECONDS)
    finally:
        os.close(ready)
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "died: SIGSYS" in said and "--seccomp log" in said


@pytest.fixture
def mounted(tmp_path):
    """A directory that is a shared mount, as the host's root is under systemd, and lives for one test."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    subprocess.run(["mount", "--make-shared", place], check=True)
    yield place
    subprocess.run(["umount", "-R", "-l", place], check=True)


@pytest.mark.parametrize("handles", ["prefer", "never"])
@pytest.mark.parametrize("mode", MODES)
def test_what_the_host_mounts_later_reaches_the_guest_and_can_be_unmounted(mounted, mode, handles):
    share = mounted / "share"
    (share / "sub").mkdir(parents=True)
    with devices.start_ours(share, ["--sandbox", mode, "--inode-file-handles", handles]) as running:
        with Device.connect(running.socket) as device:
            tree = Tree(Session(device))
            assert tree.listdir("/sub") == []
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", share / "sub"], check=True)
            (share / "sub/later").write_text("here")
            assert tree.read_file("/sub/later") == b"here"
            tree.write_file("/sub/back", b"from the guest")
            assert (share / "sub/back").read_text() == "from the guest"
        assert running.alive
        # The worker that has files of it open ends with its connection; nobody says when it is gone.
        unmount = ["umount", share / "sub"]
        assert devices.wait_until(lambda: subprocess.run(unmount, check=False).returncode == 0, 20.0)
        with Device.connect(running.socket) as device:
            assert Tree(Session(device)).listdir("/sub") == []


def interpreter_for_user() -> str:
    """A Python that an ordinary user may run, and that has our modules; empty if there is none."""
    for path in (
        sys.executable,
        shutil.which("python3.11", path="/usr/bin"),
        shutil.which("python3", path="/usr/bin"),
    ):
        if path is None:
            continue
        command = [path, "-c", "import virtiofs.fs.passthrough.share"]
        if (
            subprocess.run(
                as_user(command), env=user_environment(), capture_output=True, check=False
            ).returncode
            == 0
        ):
            return path
    return ""


def as_user(command: list[str]) -> list[str]:
    if os.geteuid() != 0:
        return command
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *command]


def user_environment() -> dict[str, str]:
    import virtiofs

    source = str(Path(virtiofs.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"}


@pytest.fixture
def user_share():
    """A directory of an ordinary user's, in a place that one can reach."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="virtiofs-user-") as place:
        os.chmod(place, 0o755)
        share = Path(place) / "share"
        share.mkdir()
        run = Path(place) / "run"
        run.mkdir()
        if os.geteuid() == 0:
            os.chown(share, USER, USER)
            os.chown(run, USER, USER)
        yield share


@contextlib.contextmanager
def served_by_user(share: Path, *options: str):
    python = interpreter_for_user()
    if not python:
        pytest.skip("no Python that an ordinary user may run")
    socket = str(share.parent / "run/s")
    command = [python, "-m", "virtiofs", "serve", str(share)]
    ready, theirs = os.pipe()
    process = subprocess.Popen(
        as_user([*command, "--socket", socket, "--ready-fd", str(theirs), *options]),
        pass_fds=[theirs],
        env=user_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    running = devices.RunningDevice("ours", share, socket, process)
    try:
        if not os.read(ready, 16):
            running.stop()
            if any("user namespace" in line for line in running.log):
                pytest.skip("the host allows no user namespaces to users")
            raise RuntimeError("\n".join(running.log))
        yield running
    finally:
        os.close(ready)
        if process.poll() is None:
            running.stop()


@pytest.mark.parametrize("mode", ["namespace", "none"])
def test_an_ordinary_user_can_share_behind_the_same_walls(user_share, mode):
    with served_by_user(user_share, "--sandbox", mode) as running:
        with Device.connect(running.socket) as device:
            tree = Tree(Session(device))
            use(tree)
            tree.write_file("/file", b"mine")
            owner = os.stat(user_share / "file").st_uid
            assert owner == (USER if os.geteuid() == 0 else os.geteuid())
            assert tree.stat("/file").st_uid == owner
            worker = running.worker
            assert field(worker, "NoNewPrivs") == "1" and field(worker, "Seccomp") == "2"
            if mode == "namespace":
                assert field(worker, "NSpid").split()[-1] == "1"
                held = int(field(worker, "CapPrm"), 16)
                assert held == SHARE & ~capabilities.mask("setuid", "setgid")
                if os.geteuid() == 0:
                    assert os.readlink(f"/proc/{worker}/ns/user") != os.readlink("/proc/self/ns/user")
                    assert len(Path(f"/proc/{worker}/mountinfo").read_text().splitlines()) == 1
            else:
                assert int(field(worker, "CapPrm"), 16) == 0
        assert running.alive


def test_an_ordinary_user_is_told_that_chroot_is_not_for_him(user_share):
    python = interpreter_for_user()
    if not python:
        pytest.skip("no Python that an ordinary user may run")
    command = [
        python,
        "-m",
        "virtiofs",
        "serve",
        str(user_share),
        "--socket",
        str(user_share.parent / "run/s"),
    ]
    done = subprocess.run(
        as_user([*command, "--sandbox", "chroot"]),
        env=user_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "--sandbox namespace or none" in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""`virtiofs serve` with arguments that cannot work: one line that says what to do, a status that is not zero, and
nothing left behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import devices


def serve(
    *words: str | Path, before: Sequence[str] = (), fds: Sequence[int] = (), cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the daemon with arguments that end it at once.  `before` is a command that starts it."""
    command = [*before, sys.executable, "-m", "virtiofs", "serve", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=20, pass_fds=fds, cwd=cwd
    )
    assert done.stdout == ""
    return done


def one_line(*words: str | Path, before: Sequence[str] = (), fds: Sequence[int] = ()) -> str:
    """The one line that a refused command says."""
    done = serve(*words, before=before, fds=fds)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("virtiofs serve: ")
    return line.removeprefix("virtiofs serve: ")


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a socket may be made."""
    return tmp_path / "v.sock"


def test_a_missing_directory_is_named(tmp_path: Path, path: Path) -> None:
    missing = tmp_path / "missing"
    assert one_line(missing, "--socket", path) == f"there is no directory {missing}; make it, or name another"
    assert not path.exists()


def test_a_file_is_no_directory_to_share(tmp_path: Path, path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = one_line(tmp_path / "file", "--socket", path)
    assert line == f"{tmp_path / 'file'} is not a directory; share the directory that holds it"
    assert not path.exists()


def test_a_directory_that_may_not_be_read_is_named(share: Path, path: Path) -> None:
    command: list[str] = []
    if os.geteuid() == 0:
        # Root may read everything, unless it is without these capabilities.
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv (Debian package util-linux)")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        os.chown(share, 65534, 65534)
    share.chmod(0o300)
    line = one_line(share, "--socket", path, before=command)
    assert line == f"no permission to read {share}; run as a user who may, or change its mode"
    assert not path.exists()


def test_a_socket_that_a_live_daemon_uses_is_refused_and_the_daemon_named(share: Path) -> None:
    with devices.start_ours(share) as running:
        line = one_line(share, "--socket", running.socket)
        assert line == (
            f"cannot listen on {running.socket}: a live process (pid {running.process.pid}) is using it; "
            "stop it or choose another --socket"
        )
        # Being asked did it no harm.
        assert running.alive
        with socket.socket(socket.AF_UNIX) as vmm:
            vmm.connect(running.socket)
        assert running.log == []


def test_a_socket_that_a_dead_daemon_left_is_replaced(share: Path, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    ready, ready_end = os.pipe()
    command = [
        sys.executable,
        "-m",
        "virtiofs",
        "serve",
        share,
        "--socket",
        path,
        "--ready-fd",
        str(ready_end),
    ]
    with subprocess.Popen(command, pass_fds=[ready_end], stderr=subprocess.PIPE) as daemon:
        os.close(ready_end)
        assert os.read(ready, 64) == b"READY\n"
        with socket.socket(socket.AF_UNIX) as vmm:
            vmm.connect(os.fspath(path))
        daemon.terminate()
        assert daemon.wait(10) == 0
    os.close(ready)
    assert not path.exists()


@pytest.mark.parametrize("what", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_not_replaced(share: Path, path: Path, what: str) -> None:
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(share)
    line = one_line(share, "--socket", path)
    assert (
        line
        == f"cannot listen on {path}: it exists and is not a socket; remove it or choose another --socket"
    )
    assert os.path.lexists(path)
    if what == "file":
        assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("missing/v.sock", "create it or choose another --socket"),
        ("file/v.sock", "choose another --socket"),
        ("x" * 120, "choose a shorter --socket"),
    ],
)
def test_a_socket_that_cannot_be_made_is_named(share: Path, tmp_path: Path, place: str, advice: str) -> None:
    (tmp_path / "file").write_text("")
    line = one_line(share, "--socket", tmp_path / place)
    assert line.startswith(f"cannot listen on {tmp_path / place}: ")
    assert line.endswith(advice)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tag", "x" * 37], "a tag has 1 to 36 bytes"),
        (["--tag", ""], "a tag has 1 to 36 bytes"),
        (["--tag", "a\nb"], "a tag has 1 to 36 bytes"),
        (["--queues", "0"], "--queues takes 1 to 64, not 0"),
        (["--queues", "65"], "--queues takes 1 to 64, not 65"),
        (["--max-open", "3"], "--max-open takes 16 or more, not 3"),
        (["--rlimit-nofile", "10"], "--rlimit-nofile takes 1400 or more, not 10"),
        (["--ready-fd", "99"], "--ready-fd 99 is not an open descriptor"),
        (["--ready-fd", str(1 << 40)], f"--ready-fd {1 << 40} is not an open descriptor"),
    ],
)
def test_a_value_out_of_range_is_named(share: Path, path: Path, words: list[str], said: str) -> None:
    assert said in one_line(share, "--socket", path, *words)
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one of the arguments --socket --fd is required"),
        (["--socket", "s", "--fd", "3"], "not allowed with argument"),
        (["--socket", "s", "--queues", "many"], "invalid int value: 'many'"),
        (["--socket", "s", "--log-level", "loud"], "'loud'"),
        (["--socket", "s", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_explained(share: Path, words: list[str], said: str) -> None:
    done = serve(share, *words, cwd=share)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert os.listdir(share) == []


def test_a_descriptor_that_is_no_socket_of_a_vmm_is_refused(share: Path) -> None:
    line = one_line(share, "--fd", "77")
    assert line == "descriptor 77 is not open; pass one that the launcher keeps open"
    with open(os.devnull) as file:
        line = one_line(share, "--fd", str(file.fileno()), fds=[file.fileno()])
        assert f"descriptor {file.fileno()} is not a socket" in line
    with socket.socket(socket.AF_INET) as other:
        assert "a socket of another kind" in one_line(
            share, "--fd", str(other.fileno()), fds=[other.fileno()]
        )
    with socket.socket(socket.AF_UNIX) as idle:
        line = one_line(share, "--fd", str(idle.fileno()), fds=[idle.fileno()])
        assert "neither listening nor connected" in line


def test_a_file_system_without_file_handles_cannot_have_them_mandatory(path: Path) -> None:
    line = one_line("/proc", "--socket", path, "--inode-file-handles", "mandatory")
    assert line.startswith("cannot share /proc: ")
    assert "file handles" in line
    assert "[Errno" not in line
    assert not path.exists()

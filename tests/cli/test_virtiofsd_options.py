# SPDX-License-Identifier: Apache-2.0
"""The drop-in command `virtiofsd`: every option of the older daemons, and the launchers' command lines."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import re
import select
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import devices
from virtiofs.cli import virtiofsd
from virtiofs.cli.virtiofsd import parse
from virtiofs.cli.virtiofsd_options import OPTIONS, OURS, REFUSED, Option, Refused, UsageError
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree

COMMAND = [sys.executable, "-m", "virtiofs.cli.virtiofsd"]
ROOT = Path(__file__).resolve().parent.parent.parent
WAITING = "Waiting for vhost-user socket connection"
READY_SECONDS = 20.0

SAMPLES = {
    "DIR": "/srv",
    "PATH": "/run/x.sock",
    "N": "0",
    "GROUP": "root",
    "TAG": "data",
    "SECONDS": "2.5",
    "RULES": ":map::user.virtiofs.:",
    "LIST": "+sys_admin:-chown",
    ":INSIDE:OUTSIDE:COUNT:": ":0:1000:1:",
    "TYPE:A:B:COUNT": "map:0:1000:1",
    "MODE": "find-paths",
    "[MODE]": "always",
}
ENDING = ("--print-capabilities", "-V", "-h")


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=20, check=False, **more)  # type: ignore[call-overload]


class TestEveryRow:
    """Each option in each of its forms, with each of its values."""

    @staticmethod
    def spelled(option: Option, value: str | None) -> Iterator[list[str]]:
        for name in option.names:
            if value is None:
                yield [name]
            else:
                yield [f"{name}={value}"]
                if not option.value.startswith("["):
                    yield [name, value]
        for word in option.words:
            if word.endswith("=") == (value is not None):
                text = word + (value or "").replace(",", ",,")
                yield ["-o", text]
                yield [f"-o{text}"]

    @staticmethod
    def base(option: Option) -> list[str]:
        """What else is needed for a sensible command line."""
        base = [] if "--shared-dir" in option.names else ["--shared-dir", "/srv"]
        return base if {"--fd", "--socket-path"} & set(option.names) else [*base, "--socket-path=/run/s"]

    @pytest.mark.parametrize("option", OPTIONS, ids=lambda option: (option.names + option.words)[0])
    def test_it_is_honoured_or_refused_by_name_and_never_ignored(self, option: Option) -> None:
        if set(ENDING) & set(option.names):
            return  # tried below: they end the program
        if option.daemons == OURS:
            return  # test_locked.py
        values: list[str | None] = list(option.values or ())
        if option.value and not values:
            values = [SAMPLES[option.value]]
        if not option.value or option.value.startswith("["):
            values.append(None)
        for value in values:
            reason = (option.values or {}).get(value or "", option.text if option.state == REFUSED else "")
            for words in self.spelled(option, value):
                if not reason:
                    settings = parse([*self.base(option), *words])
                    assert settings.shared_dir == "/srv"
                    continue
                with pytest.raises(Refused) as refused:
                    parse([*self.base(option), *words])
                assert (option.names + option.words)[0].strip("-=").replace("-", "_") in str(
                    refused.value
                ).replace("-", "_") or any(name.strip("=") in str(refused.value) for name in option.words)
                assert reason in str(refused.value)

    @pytest.mark.parametrize(
        "option", [o for o in OPTIONS if o.values], ids=lambda option: (option.names + option.words)[0]
    )
    def test_a_value_that_is_not_known_is_an_error(self, option: Option) -> None:
        for words in self.spelled(option, "surely-not"):
            with pytest.raises((Refused, UsageError)):
                parse([*self.base(option), *words])

    @pytest.mark.parametrize(
        "option", [o for o in OPTIONS if not o.value and o.names], ids=lambda o: o.names[0]
    )
    def test_a_flag_takes_no_value(self, option: Option) -> None:
        for name in option.names:
            if name.startswith("--") and name not in ("--print-capabilities", "--version", "--help"):
                with pytest.raises(UsageError):
                    parse([*self.base(option), f"{name}=yes"])

    def test_every_honoured_or_harmless_option_says_so(self) -> None:
        spellings = [spelling for option in OPTIONS for spelling in option.names + option.words]
        assert len(spellings) == len(set(spellings))
        assert all(option.text for option in OPTIONS)
        for option in OPTIONS:
            assert not (option.state == REFUSED and option.act), option.names


def test_what_the_options_set() -> None:
    settings = parse(
        [
            *(
                "--shared-dir=/a",
                "--fd",
                "7",
                "--tag",
                "t",
                "--cache",
                "never",
                "--allow-mmap",
                "--writeback",
            ),
            *(
                "--allow-direct-io",
                "--no-readdirplus",
                "--preserve-noatime",
                "--inode-file-handles=mandatory",
            ),
            *("--rlimit-nofile", "4096", "--readonly", "--syslog", "-d", "--thread-pool-size=16"),
        ]
    )
    assert (settings.shared_dir, settings.fd, settings.tag) == ("/a", 7, "t")
    assert settings.passthrough == {
        "cache": "never",
        "file_handles": "mandatory",
        "mmap": True,
        "writeback": True,
        "direct_io": True,
        "readdirplus": False,
        "noatime": True,
        "shared_locks": False,
        "pool_threads": 16,
    }
    assert (settings.rlimit_nofile, settings.readonly, settings.syslog, settings.log_level) == (
        4096,
        True,
        True,
        "debug",
    )
    settings = parse(
        ["-o", "source=/a,,b,cache=none,timeout=0.5,no_flock", "--socket-path=/s", "--rlimit-nofile=0"]
    )
    assert settings.shared_dir == "/a,b"
    assert (settings.passthrough["cache"], settings.passthrough["valid"]) == ("never", 0.5)
    assert settings.rlimit_nofile is None
    assert settings.passthrough["pool_threads"] == 4
    assert parse(["--shared-dir=/a", "--fd=7", "--thread-pool-size", "100"]).passthrough["pool_threads"] == 64


def test_the_last_of_a_repeated_option_wins_but_not_for_what_is_shared() -> None:
    words = ["--shared-dir", "/a", "--fd", "3", "--cache", "never", "--cache", "always"]
    assert parse(words).passthrough["cache"] == "always"
    assert parse(["--shared-dir", "/a", "--fd", "3", "--shared-dir=/a"]).shared_dir == "/a"
    with pytest.raises(UsageError):
        parse(["--shared-dir", "/a", "--fd", "3", "-o", "source=/"])


def test_the_environment_says_how_much_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--shared-dir", "/a", "--fd", "3", "--log-level", "debug"]
    monkeypatch.setenv("RUST_LOG", "ERROR")
    assert parse(words).log_level == "error"
    monkeypatch.setenv("RUST_LOG", "virtiofsd=trace,other")
    assert parse(words).log_level == "debug"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 2),
        (["--shared-dir", "/srv"], 2),
        (["--shared-dir", "/srv", "--fd", "3", "--socket-path", "/x"], 2),
        (["--shared-dir", "/srv", "--fd", "3", "--socket-group", "root"], 2),
        (["--shared-dir"], 2),
        (["--frob"], 2),
        (["-o", "frob"], 2),
        (["-x"], 2),
        (["/srv"], 2),
        (["--shared-dir", "/srv", "--fd", "three"], 2),
        (["--shared-dir", "/srv", "--fd", "99"], 1),
        (["--shared-dir", "/surely/not", "--socket-path", "/tmp/surely-not.sock"], 1),
        (["--shared-dir", "/srv", "--socket-path", "/surely/not/x.sock"], 1),
        (["--shared-dir", "/srv", "--fd", "3", "--thread-pool-size=-1"], 2),
        (["--shared-dir", "/srv", "--fd", "3", "--uid-map", ":0:1:"], 1),
        (["--shared-dir", "/srv", "--fd", "3", "--uid-map", ":0:1:1:", "--sandbox=none"], 1),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_status(words: list[str], status: int) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (status, "")
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("virtiofsd: ")


def test_capabilities_are_printed_whatever_else_is_said() -> None:
    done = run("--print-capabilities", "--frob", "-o", "nonsense")
    assert done.returncode == 0
    printed = json.loads(done.stdout)
    assert printed["type"] == "fs"
    assert printed["features"] == ["separate-options"]  # what is not true for us is not said: migrate-precopy


def test_version_and_help() -> None:
    for flag in ("--version", "-V"):
        assert run(flag).stdout.startswith("virtiofsd ") and run(flag).returncode == 0
    text = run("--help").stdout
    assert all(name in text for option in OPTIONS for name in option.names)


def test_the_document_is_the_table() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools/drop-in-table"), "--check"], check=False)
    assert done.returncode == 0, "run tools/drop-in-table"


def test_what_qemu_and_libvirt_look_for() -> None:
    described = json.loads((ROOT / "contrib/qemu/50-virtiofs.json").read_text())
    assert described["type"] == "fs" and os.path.basename(described["binary"]) == "virtiofsd"


# --- running ---


class Started:
    """A drop-in that runs, and what it says on standard error."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process
        self.said = ""

    def hears(self, text: str) -> bool:
        assert self.process.stderr is not None
        deadline = time.monotonic() + READY_SECONDS
        while text not in self.said:
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.process.stderr], [], [], left)[0]:
                return False
            data = os.read(self.process.stderr.fileno(), 4096).decode()
            if not data:
                return False
            self.said += data
        return True

    def ends(self) -> int:
        status = self.process.wait(devices.END_SECONDS)
        assert self.process.stderr is not None
        self.said += self.process.stderr.read()
        return status


@contextlib.contextmanager
def started(words: Sequence[str], **more: object) -> Iterator[Started]:
    process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload]
    try:
        yield Started(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user of the host can reach: with a map of ids, root is another one."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-drop-in-", dir="/tmp") as place:
        os.chmod(place, 0o755)
        (Path(place) / "f").write_text("content")
        yield Path(place)


def visit(path: str) -> None:
    with Device.connect(path) as device:
        assert Tree(Session(device)).read_file("/f") == b"content"


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen(1)
        yield sock


def refused_names(words: Sequence[str]) -> list[str]:
    """The options of a command line that the table refuses today."""
    found = []
    for spelling, option, value in virtiofsd.spellings(list(words)):
        reason = (option.values or {}).get(value or "") if value is not None and option.values else None
        if reason or (reason is None and option.state == REFUSED):
            found.append(spelling.rstrip("="))
    return found


# The launchers' command lines; FD and DIR stand for what they pass.
PASSED = {
    "libvirt": "--fd=FD --shared-dir DIR",
    "libvirt, cache": "--fd=FD --shared-dir DIR --cache always --thread-pool-size=1 --rlimit-nofile=4096"
    " --log-level debug --readonly",
    "libvirt, everything": "--fd=FD --shared-dir DIR --cache never --sandbox namespace --xattr --uid-map=:0:1000:1:"
    " --uid-map=:1:100000:65536: --gid-map=:0:1000:1: --gid-map=:1:100000:65536:",
    "libvirt, old": "--fd=FD -o source=DIR,cache=none",
    "libvirt, old, locks": "--fd=FD -o source=DIR,cache=always,no_flock,no_posix_lock -d",
    "Kata, Go": "--syslog --cache=auto --shared-dir=DIR --fd=FD --thread-pool-size=1 --announce-submounts",
    "Kata, Go, without submounts": "--syslog --cache=auto --shared-dir=DIR --fd=FD --thread-pool-size=1",
    "Incus": "--fd=FD --cache=metadata --shared-dir=DIR",
}


@pytest.mark.parametrize("launcher", PASSED)
def test_started_with_a_listening_descriptor(launcher: str, shared: Path, tmp_path: Path) -> None:
    """It serves the first connection and ends with it, unless the table refuses an option: then it names that."""
    if "--uid-map" in PASSED[launcher] and os.geteuid() != 0:
        pytest.skip("these maps of ids need root, or entries in /etc/subuid")
    with listening(tmp_path / "s") as sock:
        words = [
            word.replace("FD", str(sock.fileno())).replace("DIR", str(shared))
            for word in PASSED[launcher].split()
        ]
        with started(
            words, pass_fds=[sock.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as daemon:
            refused = refused_names(words)
            if refused:
                assert daemon.ends() == 1
                assert f"{refused[0]}" in daemon.said and len(daemon.said.splitlines()) == 1
                return
            visit(str(tmp_path / "s"))
            assert daemon.ends() == 0
            assert (tmp_path / "s").exists(), "the socket is its maker's"


OWN_SOCKET = {
    "podman": ("--sandbox none --socket-path SOCKET --shared-dir . --seccomp=none", {"RUST_LOG": "ERROR"}),
    "Lima": ("--socket-path SOCKET --shared-dir DIR", {}),
    "Kata, Rust, until 3.30": (
        "--socket-path SOCKET --shared-dir DIR --cache auto --sandbox none --seccomp none --thread-pool-size=1"
        " -o announce_submounts",
        {},
    ),
    "Kata, Rust": ("--socket-path SOCKET --shared-dir DIR --cache never --thread-pool-size=1", {}),
    "Cloud Hypervisor": ("--shared-dir DIR --socket-path SOCKET --cache never --tag myfs", {}),
    "QEMU's documentation": ("--socket-path=SOCKET -o source=DIR -o cache=always", {}),
}


def listens(path: Path) -> bool:
    """Whether somebody listens at the path: the flag 00010000 of /proc/net/unix, as a connection would be the one."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(fields[3] == "00010000" and fields[-1] == str(path) for fields in lines[1:])


@pytest.mark.parametrize("launcher", OWN_SOCKET)
def test_started_to_make_its_socket(launcher: str, shared: Path, tmp_path: Path) -> None:
    line, environment = OWN_SOCKET[launcher]
    path = tmp_path / "s"
    words = [word.replace("SOCKET", str(path)).replace("DIR", str(shared)) for word in line.split()]
    source = str(ROOT / "src")  # PYTHONPATH may be relative
    with started(words, cwd=shared, env={**os.environ, "PYTHONPATH": source, **environment}) as daemon:
        refused = refused_names(words)
        if refused:
            assert daemon.ends() == 1
            assert refused[0] in daemon.said
            return
        assert devices.wait_until(lambda: listens(path), READY_SECONDS)
        if not environment:
            assert daemon.hears(WAITING)
        visit(str(path))
        assert daemon.ends() == 0
        if environment:
            assert daemon.said == "", "errors only"
        assert not path.exists()


def test_that_there_is_no_sandbox_is_said(shared: Path, tmp_path: Path) -> None:
    with started(
        ["--sandbox=none", "--socket-path", str(tmp_path / "s"), "--shared-dir", str(shared)]
    ) as daemon:
        assert daemon.hears("warning: --sandbox none: ")


def test_a_connected_descriptor_is_taken_as_well(shared: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with (
        theirs,
        started(
            ["--fd", str(theirs.fileno()), "--shared-dir", str(shared)], pass_fds=[theirs.fileno()]
        ) as daemon,
    ):
        theirs.close()
        assert daemon.hears("connected")
        ours.close()
        assert daemon.ends() == 0


def test_a_connection_that_says_nothing_was_the_connection(shared: Path, tmp_path: Path) -> None:
    with started(["--socket-path", str(tmp_path / "s"), "--shared-dir", str(shared)]) as daemon:
        assert daemon.hears(WAITING)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(tmp_path / "s"))
        assert daemon.ends() == 0


def test_two_daemons_do_not_take_one_path(shared: Path, tmp_path: Path) -> None:
    words = ["--socket-path", str(tmp_path / "s"), "--shared-dir", str(shared)]
    with started(words) as daemon:
        assert daemon.hears(WAITING)
        assert (tmp_path / "s.pid").read_text() == f"{daemon.process.pid}\n"
        second = run(*words)
        assert second.returncode == 1 and f"pid {daemon.process.pid}" in second.stderr
        visit(str(tmp_path / "s"))
        assert daemon.ends() == 0
    with open(tmp_path / "s.pid") as left:
        fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_a_killed_daemon_leaves_does_not_stop_the_next(shared: Path, tmp_path: Path) -> None:
    words = ["--socket-path", str(tmp_path / "s"), "--shared-dir", str(shared)]
    with started(words) as daemon:
        assert daemon.hears(WAITING)
    assert (tmp_path / "s").exists()
    with started(words) as daemon:
        assert daemon.hears(WAITING)
        visit(str(tmp_path / "s"))
        assert daemon.ends() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="a group of one's own choice needs root")
def test_a_group_may_connect(shared: Path, tmp_path: Path) -> None:
    group = next(entry for entry in grp.getgrall() if entry.gr_gid)
    words = ["--socket-path", str(tmp_path / "s"), "--shared-dir", str(shared)]
    with started([*words, "--socket-group", group.gr_name]) as daemon:
        assert daemon.hears(WAITING)
        found = (tmp_path / "s").stat()
        assert found.st_gid == group.gr_gid and stat.S_IMODE(found.st_mode) & 0o077 == 0o070
    assert "there is no group" in run(*words, "--socket-group", "surely-not").stderr


def test_in_the_background_it_is_ready_when_the_command_ends(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    done = run(
        "--daemonize", "--socket-path", str(path), "--shared-dir", str(shared), stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0
    pid = int((tmp_path / "s.pid").read_text())
    assert os.getsid(pid) == pid
    visit(str(path))
    assert devices.wait_until(lambda: not path.exists())


def test_without_a_system_log_it_says_so_and_uses_standard_error(shared: Path, tmp_path: Path) -> None:
    if os.path.exists("/dev/log"):
        pytest.skip("somebody listens on /dev/log")
    with started(["--syslog", "--socket-path", str(tmp_path / "s"), "--shared-dir", str(shared)]) as daemon:
        assert daemon.hears(WAITING)
        assert "nobody listens on /dev/log" in daemon.said


def test_a_line_for_the_system_log(tmp_path: Path) -> None:
    from virtiofs.daemon.log import Log, SystemLog

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(tmp_path / "log"))
        log = Log("info", SystemLog("virtiofsd", str(tmp_path / "log"))).about("share a")
        log.warning("two\nlines")
        line = reader.recv(1000).decode()
    assert re.fullmatch(
        rf"<28>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d virtiofsd\[{os.getpid()}\]: warning: share a: two lines",
        line,
    )


def test_the_process_has_the_name_that_launchers_look_for(shared: Path, tmp_path: Path) -> None:
    with started(["--socket-path", str(tmp_path / "s"), "--shared-dir", str(shared)]) as daemon:
        assert daemon.hears(WAITING)
        assert Path(f"/proc/{daemon.process.pid}/comm").read_text() == "virtiofsd\n"


def test_readonly_and_cache_reach_the_guest(shared: Path, tmp_path: Path) -> None:
    words = ["--socket-path", str(tmp_path / "s"), "--shared-dir", str(shared), "--readonly", "--tag", "data"]
    with started([*words, "--cache=metadata", "-o", "timeout=7"]) as daemon:
        assert daemon.hears(WAITING)
        with Device.connect(str(tmp_path / "s")) as device:
            assert device.tag == "data"
            session = Session(device)
            assert session.lookup(1, "f").entry_valid == 7 and session.has("CACHE_SYMLINKS")
            with pytest.raises(OSError):
                session.create(1, "new")
        assert daemon.ends() == 0

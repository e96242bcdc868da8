# SPDX-License-Identifier: Apache-2.0
"""The control socket: what is asked of a running daemon, by friends and by nuisances."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_many_shares import Daemon, serving

from virtiofs.client.session import Session
from virtiofs.client.tree import Tree

TIMEOUT = 10.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    place = tmp_path_factory.mktemp("control")
    for name in ("a", "b"):
        (place / name).mkdir()
        (place / name / "f").write_text(name)
    with serving(place / "run", [f"a={place}/a"]) as daemon:
        yield daemon
        assert daemon.process.poll() is None


def ctl(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virtiofs", "ctl", str(daemon.place / "control"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


class Talk:
    """A connection to the control socket."""

    def __init__(self, daemon: Daemon):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(daemon.place / "control"))
        self.socket.settimeout(TIMEOUT)
        self.lines = self.socket.makefile("rb")

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Any:
        """The next answer, or None when the daemon closed the connection."""
        try:
            line = self.lines.readline()
        except ConnectionError:
            return None
        return json.loads(line) if line else None


def test_only_this_user_can_reach_the_socket(daemon: Daemon) -> None:
    assert stat.S_IMODE((daemon.place / "control").stat().st_mode) & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_another_user_is_turned_away_even_if_the_file_lets_him(daemon: Daemon) -> None:
    path = daemon.place / "control"
    parents = [path, *path.parents][:-2]
    modes = [(p, stat.S_IMODE(p.stat().st_mode)) for p in parents]
    try:
        for p in parents:
            p.chmod(0o777)
        script = (
            "import os, socket; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
            f' s.connect({str(path)!r}); s.send(b\'{{"do": "list"}}\\n\'); print(s.recv(100))'
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False
        )
    finally:
        for p, mode in modes:
            p.chmod(mode)
    assert (
        done.stdout.strip() == "b''" or "ConnectionResetError" in done.stderr or "BrokenPipe" in done.stderr
    )


def test_status_counts_what_the_guest_does(daemon: Daemon) -> None:
    with daemon.connect("a") as device:
        tree = Tree(Session(device))
        tree.read_file("/f")
        status = daemon.share("a")
        assert status["connected"] == os.getpid()
        assert status["queues"]["1"]["requests"] > 3 and status["queues"]["1"]["broken"] == ""
        assert set(status["filesystem"]) >= {"inodes", "handles", "descriptors", "evictions"}
        printed = ctl(daemon, "status").stdout
        assert str(os.getpid()) in printed and "queue 1" in printed
        assert json.loads(ctl(daemon, "status", "--json").stdout)[0]["tag"] == "a"


def numbers(text: str) -> dict[str, float]:
    """The samples of a Prometheus text; each line must be a comment or a sample."""
    samples = {}
    for line in text.splitlines():
        if line.startswith("# "):
            continue
        name, value = re.fullmatch(r'([a-z_]+\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\}) (\S+)', line).groups()
        samples[name] = float(value)
    return samples


def test_metrics_count_requests_and_errors_and_outlive_the_connection(daemon: Daemon) -> None:
    before = numbers(daemon.ask("metrics"))
    reads, errors = (
        'virtiofs_requests_total{share="a",operation="read"}',
        'virtiofs_request_errors_total{share="a",operation="lookup"}',
    )
    with daemon.connect("a") as device:
        session = Session(device)
        node = session.lookup(1, "f").nodeid
        fh = session.open(node).fh
        for _ in range(170):
            session.read(node, fh, 0, 1)
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                session.lookup(1, "none")
        during = numbers(daemon.ask("metrics"))
        assert during['virtiofs_connected{share="a"}'] == 1
        assert during['virtiofs_handles{share="a"}'] == 1
    after = numbers(daemon.ask("metrics"))
    for samples in (during, after):
        assert samples[reads] - before.get(reads, 0) == 170
        assert samples[errors] - before.get(errors, 0) == 3
    timed = 'virtiofs_request_duration_seconds_count{share="a",operation="read"}'
    assert after[timed] - before.get(timed, 0) == 10
    assert after[timed.replace("_count", "_bucket").replace("}", ',le="+Inf"}')] == after[timed]


def test_shares_come_and_go_while_the_daemon_runs(daemon: Daemon) -> None:
    directory = daemon.place.parent / "b"
    added = ctl(daemon, "add", f"b={os.path.relpath(directory)}:ro")
    assert added.returncode == 0 and added.stdout.strip() == str(daemon.place / "b.sock")
    with daemon.connect("b") as device:
        assert Tree(Session(device)).listdir("/") == ["f"]
        assert [share["tag"] for share in daemon.ask("list")] == ["a", "b"]
        refused = ctl(daemon, "remove", "b")
        assert refused.returncode == 1 and "is connected to b" in refused.stderr
        assert ctl(daemon, "remove", "b", "--force").returncode == 0
    assert not (daemon.place / "b.sock").exists()
    assert "there is no share 'b'" in ctl(daemon, "remove", "b").stderr
    assert "there is a share a already" in daemon.refusal("add", share=f"a={directory}")
    assert [share["tag"] for share in daemon.ask("list")] == ["a"]


def test_a_share_with_a_quota_says_how_much_of_it_is_used(daemon: Daemon) -> None:
    assert daemon.share("a")["quota"] is None
    directory = daemon.place.parent / "b"
    assert ctl(daemon, "add", f"q={directory}:quota=4M").returncode == 0
    with daemon.connect("q") as device:
        Tree(Session(device)).write_file("new", b"x" * (1 << 20))
        used = daemon.share("q")["quota"]["used"]
        assert 1 << 20 <= used < 2 << 20
        assert "q: the guest added 1M of 4M" in ctl(daemon, "status").stdout
        text = ctl(daemon, "metrics").stdout
        assert f'virtiofs_quota_used_bytes{{share="q"}} {used}\n' in text
        assert 'virtiofs_quota_bytes{share="q"} 4194304\n' in text
        assert 'virtiofs_quota_bytes{share="a"}' not in text
    daemon.ask("remove", tag="q", force=True)
    (directory / "new").unlink()


def test_the_log_level_reaches_the_daemon(daemon: Daemon) -> None:
    assert ctl(daemon, "log-level", "debug").returncode == 0
    with daemon.connect("a"):
        pass
    assert "debug: share a: worker: start_queue" in (daemon.place / "log").read_text()
    assert ctl(daemon, "log-level", "info").returncode == 0
    assert "a log level is one of" in daemon.refusal("log-level", level="loud")


def test_many_clients_are_answered_each_its_own(daemon: Daemon) -> None:
    talks = [Talk(daemon) for _ in range(12)]
    try:
        for index, talk in enumerate(talks):
            talk.send(b'{"do": "%d"}\n{"do": "list"}\n' % index)
        for index, talk in reversed(list(enumerate(talks))):
            assert f"'{index}'" in talk.answer()["error"]
            assert talk.answer()["result"][0]["tag"] == "a"
    finally:
        for talk in talks:
            talk.__exit__()


def test_a_client_that_does_not_read_holds_nobody_up(daemon: Daemon) -> None:
    with Talk(daemon) as deaf, daemon.connect("a") as device:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.socket.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):  # until the daemon reads no more of it
            while sent < 64 << 20:
                sent += deaf.socket.send(b'{"do": "metrics"}\n' * 100)
                daemon.ask("list")
        assert Tree(Session(device)).listdir("/") == ["f"]
        assert daemon.ask("list")[0]["tag"] == "a"


def test_a_line_without_end_is_not_collected_for_ever(daemon: Daemon) -> None:
    with Talk(daemon) as talk:
        with pytest.raises(ConnectionError):
            for _ in range(64):
                talk.send(b"x" * 65536)
        assert talk.answer() is None


def test_what_was_asked_before_hanging_up_is_still_answered(daemon: Daemon) -> None:
    with Talk(daemon) as talk:
        talk.send(b'{"do": "list"}\n' * 50)
        talk.socket.shutdown(socket.SHUT_WR)
        assert all("result" in talk.answer() for _ in range(50))
        assert talk.answer() is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["do", "share", "tag", "force", "level"]) | st.text(max_size=4)
COMMANDS = st.sampled_from(["status", "list", "metrics", "add", "remove", "log-level"])
LINES = (
    st.binary(max_size=60).map(lambda data: data.replace(b"\n", b""))
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.builds(
        lambda do, more: json.dumps({**more, "do": do}).encode(),
        COMMANDS | VALUES,
        st.dictionaries(NAMES, VALUES),
    )
    | st.just(b"[" * 5000)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, min_size=1, max_size=5))
def test_each_line_of_garbage_gets_one_answer(daemon: Daemon, lines: list[bytes]) -> None:
    """Oracle: every line is answered by one line, and the next request as if nothing had been."""
    with Talk(daemon) as talk:
        talk.send(b"".join(line + b"\n" for line in lines) + b'{"do": "list"}\n')
        for line in lines:
            answer = talk.answer()
            assert answer is not None and ("result" in answer) != ("error" in answer), line
        assert talk.answer()["result"][0]["tag"] == "a"


def test_ctl_says_what_is_wrong(daemon: Daemon, tmp_path: Path) -> None:
    def complaint(path: Path) -> str:
        command = [sys.executable, "-m", "virtiofs", "ctl", str(path), "list"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 1
        return done.stderr

    assert "start the daemon with --control" in complaint(tmp_path / "none")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert "no daemon listens there" in complaint(tmp_path / "dead")


def test_a_daemon_with_one_share_is_asked_as_well_but_takes_no_other(tmp_path: Path) -> None:
    import devices
    from virtiofs.cli.ctl import ask

    control = str(tmp_path / "control")
    (tmp_path / "d").mkdir()
    with devices.start_ours(tmp_path / "d", ["--control", control]) as running:
        (share,) = ask(control, {"do": "status"})["result"]
        assert (share["tag"], share["socket"]) == ("virtiofs", running.socket)
        assert "--socket-dir" in ask(control, {"do": "add", "share": f"x={tmp_path}"})["error"]
    assert not os.path.exists(control)

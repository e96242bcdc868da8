# SPDX-License-Identifier: Apache-2.0
"""What people see of a running daemon: `virtiofs trace`, `virtiofs top`, and metrics over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_many_shares import Daemon, serving

from virtiofs.cli import exporter, top, trace
from virtiofs.client.device import Caller, Device
from virtiofs.client.session import Session
from virtiofs.daemon import metrics
from virtiofs.daemon.log import Log
from virtiofs.daemon.observed import Observed
from virtiofs.fuse.records import Reader

SECONDS = 20.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    place = tmp_path_factory.mktemp("observing")
    (place / "a" / "below").mkdir(parents=True)
    (place / "a" / "below" / "f").write_text("contents")
    with serving(place / "run", [f"a={place}/a", f"b={place}/a:ro"]) as daemon:
        yield daemon
        assert daemon.process.poll() is None


@pytest.fixture
def device(daemon: Daemon) -> Iterator[Device]:
    with daemon.connect("a") as device:
        yield device


def command(daemon: Daemon, name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "virtiofs", name, str(daemon.place / "control"), *words]


def traced(daemon: Daemon, session: Session, *words: str, count: int) -> list[dict]:
    """What `virtiofs trace --json` prints while files are made and moved, until it has `count` lines."""
    process = subprocess.Popen(
        command(daemon, "trace", "--json", "--count", str(count), *words), stdout=subprocess.PIPE, text=True
    )
    done = threading.Event()

    def work() -> None:
        # Until it ends by itself: nothing else tells when it has begun to look.
        number = 0
        while not done.wait(0.05):
            number += 1
            some_requests(session, number)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        out, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        done.set()
        thread.join()
    assert process.returncode == 0
    lines = [json.loads(line) for line in out.splitlines()]
    return [line for line in lines if "lost" not in line]


def some_requests(session: Session, number: int) -> None:
    below = session.lookup(1, "below").nodeid
    node = session.lookup(below, "f").nodeid
    fh = session.open(node).fh
    session.read(node, fh, 0, 5)
    session.release(node, fh)
    with contextlib.suppress(FileNotFoundError):
        session.lookup(below, f"none-{number}")


def test_a_trace_shows_operation_path_and_outcome(daemon: Daemon, device: Device) -> None:
    session = Session(device)
    session.caller = Caller(7, 8, 9)
    lines = traced(daemon, session, "--path", "/below/f", "--operation", "open,read", count=8)
    assert {line["operation"] for line in lines} == {"open", "read"}
    read = next(line for line in lines if line["operation"] == "read")
    assert (read["share"], read["path"], read["size"], read["bytes_out"]) == ("a", "/below/f", 5, 16 + 5)
    assert read["error"] is None and read["microseconds"] > 0
    assert (read["uid"], read["gid"], read["pid"]) == (7, 8, 9)


def test_a_trace_shows_errors_only_if_that_is_asked(daemon: Daemon, device: Device) -> None:
    for line in traced(daemon, Session(device), "--errors", "--share", "a", count=3):
        assert (line["operation"], line["error"]) == ("lookup", "ENOENT")
        assert line["path"].startswith("/below/none-")


def test_a_path_that_was_found_before_the_trace_is_asked_of_the_daemon(
    daemon: Daemon, device: Device
) -> None:
    session = Session(device)
    below = session.lookup(1, "below").nodeid
    node = session.lookup(below, "f").nodeid
    assert daemon.ask("paths", tag="a", nodes=[1, below, node, 1 << 60]) == {
        "1": "/",
        str(below): "/below",
        str(node): "/below/f",
        str(1 << 60): None,
    }
    for nodes in ([0], ["1"], [1 << 64], [True], list(range(1, 100))):
        assert "node ids" in daemon.refusal("paths", tag="a", nodes=nodes)


def test_a_trace_goes_on_with_the_next_vmm_and_ends_with_its_client(daemon: Daemon) -> None:
    with trace.Talk(str(daemon.place / "control")) as talk:
        _, (fd,) = talk.ask({"do": "trace", "tag": "a"})
        reader = Reader(fd)
        os.close(fd)
        for _ in range(2):
            with daemon.connect("a") as device:
                Session(device).lookup(1, "below")
            records, lost = reader.read()
            assert [record.operation for record in records if record.names] == ["lookup"] and lost == 0
    with daemon.connect("a") as device:
        session = Session(device)
        daemon.ask("list")  # the supervisor saw the client go before it answered
        reader.read()
        session.lookup(1, "below")
        assert reader.read() == ([], 0)
    reader.close()


def test_the_memory_of_a_trace_can_not_be_shortened_under_its_reader(daemon: Daemon) -> None:
    with trace.Talk(str(daemon.place / "control")) as talk:
        _, (fd,) = talk.ask({"do": "trace", "tag": "b"})
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        os.close(fd)


def test_a_trace_of_no_share_says_so(daemon: Daemon) -> None:
    done = subprocess.run(
        command(daemon, "trace", "--share", "none"),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1 and "there is no share 'none'" in done.stderr


def test_paths_follow_renames_and_forget_what_is_forgotten() -> None:
    asked: list[list[int]] = []

    def ask(nodes: list[int]) -> dict:
        asked.append(nodes)
        return {"result": {"5": "/d", "6": "/d/x"}}

    paths = trace.Paths(ask)
    paths.find([1, 5, 6, 7, 0])
    paths.find([5, 6, 7])
    assert asked == [[5, 6, 7]]  # also what nobody knows is asked for once
    assert [paths.of(5), paths.of(6), paths.of(7), paths.of(1), paths.of(1, b"n")] == [
        "/d",
        "/d/x",
        "<node 0x7>",
        "/",
        "/n",
    ]
    paths.learn(record("rename", nodeid=1, target=1, names=(b"d", b"e")))
    paths.learn(record("mkdir", nodeid=5, child=8, names=(b"made",)))
    assert (paths.of(6), paths.of(8)) == ("/e/x", "/e/made")
    paths.learn(record("forget", nodeid=8))
    assert paths.of(8) == "<node 0x8>"
    paths.learn(record("init"))
    assert paths.of(5) == "<node 0x5>"


def record(operation: str, **fields: object) -> trace.Record:
    blank = trace.Record(*[0] * 16, names=(), cut=False)
    return blank._replace(opcode=trace.abi.BY_NAME[operation].opcode, **fields)


def test_a_terminal_obeys_no_name() -> None:
    assert trace.printable("a\x1b[31m\udcff\n") == "a\\x1b[31m\\xff\\n"


def test_durations_have_units() -> None:
    assert [trace.duration(text) for text in ("500us", "1.5ms", "2s")] == [500_000, 1_500_000, 2_000_000_000]
    for text in ("5", "ms", "1e400s", "nans", "x us"):
        with pytest.raises(trace.argparse.ArgumentTypeError):
            trace.duration(text)


def test_top_shows_rates_of_one_interval(daemon: Daemon, device: Device) -> None:
    session = Session(device)
    words = ["--once", "--interval", "0.3"]
    lines = []
    for more in (["--json"], []):
        process = subprocess.Popen(
            command(daemon, "top", *words, *more), stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
        )
        while process.poll() is None:
            some_requests(session, 0)
        assert process.returncode == 0 and process.stdout is not None
        lines.append(process.stdout.read())
        process.stdout.close()
    found = {share["share"]: share for share in map(json.loads, lines[0].splitlines())}
    assert found["a"]["requests"] > 0 and found["a"]["errors"] > 0 and found["b"]["requests"] == 0
    operations = {one["operation"]: one for one in found["a"]["operations"]}
    assert operations["read"]["requests"] > 0 and operations["lookup"]["total"] > 0
    assert "\x1b" not in lines[1] and "lookup" in lines[1] and str(os.getpid()) in lines[1]


def test_the_quantile_is_the_end_of_its_bucket() -> None:
    assert top.quantile([99, 0, 1, 0], 0.99) == 1.024
    assert top.quantile([98, 0, 2, 0], 0.99) == 4.096
    assert top.quantile([0, 0, 0, 1], 0.99) is None
    assert top.quantile([0, 0, 0, 0], 0.99) is None


@pytest.fixture
def http_server() -> Iterator[exporter.Exporter]:
    asked = [0]

    def ask() -> str:
        asked[0] += 1
        return f"asked {asked[0]}\n"

    with exporter.Exporter(0, ask) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: exporter.Exporter, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=SECONDS)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_scrapes_of_one_second_ask_the_daemon_once(http_server: exporter.Exporter) -> None:
    http_server.kept._asked = float("-inf")
    assert get(http_server) == (200, "asked 1\n")
    http_server.kept._asked += 1000  # as if no time had passed
    assert get(http_server) == (200, "asked 1\n")
    http_server.kept._asked = float("-inf")
    assert get(http_server) == (200, "asked 2\n")
    assert get(http_server, method="HEAD") == (200, "")
    assert get(http_server, "/other")[0] == 404


def test_the_exporter_listens_on_the_loopback_address_only(http_server: exporter.Exporter) -> None:
    assert http_server.socket.getsockname()[0] == "127.0.0.1"


def test_clients_that_hang_are_cut_off(
    http_server: exporter.Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "CLIENT_SECONDS", 0.2)
    place = ("127.0.0.1", http_server.server_port)
    hanging = [socket.create_connection(place, SECONDS) for _ in range(3 * exporter.MAX_CLIENTS)]
    for sock in hanging:
        with contextlib.suppress(ConnectionError):
            assert sock.recv(10) == b""
        sock.close()
    while True:  # places come free as threads end
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            assert get(http_server)[0] == 200
            break


def test_garbage_gets_an_error(http_server: exporter.Exporter) -> None:
    with socket.create_connection(("127.0.0.1", http_server.server_port), SECONDS) as sock:
        sock.sendall(b"\x00\xff\r\n\r\n")
        assert b"400" in sock.recv(1000)


def test_metrics_are_served_over_http(daemon: Daemon) -> None:
    process = subprocess.Popen(
        command(daemon, "ctl", "metrics", "--http", "0"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().split(":")[2].partition("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.getheader("Content-Type", "").startswith("text/plain; version=0.0.4")
        assert 'virtiofs_connected{share="a"}' in response.read().decode()
        connection.close()
    finally:
        process.terminate()
        process.wait(SECONDS)
        process.stdout.close()


def test_a_port_that_is_taken_is_named(daemon: Daemon, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        port = str(sock.getsockname()[1])
        done = subprocess.run(
            command(daemon, "ctl", "metrics", "--http", port),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 1 and f"port {port}" in done.stderr


def test_a_worker_that_lies_spoils_only_its_own_metrics() -> None:
    class Lying(Observed):
        tag = "lying"

        def __init__(self, answer: object):
            super().__init__("/d", False, Log("off"))
            self._answer = answer

        def _ask(self, do: str, fds: object = (), **arguments: object) -> object:
            return self._answer

    queue = dict.fromkeys(("depth", "waiting", "kicks", "sleeps", "notifications", "looks", "vain_looks"), 0)
    for answer in (
        {"queues": {"0": 7}},
        {"queues": {"0": {}}},
        {"queues": {"0": {**queue, "broken": "", "depth": '1\nvirtiofs_connected{share="a"} 0'}}},
        {"queues": {"0\n": {**queue, "broken": ""}}},
        {"filesystem": {"inodes": [1]}},
        {"pool": {"unheard": 1}},
        {"filesystem": 3},
        {"lookup": [1, 2, 3]},
        {"lookup": ["x"] * 28},
        {'x"} 1': [1] * 28},
    ):
        lying, honest = Lying(answer), Lying({})
        honest.tag = "honest"
        for line in metrics.text([lying, honest]).splitlines():
            assert line.startswith("# ") or 'share="honest"' in line or 'share="lying"' in line
        assert 'virtiofs_connected{share="honest"}' in metrics.text([lying, honest])

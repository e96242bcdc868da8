# SPDX-License-Identifier: Apache-2.0
"""The benchmark: that it measures what it says, notices who fails, and reports what it found."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

import mounting
from expect import failure
from virtiofs.cli.main import main
from virtiofs.client import bench, page, peers, report, workloads
from virtiofs.client.counting import SystemCalls
from virtiofs.client.workloads import WORKLOADS

SOME = tuple(one for one in WORKLOADS if one.name in ("GETATTR", "READ 1 MiB"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def results(directory):
    """A run of ours against itself under another name."""
    twin = peers.ours()._replace(name="twin", queues=())
    plan = bench.Plan(0.01, 1, workloads=SOME, queues=(1, 2), inodes=(100,), paces=(0.01,))
    seen = []
    measured = bench.measure_all(
        [peers.ours(), twin], directory, plan, lambda share, what: seen.append(share)
    )
    assert seen == sorted(seen) and seen[-1] == 1
    return measured


def test_every_workload_and_mode_has_its_figures(results):
    modes = [
        mode.name
        for mode in bench.MODES
        if results["conditions"]["driver_cpu"] is not None or not mode.shared
    ]
    measured = {(r["workload"], r["mode"], r["peer"]) for r in results["results"]}
    for workload in SOME:
        for mode in set(modes) & set(workload.modes):
            assert {(workload.name, mode, "virtiofs"), (workload.name, mode, "twin")} <= measured
    assert ("READ 1 MiB", "interrupt", "bare preadv") in measured
    for row in results["results"]:
        rate = row["operations_per_second"]
        assert 0 < rate["least"] <= rate["median"] <= rate["most"] < 1e7
        assert 0 < row["p50_us"]["median"] <= row["p99_us"]["most"]
        assert row["cpu_us"]["median"] > 0
        if row["calls_per_operation"] is not None:
            assert row["calls_per_operation"] > 0.3
    assert results["absent"] == []
    for peer in results["peers"]:
        assert 0 < peer["accepts_ms"]["median"] <= peer["first_reply_ms"]["median"]
        assert 0.5 < peer["private_mib_idle"] < 200
    json.dumps(results)


def test_queues_and_inodes_have_rows(results):
    queues = {(row["peer"], row["queues"]) for row in results["queues"]}
    assert queues == {("virtiofs", 1), ("virtiofs", 2), ("twin", 1)}
    assert all(row["operations_per_second"]["least"] > 0 for row in results["queues"])
    assert [row["inodes"] for row in results["inodes"]] == [100, 100]
    assert all(row["us_per_lookup"] > 0 and "failed" not in row for row in results["inodes"])


def test_a_guest_that_asks_now_and_then_has_its_cost(results):
    assert [row["peer"] for row in results["paces"]] == ["virtiofs", "twin"]
    for row in results["paces"]:
        assert row["interval_us"] >= 10_000 > row["cpu_us"] > 0
        assert 0 < row["cpu_share"] < 1


def test_reports_lead_with_ratios_to_the_best_other_daemon(results):
    comparisons = report.compare(results)
    assert {one.best["peer"] for one in comparisons} == {"twin"}
    for text in (report.terminal(results), report.markdown(results), page.page(results)):
        assert "geometric mean" in text or "class=card" in text
        for expected in ("READ 1 MiB", "bare preadv", "To the best other daemon", "twin"):
            assert expected in text or (expected.startswith("To the") and "Ours to the best" in text)
    drawn = page.page(results)
    assert drawn.count("<svg") == drawn.count("</svg>") > 3
    assert "http" not in drawn and len(drawn) < 300_000


def row(peer, rate, mode="interrupt", spread=0.0):
    figure = {"median": rate, "least": rate * (1 - spread), "most": rate * (1 + spread)}
    latency = {"median": 1.0, "least": 1.0, "most": 1.0}
    more = {
        "by": "operations_per_second",
        "p50_us": latency,
        "p99_us": latency,
        "cpu_us": latency,
        "unit": "",
    }
    return {"workload": "W", "mode": mode, "peer": peer, "operations_per_second": figure} | more


def test_a_comparison_takes_the_best_other_daemon_and_never_the_bare_call():
    rows = [row("virtiofs", 100), row("a", 50), row("b", 80), row("bare preadv", 900)]
    (one,) = report.compare({"results": rows})
    assert (one.best["peer"], one.ratio, one.clear) == ("b", 1.25, True)
    assert report.behind([one]) == []
    (one,) = report.compare({"results": [row("virtiofs", 100, spread=0.1), row("a", 125, spread=0.2)]})
    assert (one.ratio, one.clear) == (0.8, False)
    assert report.behind([one]) == [one]
    for one in rows:
        one["by"] = "p99_us"
    rows[0]["p99_us"] = {"median": 2.0, "least": 2.0, "most": 2.0}
    assert report.compare({"results": rows})[0].ratio == 0.5


def test_a_daemon_that_fails_is_named_and_started_again(directory):
    def prepare(session, place):
        script = workloads.getattr_(session, place)
        script.verify = lambda _replies: False
        return script

    plan = bench.Plan(0.01, 1, pin=False, workloads=(workloads.Workload("WRONG", prepare), SOME[0]))
    results = bench.measure_all([peers.ours()], directory, plan)
    (absent,) = results["absent"]
    assert absent["failed"] and "wrong" in absent["reason"]
    assert {row["workload"] for row in results["results"]} == {"GETATTR"}
    assert "FAILED" in report.terminal(results)


def test_a_daemon_that_dies_is_noticed_and_started_again(directory, monkeypatch):
    monkeypatch.setattr(bench, "STALLED", 0.2)
    running = []

    def prepare(session, place):
        script = workloads.getattr_(session, place)
        script.before = lambda: [os.kill(pid, signal.SIGKILL) for pid in running[0].processes()]
        return script

    original = bench.RunningPeer

    def start(*arguments):
        running.append(original(*arguments))
        return running[-1]

    plan = bench.Plan(0.01, 1, pin=False, workloads=(workloads.Workload("DEADLY", prepare), SOME[0]))
    monkeypatch.setattr(bench, "_start_ups", lambda peers, *_: {"virtiofs": [peers_start]})
    peers_start = peers.StartUp(0.1, 0.2)
    monkeypatch.setattr(bench, "RunningPeer", start)
    results = bench.measure_all([peers.ours()], directory, plan)
    assert [row["workload"] for row in results["absent"]] == ["DEADLY"]
    assert {row["workload"] for row in results["results"]} == {"GETATTR"}
    assert len(running) == 2


def test_processor_time_and_memory_are_the_whole_daemons(directory):
    with peers.RunningPeer(peers.ours(), directory) as peer:
        assert len(peer.processes()) >= 2
        before, wall = peer.cpu_seconds(), time.monotonic()
        measured = bench.Bench(peer, SOME[0], directory).measure(0.1, bench.MODES[0])
        used, wall = peer.cpu_seconds() - before, time.monotonic() - wall
        assert 0 < measured.cpu * measured.operations <= used <= 2 * wall + 0.05
        assert peer.private_bytes() > 1 << 20
        assert peer.descriptors() > 5


def test_system_calls_of_others_are_counted():
    program = "import os; print(flush=True); input(); [os.getppid() for _ in range(1000)]; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1) as process:
        try:
            process.stdout.readline()
            try:
                counter = SystemCalls([process.pid])
            except OSError as error:
                pytest.skip(f"the kernel does not count here: {error}")
            with counter:
                process.stdin.write(b"\n")
                process.stdin.flush()
                process.stdout.readline()
            assert 1000 <= counter.count < 1100
        finally:
            process.kill()


def test_a_daemon_that_does_not_start_is_named(directory):
    broken = peers.parse("broken=sh -c 'echo no such option; exit 3' {socket} {dir}")
    with pytest.raises(peers.PeerError, match=r"(?s)broken does not start.*no such option"):
        peers.RunningPeer(broken, directory, None, 128, 32 << 20)
    missing = peers.Peer("missing", ("/no/such/program", "{socket}", "{dir}"))
    with pytest.raises(peers.PeerError, match="cannot run /no/such/program"):
        peers.RunningPeer(missing, directory, None, 128, 32 << 20)


def test_peers_are_found_in_a_cached_root_through_its_loader(tmp_path):
    root = tmp_path / peers.ROOT
    (root / "usr/libexec").mkdir(parents=True)
    (root / "lib64").mkdir()
    (root / "usr/lib" / f"{platform.machine()}-linux-gnu").mkdir(parents=True)
    (root / "usr/libexec/virtiofsd").touch()
    loader = root / "lib64" / "ld-linux-fake.so.2"
    loader.write_text("#!/bin/sh\necho virtiofsd 1.99 of $3\n")
    loader.chmod(0o755)
    known = peers.KNOWN[1]._replace(programs=("/usr/libexec/virtiofsd",))
    original = peers.KNOWN
    try:
        peers.KNOWN = (known,)
        found, missing = peers.find(tmp_path)
        assert [peer.name for peer in found] == ["virtiofs", "virtiofsd-rust", "virtiofsd-rust-pool"]
        assert found[1].version == f"virtiofsd 1.99 of {root}/usr/libexec/virtiofsd"
        assert found[1].command[:4] == (
            str(loader),
            "--library-path",
            found[1].command[2],
            str(root / "usr/libexec/virtiofsd"),
        )
        assert "--thread-pool-size=4" in found[2].command and missing == []
        found, missing = peers.find(tmp_path / "nothing")
        assert len(found) == 1 and "make testbed-trixie" in missing[0]
    finally:
        peers.KNOWN = original


@pytest.mark.parametrize("text", ["", "name", "name=", "name=cmd {socket}", "=cmd {socket} {dir}"])
def test_a_peer_needs_a_name_and_a_command_with_both_places(text):
    with pytest.raises(ValueError, match="NAME=COMMAND"):
        peers.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "nothing"], "no such workload"),
        (["--mode", "nothing"], "no such mode"),
        (["--only", "nobody"], "no daemon nobody"),
        (["--peer", "nonsense"], "NAME=COMMAND"),
        (["--depth", "0"], "--depth"),
        (["--queues", "1,x"], "--queues"),
        (["--queues", "65"], "--queues"),
        (["--seconds", "-1"], "--seconds"),
    ],
)
def test_nonsense_on_the_command_line_is_refused(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_writes_its_results(tmp_path, capsys):
    arguments = ["--only", "virtiofs", "--workload", "getattr", "--workload", "inodes", "--quick"]
    arguments += ["--seconds", "0.01", "--repeats", "1", "--mode", "interrupt"]
    arguments += ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    assert main(["bench", *arguments, "--html", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr()
    assert "GETATTR, interrupt" in said.out and "100%" in said.err
    assert "GETATTR" in {r["workload"] for r in json.loads((tmp_path / "r.json").read_text())["results"]}
    assert "| virtiofs |" in (tmp_path / "r.md").read_text()
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_the_command_lists_daemons_and_workloads(capsys):
    assert main(["bench", "--list"]) == 0
    said = capsys.readouterr().out
    assert "virtiofs: virtiofs" in said
    assert all(workload.name in said for workload in WORKLOADS)


def test_file_systems_in_python_are_compared_on_the_hosts_kernel():
    reason = mounting.unavailable()
    if reason:
        pytest.skip(reason)
    from virtiofs.client.pythonbench import measure

    ours = [server for server in measure.SERVERS if not server.module]
    found = measure.measure(0.01, 1, ours)
    assert all(found["rates"][f"{work}|virtiofs"] > 0 for work in found["works"])
    text = measure.page(found)
    assert "| fstat: GETATTR |" in text and "virtiofs async" in text
    # The same work for all, and a word about it where it is not.
    assert {tuple(set(counts.values())) for counts in found["requests"].values()} == {(1.0,), (3.0,)}
    assert "Not the same work" not in text
    found["requests"]["read 4 KiB"]["virtiofs"] = 0.5
    assert "**Not the same work:** read 4 KiB: virtiofs 0.5, virtiofs, 8 threads 1" in measure.page(found)


def test_calls_that_are_measured_fail_if_they_do_not_do_all_of_their_work(tmp_path):
    from virtiofs.client.pythonbench import calls

    (tmp_path / "f").write_bytes(b"1234")
    with open(tmp_path / "f", "rb+", buffering=0) as file:
        calls.fstats(file.fileno(), 2)
        calls.reads(file.fileno(), bytearray(8), 4, 2)
        calls.writes(file.fileno(), b"56", 4, 2)
        assert failure(calls.reads, file.fileno(), bytearray(8), 4, 2) == errno.EIO
    assert failure(calls.fstats, -1, 1) == failure(calls.writes, -1, b"1", 0, 1) == errno.EBADF
    directory = os.open(tmp_path, os.O_PATH)
    calls.stats(directory, b"f", 2)
    assert failure(calls.stats, directory, b"g", 1) == errno.ENOENT
    os.close(directory)

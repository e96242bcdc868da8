# SPDX-License-Identifier: Apache-2.0
"""The benchmark: that it measures what it says, refuses wrong data, and reports what it found."""

import json
import time

import pytest

from virtiofs.cli.main import main
from virtiofs.client import bench, peers, report


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench")
    bench.make_share(place)
    return place


def test_ours_is_measured_in_every_workload_and_mode(directory):
    before = time.monotonic()
    results = bench.measure_all([peers.ours()], directory, seconds=0.02, repeats=2)
    took = time.monotonic() - before
    modes = bench.MODES if results["conditions"]["driver_cpu"] is not None else bench.MODES[:2]
    measured = {(r["workload"], r["mode"]) for r in results["results"]}
    assert measured == {(w.name, m.name) for w in bench.WORKLOADS for m in modes}
    for result in results["results"]:
        rate = result["operations_per_second"]
        assert 10 < rate["least"] <= rate["median"] <= rate["most"] < 1e7
        assert 0 < result["p50_us"]["median"] <= result["p99_us"]["most"]
        assert 0 < result["cpu_us"]["median"] < 1e6 * took
    peer = results["peers"][0]
    assert 0 < peer["accepts_ms"]["median"] <= peer["first_reply_ms"]["median"] < 5000
    assert 0.5 < peer["private_mib_idle"] < 200
    json.dumps(results)
    for text in (report.terminal(results), report.markdown(results)):
        assert "READ 1 MiB, polled" in text
        assert "virtiofs" in text


def test_a_daemon_that_returns_wrong_data_is_not_measured(directory):
    def prepare(session, place):
        return bench._getattr(session, place)._replace(verify=lambda *_: False)

    with pytest.raises(bench.WrongData, match="wrong data"):
        bench.measure_all(
            [peers.ours()], directory, 0.01, 1, workloads=(bench.Workload("GETATTR", prepare),), pin=False
        )


def test_reads_are_checked_against_the_file(directory, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    bench.make_share(other)
    (other / "data").write_bytes(bytes(bench.FILE_SIZE))
    with peers.RunningPeer(peers.ours(), other, None, bench.QUEUE_SIZE, bench.MEMORY) as peer:
        with pytest.raises(bench.WrongData):
            bench.Bench(peer, bench.WORKLOADS[3], directory, 1)
        bench.Bench(peer, bench.WORKLOADS[3], other, 1)


def test_processor_time_and_memory_are_the_whole_daemons(directory):
    with peers.RunningPeer(peers.ours(), directory, None, bench.QUEUE_SIZE, bench.MEMORY) as peer:
        assert len(peer.processes()) >= 2
        before, wall = peer.cpu_seconds(), time.monotonic()
        measured = bench.Bench(peer, bench.WORKLOADS[0], directory, 1).measure(0.2, polled=False)
        used, wall = peer.cpu_seconds() - before, time.monotonic() - wall
        assert 0 < measured.cpu * measured.operations <= used <= 2 * wall + 0.05
        assert peer.private_bytes() > 1 << 20


def test_a_daemon_that_does_not_start_is_named(directory):
    broken = peers.parse("broken=sh -c 'echo no such option; exit 3' {socket} {dir}")
    with pytest.raises(peers.PeerError, match=r"(?s)broken does not start.*no such option"):
        peers.RunningPeer(broken, directory, None, 128, 32 << 20)
    missing = peers.Peer("missing", ("/no/such/program", "{socket}", "{dir}"))
    with pytest.raises(peers.PeerError, match="cannot run /no/such/program"):
        peers.RunningPeer(missing, directory, None, 128, 32 << 20)


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
        (["--seconds", "-1"], "--seconds"),
    ],
)
def test_nonsense_on_the_command_line_is_refused(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_writes_its_results(tmp_path, capsys):
    arguments = ["--only", "virtiofs", "--workload", "getattr", "--seconds", "0.01", "--repeats", "1"]
    arguments += ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    assert main(["bench", *arguments]) == 0
    assert "GETATTR, interrupt" in capsys.readouterr().out
    assert {r["workload"] for r in json.loads((tmp_path / "r.json").read_text())["results"]} == {"GETATTR"}
    assert "| virtiofs |" in (tmp_path / "r.md").read_text()

# SPDX-License-Identifier: Apache-2.0
"""The benchmark's workloads: each runs against our daemon, and sees it when data are wrong."""

import os
import shutil

import pytest

from virtiofs.client import bench, peers, traces, workloads
from virtiofs.client.script import Replies

SMALL = [workload for workload in workloads.WORKLOADS if not workload.large]
BY_NAME = {workload.name: workload for workload in workloads.WORKLOADS}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def running(directory):
    with peers.RunningPeer(peers.ours(), directory) as peer:
        yield peer


def made(running, workload, directory, depth=None):
    try:
        return bench.Bench(running, workload, directory, depth)
    except workloads.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("workload", SMALL, ids=lambda workload: workload.name)
def test_a_workload_runs_verified_and_leaves_nothing_behind(running, directory, workload):
    free, descriptors = running.device.arena.free, None
    for _ in range(2):
        one = made(running, workload, directory)
        for polled in (False, True):
            assert one.run(2 * one.depth, polled) > 0
        assert 0 < one.load.latency(0.5) <= one.load.latency(0.99)
        one.close()
        if descriptors is None:  # caches of the daemon are warm now
            descriptors = running.descriptors()
    assert running.device.arena.free == free
    assert running.descriptors() <= descriptors


class Damaged(Replies):
    """Replies in which every byte is another."""

    def payload(self, step):
        return bytes(byte ^ 0xFF for byte in super().payload(step))


@pytest.mark.parametrize(
    "name",
    [
        *("GETATTR", "LOOKUP + FORGET, known names", "LOOKUP + FORGET, new names"),
        *(
            "CREATE + WRITE + READ + RELEASE + UNLINK",
            "READDIRPLUS of 1,000, first",
            "READ 4 KiB",
            "READ 1 MiB",
        ),
        *("git status", "smallfile mix"),
    ],
)
def test_replies_of_other_bytes_are_wrong_data(running, directory, name):
    one = made(running, BY_NAME[name], directory)
    assert one.script.verify(Replies(one.load, 0))
    assert not one.script.verify(Damaged(one.load, 0))
    one.close()


@pytest.mark.parametrize(
    "name",
    ["GETATTR", "LOOKUP + FORGET, known names", "READ 4 KiB", "READ 1 MiB", "WRITE 4 KiB", "WRITE 1 MiB"],
)
def test_a_daemon_that_serves_other_files_has_wrong_data(running, directory, tmp_path, name):
    workloads.names(directory)
    for file in ("data", "written"):
        workloads.random_file(directory, file)
        (tmp_path / file).write_bytes(bytes(workloads.FILE_SIZE))
    with pytest.raises(bench.WrongData):
        bench.Bench(running, BY_NAME[name], tmp_path)


def test_trees_are_compared_by_names_bytes_and_times(directory, tmp_path):
    tree = traces.tree(directory)
    shutil.copytree(tree, tmp_path / "copy")
    assert traces.same_tree(tree, tmp_path / "copy")
    file = next(path for path in (tmp_path / "copy").rglob("*.py"))
    content = file.read_bytes()
    for damage in (lambda: file.write_bytes(content[:-1]), lambda: os.utime(file, (1, 1)), file.unlink):
        damage()
        assert not traces.same_tree(tree, tmp_path / "copy")


def test_cold_reads_refuse_a_file_system_that_is_never_cold(running, directory, monkeypatch):
    monkeypatch.setattr(workloads, "file_system", lambda _directory: "tmpfs")
    with pytest.raises(workloads.Unavailable, match="tmpfs"):
        bench.Bench(running, BY_NAME["READ 4 KiB cold, depth 32"], directory)


def test_the_file_system_is_named():
    assert workloads.file_system(peers.Path("/proc")) == "proc"
    assert workloads.file_system(peers.Path("/dev/shm")) in ("tmpfs", "")

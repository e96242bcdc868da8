# SPDX-License-Identifier: Apache-2.0
"""Daemons that share a table: what they know of each other, what is left of those that die, what is refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import devices
from sharing import ROOT, refusal
from virtiofs.cli.ctl import ask
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.metadata import layout, registry


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_what_one_daemon_changes_another_can_tell(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    control = f"{tmp_path}/control"
    options = ("--metadata-table", "--control", control)
    with devices.start_ours(tree, options) as one, devices.start_ours(tree, ("--metadata-table",)):
        table = registry.attach(str(tree))
        wait_for(lambda: table.watched, "nobody watches")
        wait_for(
            lambda: len(registry.living(table)) == 7, "two supervisors, two workers, two watchers, and we"
        )
        assert len(table.worker_pids()) == 2
        follower = table.follow()
        word = table.word(table.slot(tree.stat().st_dev, tree.stat().st_ino))
        with Device.connect(one.socket) as device:
            Session(device).mkdir(ROOT, "d")
        while (change := follower.next(10)) is not None and change.name != b"d":
            assert not table.worker(change.origin)  # others may be at work on this file system
        assert change is not None and change.kind == layout.ENTRY and table.worker(change.origin)
        assert table.word(table.slot(tree.stat().st_dev, tree.stat().st_ino)) != word
        status = ask(control, {"do": "status"})["result"][0]["metadata"]
        assert status["followers"] == 1 and status["changes"] >= 1 and status["watched"]
        assert status["path"] == table.path
        text = ask(control, {"do": "metrics"})["result"]
        assert 'virtiofs_metadata_changes_total{share="virtiofs"} ' in text
        follower.close()
        table.close()
    assert not os.path.exists(table.path)


def test_a_worker_that_is_killed_in_the_middle_leaves_nothing_in_progress(tmp_path: Path) -> None:
    with devices.start_ours(tmp_path, ("--metadata-table",)) as running:
        table = registry.attach(str(tmp_path))
        status = tmp_path.stat()
        slot = table.slot(status.st_dev, status.st_ino)
        (worker,) = table.worker_pids()
        (number,) = [number for number in registry.living(table) if table.worker(number) == worker]
        with Device.connect(running.socket) as device:
            Session(device).statfs()
            # As if it were in the middle of a change: what it would have written down, and the word.
            at = layout.MEMBERS_AT + number * layout.MEMBER.size + layout.MEMBER.offset("pending")
            table.begin(status.st_dev, status.st_ino)
            ours = layout.MEMBERS_AT + table.member * layout.MEMBER.size + layout.MEMBER.offset("pending")
            size = 8 * layout.PENDING
            os.pwrite(table.fd, os.pread(table.fd, size, ours), at)
            os.pwrite(table.fd, bytes(size), ours)
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: not table.word(slot) & layout.IN_PROGRESS, "nobody tidied up")
        table.close()


@pytest.mark.parametrize("tree", ["/", "/run"])
def test_a_tree_that_holds_the_tables_is_refused(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/none")
    from virtiofs.daemon.seats import Seats
    from virtiofs.metadata.table import MetadataError

    if os.geteuid():
        monkeypatch.setattr(registry, "runtime_directory", lambda: "/run/virtiofs")
    with pytest.raises(MetadataError, match="for guests to write; share less"):
        Seats(tree)


def test_a_class_in_python_has_none() -> None:
    from virtiofs.cli.main import main

    with pytest.raises(SystemExit) as error:
        main(["serve", "examples/hello.py:Hello", "--socket", "/tmp/never.sock", "--metadata-table"])
    assert error.value.code == 2
    assert "adaptive needs --metadata-table" in refusal("--cache", "adaptive")

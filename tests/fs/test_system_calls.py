# SPDX-License-Identifier: Apache-2.0
"""How many system calls a request costs: what decides its time, and can be counted on any machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session

ROOT = 1
NAMES = 20
# What the queue's loop itself does, which depends on when the driver looks.
LOOP = {"epoll_wait", "write", "futex", "restart_syscall"}
MARK = "fstatfs"  # STATFS stands between the requests that are counted

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing (Debian package strace)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="file handles, and tracing a walled-in worker, need root"),
]


class Trace:
    """The system calls of a process, request by request."""

    def __init__(self, pid: int, log: Path, session: Session):
        self._log = log
        self._session = session
        command = ["strace", "-f", "-q", "-o", str(log), "-p", str(pid)]
        self._strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def step(self) -> None:
        """The next requests are counted apart from those before."""
        self._session.statfs(ROOT)

    def end(self) -> list[Counter[str]]:
        """The calls of each step, without those of the loop."""
        self._session.statfs(ROOT)
        self._strace.terminate()
        self._strace.wait()
        steps: list[Counter[str]] = []
        for line in self._log.read_text().splitlines():
            name = line.split(None, 1)[1].partition("(")[0]
            if name == MARK:
                steps.append(Counter())
            elif steps and name.isidentifier() and name not in LOOP:
                steps[-1][name] += 1
        return steps[:-1]

    def close(self) -> None:
        self._strace.kill()
        self._strace.wait()


@pytest.fixture
def traced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Session, Path, Trace]]:
    """A session with a daemon of ours; the parameter, if there is one, are its options."""
    share = tmp_path / "share"
    share.mkdir()
    with (
        devices.start_ours(share, getattr(request, "param", ())) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        with contextlib.closing(Trace(running.worker, tmp_path / "trace", session)) as trace:
            begun = devices.wait_until(lambda: session.statfs(ROOT) and MARK in read(tmp_path / "trace"), 20)
            if not begun:
                pytest.skip("strace may not trace a process here")
            yield session, share, trace


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def counted(trace: Trace, steps: int) -> list[dict[str, int]]:
    """The last `steps` steps: those before were the wait for strace."""
    return [dict(step) for step in trace.end()[-steps:]]


def test_what_reads_costs_one_call(traced):
    session, share, trace = traced
    (share / "file").write_bytes(b"x" * 4096)
    node = session.lookup(ROOT, "file").nodeid
    session.getattr(node)
    trace.step()
    session.getattr(node)
    trace.step()
    session.lookup(ROOT, "file")
    trace.step()
    handle = session.open(node, os.O_RDWR).fh
    trace.step()
    assert session.read(node, handle, 0, 4096) == b"x" * 4096
    trace.step()
    session.write(node, handle, 0, b"y" * 4096)
    trace.step()
    session.release(node, handle)
    trace.step()
    session.forget(node, 2)
    assert counted(trace, 7) == [
        {"statx": 1},
        {"statx": 1},
        {"open_by_handle_at": 1},
        {"preadv2": 1},
        {"pwritev2": 1},
        {"close": 1},
        {"close": 1},
    ]


@pytest.mark.parametrize("traced", [("--readonly", "--cache", "always")], indirect=True)
def test_a_file_that_need_not_be_opened_is_read_with_one_call(traced):
    session, share, trace = traced
    (share / "file").write_bytes(b"x" * 4096)
    node = session.lookup(ROOT, "file").nodeid
    trace.step()
    session.read(node, 0, 0, 4096)
    trace.step()
    session.read(node, 0, 0, 4096)
    session.getattr(node, 0)
    trace.step()
    session.forget(node)
    first, *others = counted(trace, 3)
    # Its handle was taken by name: what it leads to is compared before it is opened.
    assert first == {"open_by_handle_at": 1, "statx": 1, "openat": 1, "dup3": 1, "close": 1, "preadv2": 1}
    assert others == [{"preadv2": 1, "statx": 1}, {"close": 1}]


def test_a_name_that_is_only_looked_at_costs_no_descriptor(traced):
    session, share, trace = traced
    (share / "file").touch()
    trace.step()
    node = session.lookup(ROOT, "file").nodeid
    trace.step()
    session.forget(node)
    assert counted(trace, 2) == [{"statx": 1, "name_to_handle_at": 1}, {}]


def test_a_new_file_costs_three_calls(traced):
    session, _, trace = traced
    session.getattr(ROOT)
    trace.step()
    entry, opened = session.create(ROOT, "new", os.O_RDWR, 0o644)
    trace.step()
    session.release(entry.nodeid, opened.fh)
    trace.step()
    session.forget(entry.nodeid)
    assert counted(trace, 3) == [{"openat": 1, "statx": 1, "name_to_handle_at": 1}, {"close": 1}, {}]


def test_a_listing_costs_one_call_for_each_known_name(traced):
    session, share, trace = traced
    for i in range(NAMES):
        (share / f"file-{i}").touch()
        session.lookup(ROOT, f"file-{i}")
    handle = session.opendir(ROOT).fh
    trace.step()
    assert len(session.readdirplus(ROOT, handle, 0, 65536)) == NAMES + 2
    (listed,) = counted(trace, 1)
    assert listed.pop("getdents64") <= 2
    assert listed == {"statx": NAMES}

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the metadata table costs: a change by itself, and requests to two daemons that differ in nothing else.

    python benchmarks/metadata_table.py

The two take turns in short rounds, so that whatever else the machine does meets both.  What counts is the processor
time of the daemon, and the round that a tenth of all were quicker than: a machine that does something else makes the
others slow, and none quick.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.daemon.seats import last_of
from virtiofs.metadata import registry

ROOT, ROUNDS, REQUESTS = 1, 300, 20


@contextlib.contextmanager
def session(*options: str) -> Iterator[tuple[Session, int]]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        os.mkdir(f"{place}/tree")
        ready, theirs = os.pipe()
        command = [sys.executable, "-m", "virtiofs", "serve", f"{place}/tree", "--socket", f"{place}/s"]
        daemon = subprocess.Popen([*command, "--ready-fd", str(theirs), *options], pass_fds=[theirs])
        os.close(theirs)
        os.read(ready, 1)
        os.close(ready)
        with Device.connect(f"{place}/s") as device:
            yield Session(device), last_of(daemon.pid)
        daemon.terminate()
        daemon.wait()


def writer(session: Session) -> Callable[[], None]:
    entry, opened = session.create(ROOT, "f")
    data = bytes(4096)
    return lambda: session.write(entry.nodeid, opened.fh, 0, data) and None


def creator(session: Session) -> Callable[[], None]:
    def act() -> None:
        entry, opened = session.create(ROOT, "new")
        session.release(entry.nodeid, opened.fh)
        session.unlink(ROOT, "new")
        session.forget(entry.nodeid)

    return act


def processor_time(pid: int) -> int:
    """Nanoseconds that all threads of a process ran."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
            total += int(file.read().split()[0])
    return total


def measure(act: Callable[[], None], pid: int) -> float:
    """Microseconds of the daemon's for one."""
    before = processor_time(pid)
    for _ in range(REQUESTS):
        act()
    return (processor_time(pid) - before) / REQUESTS / 1e3


def quick(figures: list[float]) -> float:
    return statistics.quantiles(figures, n=10)[0]


def main() -> None:
    os.sched_setaffinity(
        0, {min(os.sched_getaffinity(0))}
    )  # on one processor nobody looks at the ring for a while
    with tempfile.TemporaryDirectory() as tree:
        table = registry.attach(tree)
        alone = quick([table.cost(1000) for _ in range(1000)])
        follower = table.follow()
        followed = quick([table.cost(1000) for _ in range(1000)])
        follower.close()
        table.close()
    print(f"one change, begun and ended: {alone:.0f} ns; with a follower {followed:.0f} ns")
    with session() as (plain, pid), session("--metadata-table") as (told, other):
        for name, make in (("WRITE of 4 KiB", writer), ("CREATE RELEASE UNLINK FORGET", creator)):
            acts = (make(plain), pid), (make(told), other)
            rounds = [[measure(*act) for act in acts] for _ in range(ROUNDS)]
            without, with_table = (quick([one[which] for one in rounds]) for which in (0, 1))
            print(f"{name}: {without:.2f} us, with a table {with_table:.2f} us")


if __name__ == "__main__":
    main()

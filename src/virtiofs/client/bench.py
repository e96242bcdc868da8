# SPDX-License-Identifier: Apache-2.0
"""The same work against several daemons in one run: speed, latency, and what it costs the daemon.

What keeps it honest: every daemon gets the same requests through the same rings from the same loop, compiled and
without the interpreter (`workloads.py` has the work, virtqueue/load.py the loop); the repeats of a workload are
interleaved (all daemons in turn, then again in the opposite order) so that a slow moment of the machine hits all of
them; medians of the repeats are reported with their spread; every reply's length, number and error is checked while
timing, and after each timed run the last data of every lane are compared with the host's files.

The table `MODES` has the ways to run.  *interrupt*: the driver sleeps until the device writes its eventfd, as a
guest does.  *polled*: the driver watches the used ring.  *one processor*: as interrupt, with the driver on the
daemon's processor; nobody is woken from idle across processors, which on virtual machines costs more than
everything else together, so this shows best what the daemon itself costs.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from virtiofs.client import bare, scaling
from virtiofs.client.arena import PAGE
from virtiofs.client.counting import SystemCalls
from virtiofs.client.figures import MIB, Measurement, machine, summary
from virtiofs.client.figures import row as row_of
from virtiofs.client.peers import MEMORY, QUEUE_SIZE, Peer, RunningPeer, StartUp
from virtiofs.client.script import Replies
from virtiofs.client.session import ReplyError
from virtiofs.client.workloads import WORKLOADS, Unavailable, Workload, file_system
from virtiofs.virtqueue.driver import DriverError

WARM_NS = 20_000_000  # a workload is warm once a run took that long
STALLED = 10.0  # seconds without any reply after which a daemon has failed


class Mode(NamedTuple):
    """How the driver waits, and whether it runs on the daemons' processor."""

    name: str
    polled: bool = False
    shared: bool = False


MODES = (Mode("interrupt"), Mode("polled", polled=True), Mode("one processor", shared=True))


class WrongData(Exception):
    """A daemon answered with other data than the file holds: its numbers mean nothing."""


class Bench:
    """One workload on one daemon, ready to be timed again and again; `close` it in the end.

    Raises `Unavailable` for work that this daemon has no need of, `WrongData`, `DriverError`, `OSError`.
    """

    def __init__(self, peer: RunningPeer, workload: Workload, directory: Path, depth: int | None = None):
        self.peer = peer
        self.workload = workload
        self.depth = depth or workload.depth
        self.calls: dict[str, float] = {}  # system calls per operation, by mode
        self._next = 0
        self._rounds: dict[str, int] = {}  # that fit a run, by mode
        self.script = workload.prepare(peer.session, directory)
        length = self.script.memory_needed(self.depth)
        self._memory = peer.device.arena.take(length, PAGE), length
        self._queue = peer.device.queues[peer.session.queue]
        self.load = self.script.load(self._queue.ring, self.depth, self._memory[0])
        self.run(self.depth, False)

    def close(self) -> None:
        """Give back nodes, handles and memory."""
        self.script.close()
        self.peer.device.arena.give(*self._memory)

    def run(self, rounds: int, polled: bool) -> int:
        """Run and verify: ns."""
        first, self._next = self._next, self._next + rounds
        self.script.before()
        self._drain()
        elapsed = self.load.run(rounds, polled, STALLED, first)
        for lane in range(min(self.depth, rounds)):
            if not self.script.verify(Replies(self.load, lane)):
                raise WrongData(
                    f"{self.peer.peer.name}: {self.workload.name}: what came back, or lies on the host, is wrong"
                )
        self.script.after(first, rounds)
        return elapsed

    def _drain(self) -> int:
        """How often the device wrote its eventfd since the last call."""
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self._queue.call_fd)
        return 0

    def _fit(self, rounds: int) -> int:
        rounds = max(rounds, self.depth)
        return min(rounds, self.script.most) if self.script.most else rounds

    def warm(self, mode: Mode, seconds: float, count_calls: bool) -> None:
        """Find out how many rounds fit `seconds`, and count system calls meanwhile."""
        rounds = self._fit(1)
        elapsed = self.run(rounds, mode.polled)
        while elapsed < WARM_NS and rounds < self._fit(2 * rounds):
            rounds = self._fit(2 * rounds)
            elapsed = self.run(rounds, mode.polled)
        self._rounds[mode.name] = self._fit(int(rounds * seconds * 1e9 / elapsed))
        if count_calls:
            try:
                counter = SystemCalls(self.peer.processes())
            except OSError:  # the kernel does not count for us: the report leaves the column out
                return
            with counter:
                self.run(rounds, mode.polled)
            self.calls[mode.name] = counter.count / (rounds * self.script.operations)

    def measure(self, seconds: float, mode: Mode, count_calls: bool = False) -> Measurement:
        """Time about `seconds` of work.  Raises `WrongData`, `DriverError`."""
        if mode.name not in self._rounds:
            self.warm(mode, seconds, count_calls)
        rounds = self._rounds[mode.name]
        kicks, wakes, cpu = self.load.kicks, self.load.wakes, self.peer.cpu_seconds()
        elapsed = self.run(rounds, mode.polled)
        cpu = self.peer.cpu_seconds() - cpu
        beside = self.script.beside is not None
        operations = rounds * self.script.operations
        return Measurement(
            operations,
            elapsed / 1e9,
            self.load.latency(0.5, beside) / 1e9,
            self.load.latency(0.99, beside) / 1e9,
            cpu / operations,
            (self.load.kicks - kicks) / operations,
            (self.load.wakes - wakes) / operations,
            self._drain() / operations,
            rounds * self.script.data,
        )


class Plan(NamedTuple):
    """How much is measured.  `seconds`: of each timed run; `repeats`: of each workload; `depth`: requests in
    flight instead of each workload's own; `pin`: the driver on one processor, the daemons on another."""

    seconds: float = 0.3
    repeats: int = 5
    depth: int | None = None
    pin: bool = True
    workloads: Sequence[Workload] = WORKLOADS
    modes: Sequence[Mode] = MODES
    queues: Sequence[int] = ()
    inodes: Sequence[int] = ()
    paces: Sequence[float] = ()  # seconds between two requests


Progress = Callable[[float, str], None]  # share done (0 to 1), of what


class _Run:
    """The state of `measure_all`: daemons that run, and what was found."""

    def __init__(self, peers: Sequence[Peer], directory: Path, plan: Plan, progress: Progress):
        self.peers, self.directory, self.plan, self.progress = peers, directory, plan, progress
        self.available = sorted(os.sched_getaffinity(0))
        pinned = plan.pin and len(self.available) >= 2
        self.driver_cpu = self.available[0] if pinned else None
        self.daemon_cpu = self.available[-1] if pinned else None
        self.running: dict[str, RunningPeer] = {}
        self.results: list[dict[str, Any]] = []
        self.absent: list[dict[str, Any]] = []

    def start(self, peer: Peer) -> None:
        cpus = {self.daemon_cpu} if self.daemon_cpu is not None else None
        self.running[peer.name] = RunningPeer(peer, self.directory, cpus, QUEUE_SIZE, MEMORY)

    def close(self) -> None:
        os.sched_setaffinity(0, self.available)
        for one in self.running.values():
            one.close()

    def place_driver(self, shared: bool) -> bool:
        """Put the driver where a mode wants it; False where that cannot be."""
        if self.driver_cpu is not None and self.daemon_cpu is not None:
            os.sched_setaffinity(0, {self.daemon_cpu if shared else self.driver_cpu})
        return self.driver_cpu is not None or not shared

    def missing(self, workload: str, peer: str, reason: str, failed: bool) -> None:
        self.absent.append({"workload": workload, "peer": peer, "reason": reason, "failed": failed})

    def workload(self, workload: Workload, share: Callable[[int], float]) -> None:
        """All peers and modes of one workload; a daemon that fails is started again for the next."""
        benches: list[Bench] = []
        runs: dict[tuple[str, str], list[Measurement]] = {}
        plan = self.plan

        def guard(peer: str, work: Callable[[], Any]) -> Any:
            try:
                return work()
            except Unavailable as reason:
                self.missing(workload.name, peer, str(reason), False)
            except (WrongData, DriverError, ReplyError, OSError, MemoryError) as error:
                self.missing(workload.name, peer, str(error), True)
                self.running[peer].close()
                self.start(self.running[peer].peer)
            return None

        for peer in self.peers:
            made = guard(
                peer.name, partial(Bench, self.running[peer.name], workload, self.directory, plan.depth)
            )
            if made is not None:
                benches.append(made)
        modes = [mode for mode in plan.modes if mode.name in workload.modes]
        for repeat in range(plan.repeats):
            for mode in modes:
                if not self.place_driver(mode.shared):
                    continue
                # Every other repeat in the opposite order: nobody always runs in another's wake.
                for bench in benches[:: 1 if repeat % 2 == 0 else -1]:
                    name = bench.peer.peer.name
                    measured = guard(name, partial(bench.measure, plan.seconds, mode, True))
                    if measured is None:
                        benches.remove(bench)
                        continue
                    runs.setdefault((mode.name, name), []).append(measured)
                if workload.bare and not mode.polled:
                    measured = bare.measure(workload.bare, self.directory, plan.seconds)
                    runs.setdefault((mode.name, bare.NAMES[workload.bare]), []).append(measured)
            self.progress(share(repeat + 1), workload.name)
        calls = {(mode, bench.peer.peer.name): n for bench in benches for mode, n in bench.calls.items()}
        for bench in benches:
            guard(bench.peer.peer.name, bench.close)
        depth = plan.depth or workload.depth
        for (mode_name, name), measured in runs.items():
            row = {"workload": workload.name, "mode": mode_name, "peer": name, "depth": depth}
            row["by"] = workload.by
            row |= row_of(measured, workload.unit) | {"calls_per_operation": calls.get((mode_name, name))}
            self.results.append(row)


def measure_all(
    peers: Sequence[Peer],
    directory: Path,
    plan: Plan = Plan(),  # noqa: B008
    progress: Progress = lambda _share, _text: None,
) -> dict[str, Any]:
    """Compare daemons by files made in `directory`; all results, as what `--json` writes.

    A daemon that breaks, or returns wrong data, in one workload stands in `absent` for it, as failed, and is started
    again for the next.  Raises `PeerError` for one that does not start.
    """
    _raise_descriptor_limit()
    run = _Run(peers, directory, plan, progress)
    total = len(plan.workloads) + 0.5 + len(plan.queues) / 2 + len(plan.paces) / 4 + len(plan.inodes)
    try:
        starts = _start_ups(peers, directory, plan.repeats)
        progress(0.5 / total, "start-up times")
        for peer in peers:
            run.start(peer)
        idle = {name: one.private_bytes() for name, one in run.running.items()}
        for i, workload in enumerate(plan.workloads):
            run.workload(
                workload,
                lambda repeat, i=i: (0.5 + i + repeat / plan.repeats) / total,  # type: ignore[misc]
            )
        busy = {name: one.private_bytes() for name, one in run.running.items()}
    finally:
        run.close()
    done = len(plan.workloads) + 0.5
    queues = scaling.queues(
        peers,
        directory,
        plan.queues,
        plan.seconds,
        plan.repeats,
        lambda n: progress((done + n / 2) / total, "queues"),
    )
    done += len(plan.queues) / 2
    paces = scaling.paces(
        peers, directory, plan.paces, lambda n: progress((done + n / 4) / total, "requests now and then")
    )
    done += len(plan.paces) / 4
    inodes = scaling.inodes(
        peers, directory, plan.inodes, lambda n, text: progress(min((done + n) / total, 1.0), text)
    )
    progress(1.0, "done")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine() | {"file_system": file_system(directory)},
        "conditions": {
            "seconds": plan.seconds,
            "repeats": plan.repeats,
            "depth": plan.depth,
            "queue_size": QUEUE_SIZE,
            "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            "driver_cpu": run.driver_cpu,
            "daemon_cpu": run.daemon_cpu,
        },
        "peers": [
            {
                "name": peer.name,
                "version": peer.version,
                "command": list(peer.command),
                "accepts_ms": summary([1e3 * start.connected for start in starts[peer.name]]),
                "first_reply_ms": summary([1e3 * start.answered for start in starts[peer.name]]),
                "private_mib_idle": idle[peer.name] / MIB,
                "private_mib_after": busy[peer.name] / MIB,
            }
            for peer in peers
        ],
        "results": run.results,
        "absent": run.absent,
        "queues": queues,
        "inodes": inodes,
        "paces": paces,
    }


def _raise_descriptor_limit() -> None:
    """As many descriptors as this machine lets its daemons have: some keep one for each inode."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    for limit in (most, hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
            return


def _start_ups(peers: Sequence[Peer], directory: Path, repeats: int) -> dict[str, list[StartUp]]:
    """Start and stop each daemon a few times, in turn; no processor is reserved for anybody."""
    starts: dict[str, list[StartUp]] = {peer.name: [] for peer in peers}
    for _ in range(repeats):
        for peer in peers:
            with RunningPeer(peer, directory, None, QUEUE_SIZE, MEMORY) as running:
                starts[peer.name].append(running.start_up)
    return starts

# SPDX-License-Identifier: Apache-2.0
"""How daemons grow: with request queues that are loaded at the same time, and with inodes that a guest holds; and what
they cost a guest that asks only now and then, which is when a daemon that polls would do it in vain."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from virtiofs.client.arena import PAGE
from virtiofs.client.figures import summary
from virtiofs.client.peers import MEMORY, Peer, RunningPeer
from virtiofs.client.script import Numbered, Replies, Script
from virtiofs.client.session import ReplyError
from virtiofs.client.workloads import WORKLOADS, Workload, many
from virtiofs.fuse.abi import FUSE_ENTRY_OUT
from virtiofs.virtqueue.driver import DriverError

PACED_SECONDS = 1.0  # of requests at one pace
QUEUE_WORK = ("GETATTR", "READ 4 KiB")
PROBE_ROUNDS = 200
RING_MEMORY = 20 << 20  # of the guest, for the rings of a queue with their indirect tables
LANES = 16  # LOOKUPs in flight while inodes are gathered
ERRORS = (DriverError, ReplyError, OSError, MemoryError)


def queues(
    peers: Sequence[Peer],
    directory: Path,
    counts: Sequence[int],
    seconds: float,
    repeats: int,
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Operations per second with 1 and more driver threads, each with a request queue of its own, one request in
    flight in each; nobody is pinned.  A daemon that serves only one queue says so in its row."""
    rows = []
    work = [workload for workload in WORKLOADS if workload.name in QUEUE_WORK]
    for done, count in enumerate(counts):
        for peer in peers:
            if count > 1 and not peer.queues:
                continue
            for workload in work:
                row: dict[str, Any] = {"workload": workload.name, "queues": count, "peer": peer.name}
                try:
                    memory = MEMORY + count * RING_MEMORY
                    with RunningPeer(peer, directory, queues=count, memory=memory) as running:
                        offered = running.device.front_end.queue_count
                        rates = _many_threads(running, workload, directory, count, seconds, repeats)
                    row |= {"operations_per_second": summary(rates), "offered": (offered or 2) - 1}
                except ERRORS as error:
                    row["failed"] = str(error)
                rows.append(row)
        progress(done + 1)
    return rows


def _many_threads(
    peer: RunningPeer, workload: Workload, directory: Path, count: int, seconds: float, repeats: int
) -> list[float]:
    """Operations per second of each repeat."""
    script = workload.prepare(peer.session, directory)
    length = script.memory_needed(1)
    rings = [queue.ring for queue in peer.device.queues[1 : count + 1]]
    loads = [script.load(ring, 1, peer.device.arena.take(length, PAGE)) for ring in rings]
    rounds = max(int(PROBE_ROUNDS * seconds * 1e9 / loads[0].run(PROBE_ROUNDS)), 1)
    rates = []
    for _ in range(repeats):
        failures: list[Exception] = []
        ends: list[float] = []
        together = threading.Barrier(count + 1)

        def work(
            index: int,
            together: threading.Barrier = together,
            failures: list[Exception] = failures,
            ends: list[float] = ends,
        ) -> None:
            together.wait()
            try:
                loads[index].run(rounds, timeout=30.0, first=index * rounds)
            except Exception as error:
                failures.append(error)
            ends.append(time.monotonic())

        threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        together.wait()
        begin = time.monotonic()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        if not all(script.verify(Replies(load, 0)) for load in loads):
            raise OSError(f"{workload.name}: wrong data on one of {count} queues")
        rates.append(rounds * count / (max(ends) - begin))
    return rates


def inodes(
    peers: Sequence[Peer],
    directory: Path,
    counts: Sequence[int],
    progress: Callable[[float, str], None],
) -> list[dict[str, Any]]:
    """What a daemon spends on inodes that a guest looked up and keeps: memory, descriptors, and time of a LOOKUP.

    Memory is the daemon's own; what the kernel holds for an open descriptor comes on top of it.
    """
    rows = []
    for done, count in enumerate(counts):
        place = many(directory, count)
        host = (place / Numbered(b"file-").at(count - 1)).stat().st_ino
        for at, peer in enumerate(peers):
            row: dict[str, Any] = {"inodes": count, "peer": peer.name}
            try:
                with RunningPeer(peer, directory) as running:
                    row |= _gather(running, place.name, count, host)
            except ERRORS as error:
                row["failed"] = str(error)
            rows.append(row)
            progress(done + (at + 1) / len(peers), f"{count:,} inodes")
    return rows


def paces(
    peers: Sequence[Peer], directory: Path, intervals: Sequence[float], progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Processor time of a daemon whose guest sends one GETATTR every so many seconds: of each, and of all time."""
    rows = []
    for done, interval in enumerate(intervals):
        for peer in peers:
            row: dict[str, Any] = {"interval": interval, "peer": peer.name}
            try:
                with RunningPeer(peer, directory) as running:
                    row |= _ask_now_and_then(running, interval)
            except ERRORS as error:
                row["failed"] = str(error)
            rows.append(row)
        progress(done + 1)
    return rows


def _ask_now_and_then(peer: RunningPeer, interval: float) -> dict[str, Any]:
    count = max(round(PACED_SECONDS / interval), 20)
    cpu, begin = peer.cpu_seconds(), time.monotonic()
    for i in range(count):
        peer.session.getattr(1)
        time.sleep(max(begin + (i + 1) * interval - time.monotonic(), 0))
    cpu, elapsed = peer.cpu_seconds() - cpu, time.monotonic() - begin
    return {"interval_us": elapsed / count * 1e6, "cpu_us": cpu / count * 1e6, "cpu_share": cpu / elapsed}


def _gather(peer: RunningPeer, name: str, count: int, last_inode: int) -> dict[str, Any]:
    script = Script(peer.session)
    parent = peer.session.lookup(1, name).nodeid
    script.add("lookup", parent, [Numbered(b"file-")])
    load = script.load(
        peer.device.queues[1].ring, LANES, peer.device.arena.take(script.memory_needed(LANES), PAGE)
    )
    memory, descriptors = peer.private_bytes(), peer.descriptors()
    elapsed = load.run(count, timeout=60.0)
    with contextlib.suppress(StopIteration):
        lane = next(lane for lane in range(LANES) if load.round(lane) == count - 1)
        if FUSE_ENTRY_OUT.unpack(Replies(load, lane).payload(0), 0).attr.ino != last_inode:
            raise OSError("a LOOKUP found another file")
    return {
        "bytes_per_inode": max(peer.private_bytes() - memory, 0) / count,
        "descriptors": peer.descriptors() - descriptors,
        "us_per_lookup": elapsed / 1e3 / count,
    }

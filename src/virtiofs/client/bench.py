# SPDX-License-Identifier: Apache-2.0
"""The same work against several daemons in one run: operations per second, latency, processor time, memory.

What keeps it honest: every daemon gets the same requests through the same rings from the same loop, compiled
and without the interpreter; runs are interleaved (all daemons in turn, then again) so that a slow minute of
the machine hits all of them; medians of the repeats are reported with their spread; each workload's reply is
compared with the host's file once before it is timed and the last one afterwards; every reply's length,
number and error is checked while timing.

The table `MODES` has the ways to run.  *interrupt*: the driver sleeps until the device writes its eventfd, as a
guest does.  *polled*: the driver watches the used ring.  *one processor*: as interrupt, with the driver on the
daemon's processor; nobody is woken from idle across processors, which on virtual machines costs more than
everything else together, so this shows best what the daemon itself costs.
"""

from __future__ import annotations

import errno
import itertools
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from virtiofs.client.arena import PAGE
from virtiofs.client.peers import Peer, RunningPeer, StartUp
from virtiofs.client.session import Session
from virtiofs.fuse.abi import BY_NAME, FUSE_ATTR_OUT, FUSE_ENTRY_OUT, FUSE_IN_HEADER, FUSE_OUT_HEADER
from virtiofs.virtqueue.driver import Load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.virtqueue.driver import Prepared

QUEUE_SIZE = 1024
MEMORY = 96 << 20
FILES = 64  # names that LOOKUP goes through
FILE_SIZE = 64 << 20  # what READ goes through; in the page cache
MIB = 1 << 20
STRIDE = 17  # small reads go through the file in steps of so many blocks: no two in a row are neighbours
US = 1e6


class Work(NamedTuple):
    """A workload made ready for one daemon."""

    requests: list[Prepared]
    verify: Callable[
        [int, int, bytes], bool
    ]  # (request's number in the run, of the list, reply): is it right
    finish: Callable[[int], None]  # after this many requests: give back what they took
    vary: tuple[int, int, int, int] | None = None  # for `Load.vary`


class Workload(NamedTuple):
    """One kind of work: `requests` per operation, `data` bytes moved by one, `prepare(session,
    directory)`."""

    name: str
    prepare: Callable[[Session, Path], Work]
    requests: int = 1
    data: int = 0


class Mode(NamedTuple):
    """How the driver waits, and whether it runs on the daemons' processor."""

    name: str
    polled: bool = False
    shared: bool = False


MODES = (Mode("interrupt"), Mode("polled", polled=True), Mode("one processor", shared=True))


class Measurement(NamedTuple):
    """One timed run."""

    operations: int
    seconds: float
    p50: float  # seconds, of one request
    p99: float
    cpu: float  # seconds of the daemon per operation
    kicks: float  # per operation
    wakes: float  # of the driver, per operation


def _message(
    name: str, nodeid: int, *, body: bytes = b"", room: int | None = None, pages: int = 0, **fields: int
) -> Prepared:
    """A prepared request with the pieces Linux would give it: `pages` of data in the reply, a page each."""
    operation = BY_NAME[name]
    body = (operation.args.pack(**fields) if operation.args else b"") + body
    header = FUSE_IN_HEADER.pack(
        len=FUSE_IN_HEADER.size + len(body), opcode=operation.opcode, nodeid=nodeid, pid=1
    )
    out = FUSE_OUT_HEADER.size
    if name == "forget":
        return header + body, [len(header) + len(body)], [], 0
    readable = [len(header), len(body)] if body else [len(header)]
    if pages:
        return header + body, readable, [out] + [PAGE] * pages, out + PAGE * pages
    payload = operation.reply.size if operation.reply else 0
    return header + body, readable, [out, payload] if payload else [out], out + payload


def _nothing(_count: int) -> None:
    pass


def _getattr(session: Session, directory: Path) -> Work:
    host = (directory / "names" / "file-0").stat()
    parent = session.lookup(1, "names").nodeid
    node = session.lookup(parent, "file-0").nodeid

    def verify(_number: int, _index: int, reply: bytes) -> bool:
        attr = FUSE_ATTR_OUT.unpack(reply, FUSE_OUT_HEADER.size).attr
        return (attr.ino, attr.size) == (host.st_ino, host.st_size)

    return Work([_message("getattr", node)], verify, _nothing)


def _names(session: Session, directory: Path) -> tuple[list[tuple[bytes, os.stat_result, int]], int]:
    """The files that LOOKUP goes through, held by one lookup each: name, host's status, node; and their
    parent."""
    parent = session.lookup(1, "names").nodeid
    names = [f"file-{i}".encode() for i in range(FILES)]
    hosts = [(directory / "names" / os.fsdecode(name)).stat() for name in names]
    nodes = [session.lookup(parent, name).nodeid for name in names]
    return list(zip(names, hosts, nodes, strict=True)), parent


def _lookup(session: Session, directory: Path) -> Work:
    files, parent = _names(session, directory)

    def verify(_number: int, index: int, reply: bytes) -> bool:
        entry = FUSE_ENTRY_OUT.unpack(reply, FUSE_OUT_HEADER.size)
        _, host, node = files[index]
        return (entry.nodeid, entry.attr.ino) == (node, host.st_ino)

    def finish(count: int) -> None:
        for i, (_, _, node) in enumerate(files):
            session.forget(node, (count + FILES - 1 - i) // FILES)

    return Work([_message("lookup", parent, body=name + b"\0") for name, _, _ in files], verify, finish)


def _lookup_forget(session: Session, directory: Path) -> Work:
    files, parent = _names(session, directory)
    requests = []
    for name, _, node in files:
        requests += [_message("lookup", parent, body=name + b"\0"), _message("forget", node, nlookup=1)]

    def verify(_number: int, index: int, reply: bytes) -> bool:
        return (
            index % 2 == 1
            or FUSE_ENTRY_OUT.unpack(reply, FUSE_OUT_HEADER.size).nodeid == files[index // 2][2]
        )

    return Work(requests, verify, _nothing)


def _read(size: int) -> Callable[[Session, Path], Work]:
    def prepare(session: Session, directory: Path) -> Work:
        node = session.lookup(1, "data").nodeid
        try:
            handle = session.open(node, os.O_RDONLY).fh
        except OSError as error:
            if error.errno != errno.ENOSYS:  # ENOSYS: this device wants no OPEN, reads go without a handle
                raise
            handle = 0
        request = _message("read", node, pages=size // PAGE, fh=handle, size=size)
        step = size if size >= MIB else size * STRIDE
        blocks = FILE_SIZE // step

        def verify(number: int, _index: int, reply: bytes) -> bool:
            with (directory / "data").open("rb") as file:
                file.seek(step * (number % blocks))
                return reply[FUSE_OUT_HEADER.size :] == file.read(size)

        offset = FUSE_IN_HEADER.size + 8  # of fuse_read_in's field, in the message
        return Work([request], verify, _nothing, (offset, 0, step, blocks))

    return prepare


WORKLOADS = (
    Workload("GETATTR", _getattr),
    Workload("LOOKUP", _lookup),
    Workload("LOOKUP + FORGET", _lookup_forget, requests=2),
    Workload("READ 4 KiB", _read(4096), data=4096),
    Workload("READ 1 MiB", _read(MIB), data=MIB),
)


def make_share(directory: Path) -> None:
    """The files the workloads use."""
    generator = random.Random(26)
    (directory / "names").mkdir()
    for i in range(FILES):
        (directory / "names" / f"file-{i}").write_bytes(generator.randbytes(100 + i))
    with (directory / "data").open("wb") as file:
        for _ in range(FILE_SIZE // MIB):
            file.write(generator.randbytes(MIB))
    directory.chmod(0o755)


class WrongData(Exception):
    """A daemon answered with other data than the file holds: its numbers mean nothing."""


class Bench:
    """One workload on one daemon, ready to be timed again and again."""

    def __init__(self, peer: RunningPeer, workload: Workload, directory: Path, depth: int):
        self.peer = peer
        self.workload = workload
        self.work = workload.prepare(peer.session, directory)
        self.load = self._load(1)
        self._run(len(self.work.requests), False)
        for index in range(len(self.work.requests)):
            self._verify(index, index)
        if depth > 1:
            self.load = self._load(depth)

    def _load(self, depth: int) -> Load:
        length = Load.memory_needed(self.work.requests, depth)
        address = self.peer.device.arena.take(length, PAGE)
        ring = self.peer.device.queues[self.peer.session.queue].ring
        load = Load(ring, self.work.requests, depth, address)
        if self.work.vary:
            load.vary(*self.work.vary)
        return load

    def _verify(self, number: int, index: int) -> None:
        if not self.work.verify(number, index, self.load.reply(0, index)):
            raise WrongData(f"{self.peer.peer.name}: {self.workload.name} returned wrong data")

    def _run(self, count: int, polled: bool, record: bool = False) -> tuple[int, memoryview | None]:
        result = self.load.run(count, polled, record=record)
        self.work.finish(count)
        return result

    def measure(self, seconds: float, polled: bool) -> Measurement:
        """Time about `seconds` of work.  Raises `WrongData`, `DriverError`."""
        each = len(self.work.requests)
        count = each
        elapsed, _ = self._run(count, polled)
        while elapsed < 0.02e9:  # warm, and find out how many fit
            count *= 2
            elapsed, _ = self._run(count, polled)
        count = max(int(count * seconds * 1e9 / elapsed) // each, 1) * each
        kicks, wakes, cpu = self.load.kicks, self.load.wakes, self.peer.cpu_seconds()
        elapsed, latencies = self._run(count, polled, record=True)
        cpu = self.peer.cpu_seconds() - cpu
        assert latencies is not None
        if self.load.depth == 1:  # at a larger depth the last request's place is not known
            self._verify(count - 1, (count - 1) % each)
        ordered = sorted(latencies[:: self.workload.requests])
        operations = count // self.workload.requests
        return Measurement(
            operations,
            elapsed / 1e9,
            ordered[len(ordered) // 2] / 1e9,
            ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)] / 1e9,
            cpu / operations,
            (self.load.kicks - kicks) / operations,
            (self.load.wakes - wakes) / operations,
        )


def measure_all(
    peers: list[Peer],
    directory: Path,
    seconds: float = 1.0,
    repeats: int = 5,
    depth: int = 1,
    pin: bool = True,
    workloads: tuple[Workload, ...] = WORKLOADS,
    modes: tuple[Mode, ...] = MODES,
    progress: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Compare daemons on a directory made by `make_share`; all results, as what `--json` writes.

    `seconds`: of each timed run.  `repeats`: of the whole round.  `depth`: requests in flight.  `pin`: the driver
    on one processor and the daemons on another (where there are two).
    Raises `PeerError`, `WrongData`, `DriverError`.
    """
    available = sorted(os.sched_getaffinity(0))
    pin = pin and len(available) >= 2
    driver_cpu, daemon_cpu = (available[0], available[-1]) if pin else (None, None)
    starts = _start_ups(peers, directory, max(repeats, 3))
    progress("start-up times taken")
    running: list[RunningPeer] = []
    runs: dict[tuple[str, str, str], list[Measurement]] = {}
    try:
        for peer in peers:
            cpus = {daemon_cpu} if daemon_cpu is not None else None
            running.append(RunningPeer(peer, directory, cpus, QUEUE_SIZE, MEMORY))
        idle = [one.private_bytes() for one in running]
        work = [(kind, [Bench(one, kind, directory, depth) for one in running]) for kind in workloads]
        for repeat in range(repeats):
            for (kind, benches), mode in itertools.product(work, modes):
                if driver_cpu is not None and daemon_cpu is not None:
                    os.sched_setaffinity(0, {daemon_cpu if mode.shared else driver_cpu})
                elif mode.shared:
                    continue
                # Every other repeat in the opposite order: nobody always runs in another's wake.
                for bench in benches if repeat % 2 == 0 else reversed(benches):
                    key = (kind.name, mode.name, bench.peer.peer.name)
                    runs.setdefault(key, []).append(bench.measure(seconds, mode.polled))
            progress(f"repeat {repeat + 1} of {repeats} done")
        busy = [one.private_bytes() for one in running]
    finally:
        os.sched_setaffinity(0, available)
        for one in running:
            one.close()
    data = {kind.name: kind.data for kind in workloads}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "conditions": {
            "seconds": seconds,
            "repeats": repeats,
            "depth": depth,
            "queue_size": QUEUE_SIZE,
            "driver_cpu": driver_cpu,
            "daemon_cpu": daemon_cpu,
        },
        "peers": [
            {
                "name": peer.name,
                "version": peer.version,
                "command": list(peer.command),
                "accepts_ms": summary([1e3 * start.connected for start in starts[peer.name]]),
                "first_reply_ms": summary([1e3 * start.answered for start in starts[peer.name]]),
                "private_mib_idle": idle_bytes / MIB,
                "private_mib_after": busy_bytes / MIB,
            }
            for peer, idle_bytes, busy_bytes in zip(peers, idle, busy, strict=True)
        ],
        "results": [
            {"workload": kind, "mode": mode, "peer": peer, **_result(measured, data[kind])}
            for (kind, mode, peer), measured in runs.items()
        ],
    }


def _start_ups(peers: list[Peer], directory: Path, repeats: int) -> dict[str, list[StartUp]]:
    """How long each daemon takes to start, measured in turn, on all processors."""
    starts: dict[str, list[StartUp]] = {peer.name: [] for peer in peers}
    for _ in range(repeats):
        for peer in peers:
            with RunningPeer(peer, directory, None, QUEUE_SIZE, MEMORY) as running:
                starts[peer.name].append(running.start_up)
    return starts


def summary(values: list[float]) -> dict[str, float]:
    """The median of repeats and their spread."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _result(runs: list[Measurement], data: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "operations": sum(run.operations for run in runs),
        "operations_per_second": summary([run.operations / run.seconds for run in runs]),
        "p50_us": summary([run.p50 * US for run in runs]),
        "p99_us": summary([run.p99 * US for run in runs]),
        "cpu_us": summary([run.cpu * US for run in runs]),
        "kicks_per_operation": statistics.median(run.kicks for run in runs),
        "wakes_per_operation": statistics.median(run.wakes for run in runs),
    }
    if data:
        result["mib_per_second"] = summary([run.operations / run.seconds * data / MIB for run in runs])
    return result


def machine() -> dict[str, Any]:
    """What this was measured on."""
    model = next(_fields("/proc/cpuinfo", "model name"), platform.processor() or platform.machine())
    hypervisor = any("hypervisor" in flags.split() for flags in _fields("/proc/cpuinfo", "flags"))
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "virtual": hypervisor,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _fields(path: str, name: str) -> Iterator[str]:
    try:
        for line in Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                yield value.strip()
    except OSError:
        return

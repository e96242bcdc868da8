# SPDX-License-Identifier: Apache-2.0
"""The same calls on file systems in Python, side by side: operations per second, and what they cost the server.

All are mounted at once; their repeats are interleaved, every other one in the opposite order, and medians are
reported.  All calls are made by the same loop in Python, and what that costs is in each figure.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from virtiofs.client.figures import machine
from virtiofs.fuse.mountpoint import mounts

HERE = Path(__file__).parent
SIZE = 1 << 20
READY_SECONDS = 20.0
WARM_SECONDS = 0.05
MOUNT = (sys.executable, "-m", "virtiofs", "mount")


class Server(NamedTuple):
    """What is measured: a command that mounts, which lacks the mount point, and the module it needs."""

    name: str
    command: tuple[str, ...]
    module: str = ""


SERVERS = (
    Server("virtiofs", (*MOUNT, f"{HERE / 'ours.py'}:Tree")),
    Server("virtiofs async", (*MOUNT, f"{HERE / 'ours.py'}:Awaited")),
    Server("pyfuse3", (sys.executable, str(HERE / "with_pyfuse3.py")), "pyfuse3"),
    Server("mfusepy", (sys.executable, str(HERE / "with_mfusepy.py")), "mfusepy"),
    Server("pyfuse3 class, by virtiofs", (*MOUNT, f"{HERE / 'with_pyfuse3.py'}:Tree"), "pyfuse3"),
)


class Work(NamedTuple):
    """One kind of call: `prepare(place)` gives what is called again and again."""

    name: str
    prepare: Callable[[Path, contextlib.ExitStack], Callable[[], object]]


def _descriptor(place: Path, name: str, stack: contextlib.ExitStack) -> int:
    fd = os.open(place / name, os.O_RDWR)
    stack.callback(os.close, fd)
    return fd


def _attributes(place: Path, stack: contextlib.ExitStack) -> Callable[[], object]:
    fd = _descriptor(place, "null", stack)
    return lambda: os.fstat(fd)


def _name(place: Path, stack: contextlib.ExitStack) -> Callable[[], object]:
    directory = os.open(place, os.O_PATH)
    stack.callback(os.close, directory)
    return lambda: os.stat("null", dir_fd=directory)


def _reading(size: int) -> Callable[[Path, contextlib.ExitStack], Callable[[], object]]:
    def prepare(place: Path, stack: contextlib.ExitStack) -> Callable[[], object]:
        fd, buffer = _descriptor(place, "data", stack), [bytearray(size)]
        whole = os.pread(fd, SIZE, 0)
        if os.preadv(fd, buffer, SIZE - size) != size or bytes(buffer[0]) != whole[-size:]:
            raise OSError(f"{place}: what is read is wrong")
        return lambda: os.preadv(fd, buffer, 0)

    return prepare


def _writing(place: Path, stack: contextlib.ExitStack) -> Callable[[], object]:
    fd, data = _descriptor(place, "data", stack), bytes(range(256)) * 16
    os.pwrite(fd, data, 4096)
    if os.pread(fd, 4096, 4096) != data:
        raise OSError(f"{place}: what was written is not read")
    return lambda: os.pwrite(fd, data, 4096)


WORKS = (
    Work("fstat: GETATTR", _attributes),
    Work("stat: LOOKUP", _name),
    Work("read of nothing", lambda place, stack: _null_read(place, stack)),
    Work("read 4 KiB", _reading(4096)),
    Work("read 128 KiB", _reading(128 << 10)),
    Work("write 4 KiB", _writing),
)


def _null_read(place: Path, stack: contextlib.ExitStack) -> Callable[[], object]:
    fd = _descriptor(place, "null", stack)
    return lambda: os.pread(fd, 4096, 0)


@contextlib.contextmanager
def mounted(server: Server, place: Path) -> Iterator[int]:
    """The server, mounted at `place`: its process id.  Raises `OSError` saying what it said."""
    place.mkdir()
    process = subprocess.Popen(
        [*server.command, str(place)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not mounts(str(place)):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise OSError(f"{server.name} does not mount: {process.communicate()[1].strip()[-500:]}")
            time.sleep(0.01)
        yield process.pid
    finally:
        unmount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*unmount, str(place)], stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=READY_SECONDS)
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """What a process and those below it have used."""
    used, pids = 0.0, [pid]
    for one in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                used += int(Path(f"/proc/{one}/task/{task}/schedstat").read_text().split()[0]) / 1e9
                pids += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return used


def timed(call: Callable[[], object], seconds: float) -> tuple[int, float]:
    """Call again and again for about so long: how often, in how many seconds."""
    count = 16
    while True:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        took = time.perf_counter() - begin
        if took >= seconds / 2:
            return count, took
        count = max(2 * count, int(count * seconds / max(took, 1e-6)))


def measure(
    seconds: float = 0.3,
    repeats: int = 5,
    servers: Sequence[Server] = SERVERS,
    works: Sequence[Work] = WORKS,
    progress: Callable[[float, str], None] = lambda _share, _text: None,
) -> dict[str, Any]:
    """All results, as `report` takes them.  What is not installed is left out and named.  Raises `OSError`."""
    missing = [one.name for one in servers if one.module and importlib.util.find_spec(one.module) is None]
    there = [one for one in servers if one.name not in missing]
    rates: dict[tuple[str, str], list[float]] = {}
    costs: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virtiofs-bench-")))
        places = {one.name: base / str(number) for number, one in enumerate(there)}
        pids = {one.name: stack.enter_context(mounted(one, places[one.name])) for one in there}
        for done, work in enumerate(works):
            with contextlib.ExitStack() as opened:
                calls = {one.name: work.prepare(places[one.name], opened) for one in there}
                for call in calls.values():
                    timed(call, WARM_SECONDS)
                for repeat in range(repeats):
                    for one in there[:: 1 if repeat % 2 == 0 else -1]:
                        used = cpu_seconds(pids[one.name])
                        count, took = timed(calls[one.name], seconds)
                        rates.setdefault((work.name, one.name), []).append(count / took)
                        spent = cpu_seconds(pids[one.name]) - used
                        costs.setdefault((work.name, one.name), []).append(spent / count)
                    progress((done + (repeat + 1) / repeats) / len(works), work.name)
    return {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "missing": missing,
        "servers": [one.name for one in there],
        "works": [work.name for work in works],
        "rates": {f"{work}|{name}": statistics.median(found) for (work, name), found in rates.items()},
        "costs": {f"{work}|{name}": statistics.median(found) for (work, name), found in costs.items()},
    }


def report(results: dict[str, Any]) -> str:
    """The table, in Markdown."""
    names, rates, costs = results["servers"], results["rates"], results["costs"]
    lines = [
        "| calls/s (server's CPU, us) | " + " | ".join(names) + " | virtiofs, times the best other |",
        "|---" * (len(names) + 2) + "|",
    ]
    others = [name for name in names if name in ("pyfuse3", "mfusepy")]
    for work in results["works"]:
        cells = [f"{rates[f'{work}|{name}']:,.0f} ({1e6 * costs[f'{work}|{name}']:.1f})" for name in names]
        best = max((rates[f"{work}|{name}"] for name in others), default=0.0)
        times = f"{rates[f'{work}|virtiofs'] / best:.2f}" if best and "virtiofs" in names else "-"
        lines.append(f"| {work} | " + " | ".join(cells) + f" | {times} |")
    for name in results["missing"]:
        lines.append(f"\nNot there: {name}")
    return "\n".join(lines)


def page(results: dict[str, Any]) -> str:
    """The table with where it is from."""
    host = results["machine"]
    where = f"{host['processor']}, {host['processors']} processors{', virtual' if host['virtual'] else ''}"
    where += f", Linux {host['kernel']}, Python {host['python']}"
    return (
        "# File systems in Python\n\n"
        f"By `virtiofs bench --python` on {results['date']}; {where}.\n\n{report(results)}\n"
    )

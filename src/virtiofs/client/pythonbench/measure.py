# SPDX-License-Identifier: Apache-2.0
"""The same calls on file systems in Python, side by side: calls per second, and what they cost the server.

All are mounted at once, with the same options; their repeats are interleaved, every other one in the opposite order,
and medians are reported.  The calls are made by a compiled loop.  Each file system counts how often its methods are
called, and where that is not the same for all the report says so: then the kernel asked one of them more than another.

The calling program and all servers are kept on one processor (`pin`).  Left to the kernel, a run measures where it
happened to put them: a wake-up that crosses processors takes as long as ten requests, and the kernel changes its mind.
On one processor only the work itself counts, of the program, of the kernel, and of the server.  Their processor time is
also what is counted as time then, so that it does not matter what else runs there: they never run at the same time, and
one of them always does.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from virtiofs.client.figures import machine
from virtiofs.client.pythonbench import bare, calls
from virtiofs.fuse.mountpoint import mounts

HERE = Path(__file__).parent
SIZE = 1 << 20
READY_SECONDS = 20.0
WARM_SECONDS = 0.02
SLICES = 5  # that a repeat is cut into, so that what else the machine does meets all servers alike
COUNTED = 64  # calls for which the server's are counted
BARE = "without Python"
OTHERS = ("pyfuse3", "mfusepy")
NOTES = """
- Each column is the same file system: two files, nothing kept by the kernel, so that a call is a request, or three for
  `stat`. All mounts check permissions in the kernel, take reads and writes of up to 1 MiB, and negotiate neither
  writeback nor splicing.
- virtiofs, pyfuse3 and mfusepy serve with one thread, which is the quickest for each (`threads = 0` here, `nothreads`
  there). "8 threads" is a class of ours that says nothing about it.
- {seconds}
- *Without Python*: the same file system as compiled functions. That is what the kernel, its switches between program
  and server, and the program itself take. No file system in Python can do more calls; *the limit* is how many times
  those of the best other that is.
- *Python's us a call*: the server's processor time less that of the one without Python.
"""
SECONDS = {
    True: "Program and servers are on one processor, where one of the two always runs. A second is one of their time.",
    False: "Program and servers are where the kernel puts them. A second is one of the clock's.",
}
MOUNT = (sys.executable, "-m", "virtiofs", "mount")


class Server(NamedTuple):
    """What is measured: a command that mounts, which lacks the mount point, and the module it needs."""

    name: str
    command: tuple[str, ...]
    module: str = ""


SERVERS = (
    Server("virtiofs", (*MOUNT, f"{HERE / 'ours.py'}:Tree")),
    Server("virtiofs, 8 threads", (*MOUNT, f"{HERE / 'ours.py'}:Threaded")),
    Server("virtiofs async", (*MOUNT, f"{HERE / 'ours.py'}:Awaited")),
    Server("pyfuse3", (sys.executable, str(HERE / "with_pyfuse3.py")), "pyfuse3"),
    Server("mfusepy", (sys.executable, str(HERE / "with_mfusepy.py")), "mfusepy"),
    Server("pyfuse3 class, by virtiofs", (*MOUNT, f"{HERE / 'with_pyfuse3.py'}:Tree"), "pyfuse3"),
    Server(BARE, (sys.executable, "-c", f"from {bare.__name__} import main; main()")),
)


Calls: TypeAlias = Callable[[int], object]  # makes so many


class Work(NamedTuple):
    """One kind of call: `prepare(place)` gives what makes a number of them."""

    name: str
    prepare: Callable[[Path, contextlib.ExitStack], Calls]


def _descriptor(place: Path, name: str, stack: contextlib.ExitStack, flags: int = os.O_RDWR) -> int:
    fd = os.open(place / name, flags)
    stack.callback(os.close, fd)
    return fd


def _attributes(place: Path, stack: contextlib.ExitStack) -> Calls:
    return partial(calls.fstats, _descriptor(place, "null", stack))


def _name(place: Path, stack: contextlib.ExitStack) -> Calls:
    return partial(calls.stats, _descriptor(place, "", stack, os.O_PATH), b"null")


def _nothing(place: Path, stack: contextlib.ExitStack) -> Calls:
    return partial(calls.reads, _descriptor(place, "null", stack), bytearray(4096), 0)


def _reading(size: int) -> Callable[[Path, contextlib.ExitStack], Calls]:
    def prepare(place: Path, stack: contextlib.ExitStack) -> Calls:
        fd, buffer = _descriptor(place, "data", stack), bytearray(size)
        whole = os.pread(fd, SIZE, 0)
        if os.preadv(fd, [buffer], SIZE - size) != size or bytes(buffer) != whole[-size:]:
            raise OSError(f"{place}: what is read is wrong")
        return partial(calls.reads, fd, buffer, size)

    return prepare


def _writing(place: Path, stack: contextlib.ExitStack) -> Calls:
    fd, data = _descriptor(place, "data", stack), bytes(range(256)) * 16
    os.pwrite(fd, data, 4096)
    if os.pread(fd, 4096, 4096) != data:
        raise OSError(f"{place}: what was written is not read")
    return partial(calls.writes, fd, data, 4096)


WORKS = (
    Work("fstat: GETATTR", _attributes),
    Work("stat: GETATTR, LOOKUP, GETATTR", _name),
    Work("read of nothing", _nothing),
    Work("read 4 KiB", _reading(4096)),
    Work("read 128 KiB", _reading(128 << 10)),
    Work("write 4 KiB", _writing),
)


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


def threads_of(pid: int) -> Iterator[int]:
    """The threads of a process and of those below it."""
    pids = [pid]
    for one in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                pids += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
                yield int(task)


def cpu_seconds(pid: int) -> float:
    """What a process and those below it have used, the kernel's part included."""
    used = 0.0
    for thread in threads_of(pid):
        with contextlib.suppress(OSError):
            used += int(Path(f"/proc/{thread}/schedstat").read_text().split()[0]) / 1e9
    return used


def counted(place: Path, make: Calls) -> float:
    """How many calls of the server's methods one call takes."""

    def so_far() -> int:
        return os.stat(place / "calls").st_size

    first, second = so_far(), so_far()
    make(COUNTED)
    return (so_far() - second - (second - first)) / COUNTED


def timed(make: Calls, count: int) -> float:
    """How many seconds so many calls take."""
    begin = time.perf_counter()
    make(count)
    return time.perf_counter() - begin


def count_for(make: Calls, seconds: float) -> int:
    """How many calls take about so long, found by making them."""
    count = 16
    while (took := timed(make, count)) < WARM_SECONDS:
        count *= 2
    return max(1, int(count * seconds / took))


@contextlib.contextmanager
def kept_on_one_processor(pids: Iterable[int]) -> Iterator[None]:
    """Ourselves and these processes, as far as they have their threads by now."""
    available = os.sched_getaffinity(0)
    for thread in [0, *(thread for pid in pids for thread in threads_of(pid))]:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread, {max(available)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


def measure(
    seconds: float = 0.3,
    repeats: int = 5,
    servers: Sequence[Server] = SERVERS,
    works: Sequence[Work] = WORKS,
    pin: bool = True,
    progress: Callable[[float, str], None] = lambda _share, _text: None,
) -> dict[str, Any]:
    """All results, as `report` takes them.  What is not installed is left out and named.  Raises `OSError`."""
    missing = [one.name for one in servers if one.module and importlib.util.find_spec(one.module) is None]
    there = [one for one in servers if one.name not in missing]
    rates: dict[tuple[str, str], list[float]] = {}
    costs: dict[tuple[str, str], list[float]] = {}
    requests: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virtiofs-bench-")))
        places = {one.name: base / str(number) for number, one in enumerate(there)}
        pids = {one.name: stack.enter_context(mounted(one, places[one.name])) for one in there}
        if pin:
            # Once each has been asked something of all kinds, so that it has its threads.
            for work in works:
                with contextlib.ExitStack() as opened:
                    for place in places.values():
                        work.prepare(place, opened)(1)
            stack.enter_context(kept_on_one_processor(pids.values()))
        for done, work in enumerate(works):
            with contextlib.ExitStack() as opened:
                makers = {one.name: work.prepare(places[one.name], opened) for one in there}
                requests[work.name] = {name: counted(places[name], make) for name, make in makers.items()}
                counts = {name: count_for(make, seconds / SLICES) for name, make in makers.items()}
                for repeat in range(repeats * SLICES):
                    for one in there[:: 1 if repeat % 2 == 0 else -1]:
                        count = counts[one.name]
                        used = cpu_seconds(pids[one.name])
                        own = time.thread_time()
                        took = timed(makers[one.name], count)
                        spent = cpu_seconds(pids[one.name]) - used
                        if pin:
                            took = time.thread_time() - own + spent
                        rates.setdefault((work.name, one.name), []).append(count / took)
                        costs.setdefault((work.name, one.name), []).append(spent / count)
                    progress((done + (repeat + 1) / (repeats * SLICES)) / len(works), work.name)
    return {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "missing": missing,
        "pinned": pin,
        "servers": [one.name for one in there],
        "works": [work.name for work in works],
        "rates": {f"{work}|{name}": statistics.median(found) for (work, name), found in rates.items()},
        "costs": {f"{work}|{name}": statistics.median(found) for (work, name), found in costs.items()},
        "requests": requests,
    }


def compared(results: dict[str, Any], work: str) -> list[str]:
    """Ours against the better of the others: calls per second, the limit of that, and what Python adds to a call."""
    rates, costs, names = results["rates"], results["costs"], results["servers"]
    others = [name for name in names if name in OTHERS]
    if not others or "virtiofs" not in names or BARE not in names:
        return ["-", "-", "-"]
    best = max(rates[f"{work}|{name}"] for name in others)
    bare = costs[f"{work}|{BARE}"]
    added = costs[f"{work}|virtiofs"] - bare
    least = min(costs[f"{work}|{name}"] for name in others) - bare
    return [
        f"{rates[f'{work}|virtiofs'] / best:.2f}",
        f"{rates[f'{work}|{BARE}'] / best:.2f}",
        f"{1e6 * added:.1f} : {1e6 * least:.1f}",
    ]


def report(results: dict[str, Any]) -> str:
    """The table, in Markdown."""
    names, rates, costs = results["servers"], results["rates"], results["costs"]
    heads = ["virtiofs, times the best other", "the limit of that", "Python's us a call, ours : best other"]
    lines = [
        "| calls/s (server's CPU, us) | " + " | ".join([*names, *heads]) + " |",
        "|---" * (len(names) + len(heads) + 1) + "|",
    ]
    for work in results["works"]:
        cells = [f"{rates[f'{work}|{name}']:,.0f} ({1e6 * costs[f'{work}|{name}']:.1f})" for name in names]
        lines.append(f"| {work} | " + " | ".join([*cells, *compared(results, work)]) + " |")
    lines += ["", requests_of(results)]
    for name in results["missing"]:
        lines.append(f"\nNot there: {name}")
    return "\n".join(lines)


def requests_of(results: dict[str, Any]) -> str:
    """How many requests a call was, and for whom it was another number."""
    same, different = [], []
    for work, found in results["requests"].items():
        if len(set(found.values())) == 1:
            same.append(f"{work}: {next(iter(found.values())):g}")
        else:
            different.append(f"{work}: " + ", ".join(f"{name} {count:g}" for name, count in found.items()))
    text = f"Requests for each call, counted by the servers: {'; '.join(same) or 'never the same'}."
    if different:
        text += f"\n\n**Not the same work:** {'; '.join(different)}."
    return text


def page(results: dict[str, Any]) -> str:
    """The table with where it is from."""
    host = results["machine"]
    where = f"{host['processor']}, {host['processors']} processors{', virtual' if host['virtual'] else ''}"
    where += f", Linux {host['kernel']}, Python {host['python']}"
    command = f"virtiofs bench --python{'' if results['pinned'] else ' --no-pin'}"
    text = f"# File systems in Python\n\nBy `{command}` on {results['date']}; {where}.\n\n{report(results)}\n"
    return text + NOTES.format(seconds=SECONDS[results["pinned"]])

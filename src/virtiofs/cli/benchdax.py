# SPDX-License-Identifier: Apache-2.0
"""`virtiofs bench --dax`: reading files that are mapped, in a guest on QEMU 11.1, beside the same without DAX.

fio runs in the guest, from the host's own /usr, which is shared with it.  The guest has a share whose window is larger
than the file that is read, one whose window is smaller, one without, and a tmpfs with a copy of the file: what it can
do at best.  Medians of the repeats are reported.  What comes before is not timed: a file that loses by DAX is noticed
in the first run, the guest told so when it opens it for the second, and served without DAX from the third on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from virtiofs.client.figures import MIB, machine, summary
from virtiofs.client.peers import cpu_seconds
from virtiofs.client.report import number, spread, times
from virtiofs.vm import process
from virtiofs.vm.errors import GuestError, MissingPart
from virtiofs.vm.guest import Guest, Share
from virtiofs.vm.qemu import find_dax_qemu

SIZE = 64 * MIB
LARGE, SMALL = "128M", "16M"
MEMORY = "512M"
WARM = 2  # runs before
FORGET_SECONDS = 1.5  # longer than the guest trusts what it knows
READY_SECONDS = 30.0
FIO = "/usr/bin/fio"
HOST = "/host"  # where the guest has the host's /usr

Results = dict[str, Any]


class Work(NamedTuple):
    """What fio does."""

    name: str
    options: tuple[str, ...]


WORKS = (
    Work("sequential read()", ("--ioengine=psync", "--rw=read", "--bs=128k")),
    Work("random read()", ("--ioengine=psync", "--rw=randread", "--bs=4k")),
    Work("sequential mmap", ("--ioengine=mmap", "--rw=read", "--bs=128k")),
    Work("random mmap", ("--ioengine=mmap", "--rw=randread", "--bs=4k")),
)


class Place(NamedTuple):
    """Where the file is: its tag, which is its directory in the guest too, and what its daemon is told."""

    name: str
    tag: str
    options: tuple[str, ...] | None = ()


BEST, WITHOUT = "tmpfs in the guest", "no DAX"
PLACES = (
    Place(BEST, "tmpfs", None),
    Place(WITHOUT, "without"),
    Place(f"DAX, window {LARGE}", "large", ("--dax-window", LARGE)),
    Place(f"DAX, window {SMALL}", "small", ("--dax-window", SMALL)),
)
SHARED = tuple(place for place in PLACES if place.options is not None)


def measure(
    seconds: float,
    repeats: int,
    directory: str | None = None,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
    works: Sequence[Work] = WORKS,
) -> Results:
    """Measure some work in all places.  Raises `GuestError` (`MissingPart` for what is to be installed), `OSError`."""
    qemu = find_dax_qemu()
    if not os.path.exists(FIO):
        raise MissingPart(f"there is no {FIO} to run in the guest: apt-get install fio")
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virtiofs-bench-", dir=directory)))
        work.chmod(0o755)
        (work / "files").mkdir()
        with open(work / "files" / "data", "wb") as file:
            for _ in range(SIZE // MIB):
                file.write(os.urandom(MIB))
        daemons = {
            place.tag: stack.enter_context(
                _daemon(work, place.tag, str(work / "files"), *(place.options or ()))
            )
            for place in SHARED
        }
        stack.enter_context(_daemon(work, "host", "/usr", "--readonly"))
        shares = [Share(tag, str(work / tag), f"/{tag}", False) for tag in (*daemons, "host")]
        guest = stack.enter_context(Guest(shares, dax=True, cpus=2, memory=MEMORY))
        _run(guest, f"mkdir /tmpfs && mount -t tmpfs none /tmpfs && cp /{SHARED[0].tag}/data /tmpfs")
        runs = _measure(guest, daemons, seconds, repeats, progress, works)
        kernel = _run(guest, "uname -r").strip()
    rows = [
        {"work": work, "place": place}
        | {"mib_per_second": summary([run[0] for run in found])}
        | {"cpu": statistics.median(run[1] for run in found)}
        for (work, place), found in runs.items()
    ]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "conditions": {"seconds": seconds, "repeats": repeats, "file": SIZE, "memory": MEMORY}
        | {
            "guest_kernel": kernel,
            "qemu": qemu.path,
            "accelerator": "kvm" if guest.accelerator == "kvm" else "tcg",
        },
        "rows": rows,
    }


def _measure(
    guest: Guest,
    daemons: dict[str, int],
    seconds: float,
    repeats: int,
    progress: Callable[[float, str], None],
    works: Sequence[Work],
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """MiB per second of fio, and the daemon's processor seconds per second, of each run."""
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    total = (repeats + WARM) * len(works)
    for i, work in enumerate(works):
        for repeat in range(-WARM, repeats):
            places = PLACES[:: 1 if repeat % 2 else -1]
            before = {tag: cpu_seconds(pid) for tag, pid in daemons.items()}
            speeds = _fio(guest, work, places, seconds)
            used = {tag: (cpu_seconds(pid) - before[tag]) / seconds for tag, pid in daemons.items()}
            for place, speed in zip(places, speeds, strict=True):
                if repeat >= 0:
                    runs.setdefault((work.name, place.name), []).append((speed, used.get(place.tag, 0.0)))
            time.sleep(FORGET_SECONDS)
            progress((i * (repeats + WARM) + repeat + WARM + 1) / total, work.name)
    return runs


@functools.cache
def program() -> list[str]:
    """The words that run the host's fio in the guest: by its own loader, with its own libraries."""
    listed = subprocess.run(["ldd", FIO], check=True, capture_output=True, text=True).stdout
    # One line each: "NAME => PATH (ADDRESS)", for the loader "PATH (ADDRESS)".
    paths = [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]
    loader = next(path for path in paths if os.path.basename(path).startswith("ld-"))
    there = {os.path.dirname(os.path.realpath(path)): None for path in paths}
    return [
        in_guest(os.path.realpath(loader)),
        "--library-path",
        ":".join(in_guest(directory) for directory in there),
        in_guest(FIO),
    ]


def in_guest(path: str) -> str:
    """Where the guest has a path below /usr."""
    return HOST + path.removeprefix("/usr")


def _fio(guest: Guest, work: Work, places: Sequence[Place], seconds: float) -> list[float]:
    """Do the work in one place after the other: MiB per second each."""
    words = [
        *program(),
        f"--size={SIZE}",
        "--allow_file_create=0",
        "--time_based",
        f"--runtime={round(1000 * seconds)}ms",
    ]
    words += ["--thread", "--gtod_reduce=1", "--output-format=json", "--stonewall", *work.options]
    for place in places:
        words += [f"--name={place.tag}", f"--filename=/{place.tag}/data"]
    said = _run(guest, shlex.join(words), 120 + 10 * seconds * len(places))
    jobs = {job["jobname"]: job for job in json.loads(said[said.index("{") :])["jobs"]}
    return [float(jobs[place.tag]["read"]["bw_bytes"]) / MIB for place in places]


def _run(guest: Guest, script: str, seconds: float = 60.0) -> str:
    result = guest.run(script, seconds)
    if result.status:
        said = result.errors.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise GuestError(f"`{script}` failed in the guest: {said[-1]}")
    return result.text


@contextlib.contextmanager
def _daemon(work: Path, tag: str, directory: str, *options: str) -> Iterator[int]:
    """A daemon of ours that listens: its process id."""
    ready, theirs = os.pipe()
    command = [sys.executable, "-m", "virtiofs", "serve", directory, "--tag", tag]
    command += ["--socket", str(work / tag), "--queues", "1", "--ready-fd", str(theirs), *options]
    with open(ready, "rb") as answer:
        try:
            daemon = process.start(command, stdin=subprocess.DEVNULL, pass_fds=[theirs])
        finally:
            os.close(theirs)
        try:
            if not answer.read(1):
                raise GuestError(f"the daemon did not start: {shlex.join(command)}")
            yield daemon.pid
        finally:
            process.end(daemon)


# --- the report ---


def _tables(results: Results) -> Iterator[tuple[str, list[list[str]]]]:
    """Of each work its name and its rows."""
    for work in dict.fromkeys(row["work"] for row in results["rows"]):
        rows = {row["place"]: row for row in results["rows"] if row["work"] == work}
        speed = {name: float(row["mib_per_second"]["median"]) for name, row in rows.items()}
        yield (
            work,
            [
                [
                    place.name,
                    spread(rows[place.name]["mib_per_second"]),
                    times(speed[place.name] / speed[BEST]),
                    times(speed[place.name] / speed[WITHOUT]),
                    f"{100 * rows[place.name]['cpu']:.1f} %" if place in SHARED else "",
                ]
                for place in PLACES
            ],
        )


HEADINGS = ("", "MiB/s", "to tmpfs", "to no DAX", "daemon's CPU")


def conditions(results: Results) -> str:
    """One sentence on what was measured where."""
    on, how = results["machine"], results["conditions"]
    return (
        f"A file of {how['file'] // MIB} MiB read by fio in a guest of {how['memory']} (Linux {how['guest_kernel']}, "
        f"{how['accelerator'].upper()}), {how['repeats']} runs of {number(how['seconds'])} s after {WARM} to warm up; "
        f"{results['date']}, {on['processor']}, {on['processors']} processors, Linux {on['kernel']}."
    )


def terminal(results: Results) -> str:
    """The tables for a terminal."""
    lines = [conditions(results)]
    for name, rows in _tables(results):
        table = [(name, *HEADINGS[1:]), *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
        lines.append("")
        for row in table:
            first, *rest = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join([first.strip().ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """The tables as a Markdown page."""
    lines = ["# Reading mapped files", "", conditions(results), ""]
    lines += ["`virtiofs bench --dax` made this page; [docs/dax.md](../docs/dax.md) says what it means."]
    for name, rows in _tables(results):
        lines += ["", f"## {name}", "", _line(HEADINGS), _line(["---", *["--:"] * (len(HEADINGS) - 1)])]
        lines += map(_line, rows)
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

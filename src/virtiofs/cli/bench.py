# SPDX-License-Identifier: Apache-2.0
"""Measure virtio-fs daemons side by side: the same requests, in one run, interleaved, every reply checked.

Ours and the other daemons that are installed are found, and the Rust virtiofsd that `make testbed-trixie` puts into
the cache directory; --peer adds more:

    virtiofs bench --quick
    virtiofs bench --workload getattr --workload read --only virtiofs --only virtiofsd-rust
    virtiofs bench --python
    virtiofs bench --peer 'mine=/opt/virtiofsd --socket-path={socket} --shared-dir={dir}' --html bench.html

    virtiofs bench --dax

The modes differ in how the driver takes replies: "interrupt" sleeps until the device wakes it, as a guest does;
"polled" watches the ring; "one processor" is as interrupt, with the driver on the daemon's processor, so that no
wake-up crosses processors and what the daemon itself costs shows best.
Take care that nothing else runs on the machine meanwhile.  The exit status is 1 if a daemon failed at anything.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.client.bench import Plan
    from virtiofs.client.peers import Peer

# What --workload calls the tables that are no workloads.
QUEUES, PACES, INODES = "request queues", "requests now and then", "inodes held"
COHERENCE_REPEATS = 20
EXTENTS = {  # seconds of a run, repeats, numbers of queues, seconds between requests, numbers of inodes
    "quick": (0.05, 3, (1, 2), (0.001,), (1000,)),
    "": (0.2, 5, (1, 2, 4, 8), (0.0002, 0.001, 0.01), (1000, 100_000, 1_000_000)),
    "full": (1.0, 7, (1, 2, 3, 4, 5, 6, 7, 8), (0.0001, 0.0002, 0.001, 0.01), (1000, 100_000, 1_000_000)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs bench`."""
    parser.add_argument(
        "--peer",
        metavar="NAME=COMMAND",
        action="append",
        default=[],
        help="a daemon more; {socket} and {dir} are replaced in its command line",
    )
    parser.add_argument(
        "--only",
        "--peers",
        metavar="NAME[,NAME...]",
        action="append",
        default=[],
        help="compare only the daemons of these names",
    )
    parser.add_argument(
        "--workload",
        metavar="TEXT",
        action="append",
        default=[],
        help=f"only workloads whose name holds this; also `{QUEUES}`, `{PACES}` and `{INODES}`; see --list",
    )
    parser.add_argument(
        "--mode",
        metavar="NAME",
        action="append",
        default=[],
        help="only these: interrupt, polled, one processor",
    )
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--quick",
        dest="extent",
        action="store_const",
        const="quick",
        default="",
        help="about a minute or two: short runs, no large directories",
    )
    extent.add_argument(
        "--full",
        dest="extent",
        action="store_const",
        const="full",
        help="long runs: an hour",
    )
    parser.add_argument(
        "--coherence",
        action="store_true",
        help="measure instead how late changes show in each cache mode, through the kernel's own client, and how many"
        " requests it saves; some minutes (docs/caching.md); only --only, --repeats, --json and --markdown go with it",
    )
    parser.add_argument(
        "--dax",
        action="store_true",
        help="measure instead how a guest reads files that are mapped into it (docs/dax.md); takes QEMU 11.1 and fio",
    )
    parser.add_argument("--seconds", metavar="S", type=float, help="length of each timed run")
    parser.add_argument("--repeats", metavar="N", type=int, help="timed runs of each daemon in each workload")
    parser.add_argument(
        "--depth", metavar="N", type=int, help="requests in flight, 1 to 64, instead of each workload's own"
    )
    parser.add_argument(
        "--queues", metavar="N[,N...]", help="numbers of request queues to load at the same time, 1 to 64"
    )
    parser.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the driver on one processor and the daemons on another, where there are two; with --python all on"
        " one (on)",
    )
    parser.add_argument(
        "--directory", metavar="DIR", help="make the files here instead of in a temporary directory"
    )
    parser.add_argument(
        "--python",
        action="store_true",
        help="instead of daemons, compare a file system in Python on /dev/fuse: ours, pyfuse3's and mfusepy's, those"
        " that are installed, and one without Python",
    )
    parser.add_argument(
        "--list", action="store_true", help="name the daemons and workloads there are, and end"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything measured here")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables here")
    parser.add_argument("--html", metavar="FILE", help="write a page with plots here, one file")


class _Usage(Exception):
    """Options that make no sense."""


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if not all(1 <= number <= 64 for number in numbers):
        raise _Usage("--queues takes numbers from 1 to 64, separated by commas")
    return numbers


def compare_python(options: argparse.Namespace) -> int:
    """File systems in Python, side by side; the exit status."""
    from virtiofs.client.pythonbench import measure

    seconds, repeats, *_ = EXTENTS[options.extent]
    try:
        results = measure.measure(
            seconds if options.seconds is None else options.seconds,
            repeats if options.repeats is None else options.repeats,
            pin=options.pin,
            progress=Progress(),
        )
    except OSError as error:
        print(f"virtiofs bench: {error}", file=sys.stderr)
        return 1
    print(measure.report(results))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    if options.markdown:
        Path(options.markdown).write_text(measure.page(results))
    return 0


def main(options: argparse.Namespace) -> int:
    """Run the benchmark; the exit status."""
    if options.python:
        return compare_python(options)
    if options.dax:
        return _main_dax(options)
    from virtiofs.client import bench, page, peers, report, workloads
    from virtiofs.vhostuser.frontend import FrontEndError
    from virtiofs.virtqueue.driver import DriverError
    from virtiofs.vm.kernel import cache_directory

    try:
        found, missing = peers.find(cache_directory())
        try:
            found += [peers.parse(text) for text in options.peer]
        except ValueError as error:
            raise _Usage(f"--peer {error}") from None
        if options.list:
            names = [workload.name for workload in workloads.WORKLOADS] + [QUEUES, PACES, INODES]
            print("\n".join([*(f"{peer.name}: {peer.version}" for peer in found), *missing, "", *names]))
            return 0
        chosen = _peers(options, found)
        if options.coherence:
            return measure_coherence(options, chosen)
        plan = _plan(options)
    except _Usage as error:
        print(f"virtiofs bench: {error}", file=sys.stderr)
        return 2
    for line in missing:
        print(line, file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(prefix="virtiofs-bench-", dir=options.directory) as place:
            directory = Path(place)
            directory.chmod(0o755)
            results = bench.measure_all(chosen, directory, plan, Progress())
        print(report.terminal(results))
        if options.json:
            Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
        if options.markdown:
            Path(options.markdown).write_text(report.markdown(results))
        if options.html:
            Path(options.html).write_text(page.page(results))
    except (peers.PeerError, DriverError, FrontEndError, OSError) as error:
        print(f"virtiofs bench: {error}", file=sys.stderr)
        return 1
    return 1 if any(row["failed"] for row in results["absent"]) else 0


def measure_coherence(options: argparse.Namespace, chosen: list[Peer]) -> int:
    """What --coherence does: the exit status."""
    import shutil
    import subprocess

    from virtiofs.client import coherence
    from virtiofs.client.peers import PeerError

    progress = Progress()
    ways = [
        way for way in coherence.ways(chosen) if way.device or any(peer.name == way.daemon for peer in chosen)
    ]
    results, failed = [], False
    for number, way in enumerate(ways):
        try:
            results.append(
                coherence.measure(
                    way,
                    options.repeats or COHERENCE_REPEATS,
                    lambda what: progress(number / len(ways), what),  # noqa: B023
                )
            )
        except OSError as error:
            print(f"virtiofs bench: {way.daemon}, {way.mode}: {error}", file=sys.stderr)
            failed = True
    known = []
    git = None
    with tempfile.TemporaryDirectory(prefix="virtiofs-bench-", dir=options.directory) as place:
        directory = Path(place)
        directory.chmod(0o755)
        try:
            for peer in (one for one in chosen if not one.name.endswith("-pool")):
                known.append(coherence.known_again(peer, directory, lambda what: progress(0.99, what)))
            if shutil.which("git"):
                git = coherence.git_status(directory, coherence.GIT_FILES, lambda what: progress(0.99, what))
        except (OSError, PeerError, subprocess.CalledProcessError) as error:
            print(f"virtiofs bench: {error}", file=sys.stderr)
            failed = True
    progress(1.0, "done")
    print(coherence.terminal(results))
    print(coherence.again_text(known, git))
    if options.json:
        everything = {"modes": results, "known again": known, "git status": git}
        Path(options.json).write_text(json.dumps(everything, indent=1) + "\n")
    if options.markdown:
        Path(options.markdown).write_text(coherence.markdown(results))
    return int(failed)


DAX_EXTENTS = {"quick": (1.0, 1), "": (2.0, 3), "full": (10.0, 5)}  # seconds of a run, repeats


def _main_dax(options: argparse.Namespace) -> int:
    """Measure reading in a guest; the exit status."""
    from virtiofs.cli import benchdax
    from virtiofs.vm.errors import GuestError

    others = ("peer", "only", "workload", "mode", "depth", "queues", "list", "html")
    named = [name for name in others if getattr(options, name)]
    seconds, repeats = DAX_EXTENTS[options.extent]
    seconds = seconds if options.seconds is None else options.seconds
    repeats = repeats if options.repeats is None else options.repeats
    if named or seconds <= 0 or repeats < 1:
        reason = f"--{named[0]} says nothing to --dax" if named else "--seconds and --repeats are positive"
        print(f"virtiofs bench: {reason}", file=sys.stderr)
        return 2
    try:
        results = benchdax.measure(seconds, repeats, options.directory, Progress())
        print(benchdax.terminal(results))
        if options.json:
            Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
        if options.markdown:
            Path(options.markdown).write_text(benchdax.markdown(results))
    except (GuestError, OSError) as error:
        print(f"virtiofs bench: {error}", file=sys.stderr)
        return 1
    return 0


def _peers(options: argparse.Namespace, found: list[Peer]) -> list[Peer]:
    """The daemons that --only names."""
    names = [peer.name for peer in found]
    wanted = [name for text in options.only for name in text.split(",")]
    unknown = [name for name in wanted if name not in names]
    if unknown or len(set(names)) != len(names):
        what = f"no daemon {unknown[0]}" if unknown else "two daemons of one name"
        raise _Usage(f"{what}; there are {', '.join(names)}")
    return [peer for peer in found if not wanted or peer.name in wanted]


def _plan(options: argparse.Namespace) -> Plan:
    """How much is asked for."""
    from virtiofs.client.bench import MODES, Plan
    from virtiofs.client.workloads import WORKLOADS

    seconds, repeats, queues, paces, inodes = EXTENTS[options.extent]
    seconds = seconds if options.seconds is None else options.seconds
    repeats = repeats if options.repeats is None else options.repeats
    if seconds <= 0 or repeats < 1 or not (options.depth is None or 1 <= options.depth <= 64):
        raise _Usage("--seconds and --repeats are positive, --depth is 1 to 64")
    queues = _numbers(options.queues) if options.queues else queues

    def wanted(name: str) -> bool:
        return not options.workload or any(text.lower() in name.lower() for text in options.workload)

    large = options.extent != "quick" or bool(options.workload)
    workloads = tuple(one for one in WORKLOADS if wanted(one.name) and (large or not one.large))
    queues, paces = queues if wanted(QUEUES) else (), paces if wanted(PACES) else ()
    inodes = inodes if wanted(INODES) else ()
    if not (workloads or queues or paces or inodes):
        raise _Usage("no such workload; `virtiofs bench --list` names them")
    modes = tuple(mode for mode in MODES if not options.mode or mode.name in options.mode)
    if len(modes) < len(set(options.mode)) or not modes:
        raise _Usage(f"no such mode; there are {', '.join(mode.name for mode in MODES)}")
    return Plan(seconds, repeats, options.depth, options.pin, workloads, modes, queues, inodes, paces)


class Progress:
    """Says on stderr how far it is: a bar on a terminal, else a line for each tenth."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._tenth = -1

    def __call__(self, share: float, what: str) -> None:
        """`share` of the work is done, of which this was `what`."""
        used = time.monotonic() - self._begin
        left = used / share - used if share else 0.0
        if self._terminal:
            bar = "#" * round(30 * share)
            end = "\n" if share >= 1 else ""
            text = f"\r{bar:.<30} {share:4.0%}, {left:4.0f} s left  {what[:40]:40}"
            print(text, end=end, file=sys.stderr, flush=True)
        elif int(share * 10) > self._tenth:
            self._tenth = int(share * 10)
            print(f"{share:.0%} after {used:.0f} s: {what}", file=sys.stderr, flush=True)

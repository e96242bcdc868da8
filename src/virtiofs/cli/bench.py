# SPDX-License-Identifier: Apache-2.0
"""Measure virtio-fs daemons side by side: the same requests, in one run, interleaved.

Ours and the other daemons that are installed are found; --peer adds more:

    virtiofs bench --peer 'mine=/opt/virtiofsd --socket-path={socket} --shared-dir={dir}'

Each line of a table is one daemon.  The tables differ in how the driver takes replies: "interrupt" sleeps until
the device wakes it, as a guest does; "polled" watches the ring; "one processor" is as interrupt, with the driver on
the daemon's processor, so that no wake-up crosses processors and what the daemon itself costs shows best.
Take care that nothing else runs on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path


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
        "--only", metavar="NAME", action="append", default=[], help="compare only the daemons of these names"
    )
    parser.add_argument(
        "--workload", metavar="TEXT", action="append", default=[], help="only workloads whose name holds this"
    )
    parser.add_argument(
        "--mode",
        metavar="NAME",
        action="append",
        default=[],
        help="only these: interrupt, polled, one processor",
    )
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=1.0, help="length of each timed run (%(default)s)"
    )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=int,
        default=5,
        help="rounds over all workloads and daemons (%(default)s)",
    )
    parser.add_argument(
        "--depth",
        metavar="N",
        type=int,
        default=1,
        help="requests in flight at a time, 1 to 64 (%(default)s)",
    )
    parser.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the driver on one processor and the daemons on another, where there are two (on)",
    )
    parser.add_argument(
        "--directory", metavar="DIR", help="make the files here instead of in a temporary directory"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything measured here")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables here")


def main(options: argparse.Namespace) -> int:
    """Run the benchmark; the exit status."""
    from virtiofs.client import bench, peers, report
    from virtiofs.vhostuser.frontend import FrontEndError
    from virtiofs.virtqueue.driver import DriverError

    if options.seconds <= 0 or options.repeats < 1 or not 1 <= options.depth <= 64:
        print("virtiofs bench: --seconds and --repeats are positive, --depth is 1 to 64", file=sys.stderr)
        return 2
    try:
        found, missing = peers.find()
        found += [peers.parse(text) for text in options.peer]
    except ValueError as error:
        print(f"virtiofs bench: --peer {error}", file=sys.stderr)
        return 2
    names = [peer.name for peer in found]
    unknown = [name for name in options.only if name not in names]
    if unknown or len(set(names)) != len(names):
        what = f"no daemon {unknown[0]}" if unknown else "two daemons of one name"
        print(f"virtiofs bench: {what}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    chosen = [peer for peer in found if not options.only or peer.name in options.only]
    workloads = tuple(
        workload
        for workload in bench.WORKLOADS
        if not options.workload or any(text.lower() in workload.name.lower() for text in options.workload)
    )
    if not workloads:
        known = ", ".join(workload.name for workload in bench.WORKLOADS)
        print(f"virtiofs bench: no such workload; there are {known}", file=sys.stderr)
        return 2
    modes = tuple(mode for mode in bench.MODES if not options.mode or mode.name in options.mode)
    if len(modes) < len(set(options.mode)) or not modes:
        known = ", ".join(mode.name for mode in bench.MODES)
        print(f"virtiofs bench: no such mode; there are {known}", file=sys.stderr)
        return 2
    for line in missing:
        print(line, file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(prefix="virtiofs-bench-", dir=options.directory) as place:
            directory = Path(place)
            bench.make_share(directory)
            results = bench.measure_all(
                chosen,
                directory,
                options.seconds,
                options.repeats,
                options.depth,
                options.pin,
                workloads,
                modes,
                lambda text: print(text, file=sys.stderr),
            )
        print(report.terminal(results))
        if options.json:
            Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
        if options.markdown:
            Path(options.markdown).write_text(report.markdown(results))
    except (peers.PeerError, bench.WrongData, DriverError, FrontEndError, OSError) as error:
        print(f"virtiofs bench: {error}", file=sys.stderr)
        return 1
    return 0

# SPDX-License-Identifier: Apache-2.0
"""Check a virtio-fs device: the handshake, the rings, every operation, its errors, and what it does with nonsense.

    virtiofs check /run/virtiofs.sock       a device that listens already, ours or another's
    virtiofs check /srv/tree                a directory: our own daemon is started on it
    virtiofs check examples/memory.py:MemoryFilesystem
                                            a file system in Python, or a URL: our own daemon is started on it
    virtiofs check --installed              every daemon that is installed here, side by side
    virtiofs check --peer 'mine=/opt/virtiofsd --socket-path={socket} --shared-dir={dir}'

The checks work in a directory of their own in the share, .virtiofs-check-PID, which is removed at the end.  Some send
what only a hostile guest would: do not aim at a device that others use.  A device that ends with its first connection
can be checked as a whole only if it is started here.

Of a file system in Python is left out what it has no method for; what its methods do wrong is named in the end.

Exit status: 0 when nothing failed that must hold or that safety needs, 1 when something did, 2 for a command line that
makes no sense.
"""

from __future__ import annotations

import argparse
import json
import stat
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs check`."""
    parser.add_argument(
        "device",
        metavar="SOCKET|DIR|CLASS",
        nargs="?",
        help="a device's socket, or a directory or a class to serve",
    )
    parser.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an argument of the class; may be repeated",
    )
    parser.add_argument(
        "--peer",
        metavar="NAME=COMMAND",
        action="append",
        default=[],
        help="start this daemon and check it; {socket} and {dir} are replaced in its command line",
    )
    parser.add_argument(
        "--installed", action="store_true", help="check all daemons that are found on this machine"
    )
    parser.add_argument(
        "--group", metavar="NAME", action="append", default=[], help="only the checks of this group"
    )
    parser.add_argument("--strict", action="store_true", help="fail for what should hold as well")
    parser.add_argument("--quiet", action="store_true", help="print failures and the summary only")
    parser.add_argument("--list", action="store_true", help="print the checks and make none")
    parser.add_argument("--json", metavar="FILE", help="write everything found here")
    parser.add_argument("--markdown", metavar="FILE", help="write the table of all devices here")


def main(options: argparse.Namespace) -> int:
    """Make the checks; the exit status."""
    from virtiofs.cli import pythonshare
    from virtiofs.client import peers
    from virtiofs.client.check import case, report, run
    from virtiofs.client.check.subject import Subject
    from virtiofs.vhostuser.frontend import FrontEndError
    from virtiofs.vhostuser.transport import TransportError
    from virtiofs.vm.kernel import cache_directory

    unknown = [name for name in options.group if name not in run.GROUPS]
    if unknown:
        return _misuse(f"no group {unknown[0]}; there are {', '.join(run.GROUPS)}")
    checks = [check for check in run.CHECKS if not options.group or check.group in options.group]
    if options.list:
        for check in checks:
            print(f"{check.level:<7}{check.group:<11}{check.sentence} ({check.source})")
        return 0
    try:
        daemons = [peers.parse(text) for text in options.peer]
    except ValueError as error:
        return _misuse(f"--peer {error}")
    if options.installed:
        found, missing = peers.find(cache_directory())
        # The same daemon with other words is the same device.
        daemons = [*(peer for peer in found if not peer.name.endswith("-pool")), *daemons]
        for line in missing:
            print(line, file=sys.stderr)
    subjects: list[tuple[str, dict[str, Any]]] = [
        (daemon.version, {"name": daemon.name, "peer": daemon}) for daemon in daemons
    ]
    if pythonshare.is_class(options.device):
        words = [word for option in options.option for word in ("--option", option)]
        ours = peers.ours()
        command = [options.device if word == "{dir}" else word for word in ours.command]
        peer = ours._replace(name=options.device, command=(*command, *words))
        subjects.insert(0, (ours.version, {"name": options.device, "peer": peer, "own_tree": True}))
    elif options.device:
        try:
            kind = Path(options.device).stat().st_mode
        except OSError as error:
            return _misuse(f"{options.device}: {error.strerror}; give a device's socket or a directory")
        if stat.S_ISDIR(kind):
            ours = peers.ours()
            directory = Path(options.device).resolve()
            subjects.insert(0, (ours.version, {"name": ours.name, "peer": ours, "host": directory}))
        elif stat.S_ISSOCK(kind):
            subjects.insert(0, ("", {"name": options.device, "socket": options.device}))
        else:
            return _misuse(f"{options.device} is neither a socket nor a directory")
    if not subjects:
        return _misuse("nothing to check: give a socket, a directory, --peer or --installed")

    def progress(outcome: case.Outcome) -> None:
        if not options.quiet or outcome.result == case.FAILED:
            print(report.line(outcome), flush=True)

    reports, mistakes = [], []
    for version, how in subjects:
        try:
            with Subject(**how) as subject:
                print(f"{subject.name}:")
                reports.append(run.run(subject, version, checks, progress))
                if subject.own_tree:
                    subject.leave()
                    mistakes = subject.complaints()
        except (TransportError, FrontEndError, OSError) as error:
            print(f"virtiofs check: {error}", file=sys.stderr)
            return 1
        print()
    for each in reports:
        print(report.summary(each))
    for line in mistakes:
        print(f"MISTAKE {line}")
    if options.json:
        Path(options.json).write_text(json.dumps([each.data() for each in reports], indent=1) + "\n")
    if options.markdown:
        Path(options.markdown).write_text(report.markdown(reports))
    grave = case.LEVELS if options.strict else (case.MUST, case.SAFE)
    return 1 if mistakes or any(each.count(case.FAILED, grave) for each in reports) else 0


def _misuse(text: str) -> int:
    print(f"virtiofs check: {text}", file=sys.stderr)
    return 2

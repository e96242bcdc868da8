# SPDX-License-Identifier: Apache-2.0
"""Tell what changes in a share, as it happens: one line of JSON for each change.

    virtiofs serve /srv/data --socket /run/data.sock --control /run/control --metadata-table
    virtiofs events /run/control
    {"sequence": 7, "time": 1763856000.25, "kind": "data", "path": "app/main.py", "by": "host"}

Kinds: entry (the name was made, or leads to another file), gone (it was removed), data, attributes, and everything:
any file may have changed, as events were lost or this reader was too slow.  Paths are relative to the share.
docs/events.md has the details, and an example that has file watchers in a guest notice what the host changes.

It goes on until it is interrupted.  Exit status: 1 if the daemon refuses, or ends.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys

from virtiofs.cli.ctl import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs events`."""
    parser.add_argument("path", metavar="SOCKET", help="the daemon's control socket")
    parser.add_argument("tag", metavar="TAG", nargs="?", default="", help="the share, if there are several")
    parser.add_argument(
        "--by",
        choices=["host", "guest"],
        help="only what programs of the host change, or only what guests do (default: both)",
    )


def main(options: argparse.Namespace) -> int:
    """Print changes until the daemon ends."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(options.path)
            request = {"do": "events"} | ({"tag": options.tag} if options.tag else {})
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("r", encoding="ascii") as lines:
                answer = json.loads(lines.readline() or '{"error": "the daemon closed the connection"}')
                if "error" in answer:
                    print(f"virtiofs events: {answer['error']}", file=sys.stderr)
                    return 1
                for line in lines:
                    if options.by is None or json.loads(line).get("by", options.by) == options.by:
                        sys.stdout.write(line)
                        sys.stdout.flush()
    except (OSError, ValueError) as error:
        print(f"virtiofs events: {options.path}: {describe(error)}", file=sys.stderr)
        return 1
    print("virtiofs events: the daemon ended", file=sys.stderr)
    return 1

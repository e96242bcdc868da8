# SPDX-License-Identifier: Apache-2.0
"""Ask a running daemon, or change what it shares, over its control socket (`virtiofs serve --control PATH`).

    virtiofs ctl PATH status [--json]        what is shared, who is connected, what was served
    virtiofs ctl PATH list                   tags, directories and sockets only
    virtiofs ctl PATH add TAG=DIR[:ro][:quota=SIZE][:policy=FILE]   share one more; prints its socket
    virtiofs ctl PATH remove TAG [--force]   share it no more; refused while a VM is connected
    virtiofs ctl PATH reload-policy [TAG]    read the policy of all shares, or of one, again
    virtiofs ctl PATH log-level LEVEL        off, error, warning, info or debug
    virtiofs ctl PATH metrics [--http PORT]  counters in the Prometheus text format, once or for a scraper

Programs write lines of JSON there (docs/control.md).
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import socket
import sys
from typing import Any

TIMEOUT_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs ctl`."""
    parser.add_argument("path", metavar="PATH", help="the daemon's control socket")
    commands = parser.add_subparsers(dest="do", metavar="COMMAND", required=True)
    status = commands.add_parser("status", help="what is shared, who is connected, what was served")
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    listing = commands.add_parser("list", help="tags, directories and sockets")
    listing.add_argument("--json", action="store_true", help="as JSON")
    add = commands.add_parser("add", help="share a directory or a file")
    add.add_argument("share", metavar="TAG=DIR[:ro][:quota=SIZE][:policy=FILE]")
    remove = commands.add_parser("remove", help="share it no more")
    remove.add_argument("tag", metavar="TAG")
    remove.add_argument("--force", action="store_true", help="even while a VM is connected: its I/O fails")
    reload = commands.add_parser("reload-policy", help="read policies again (docs/policy.md)")
    reload.add_argument("tag", metavar="TAG", nargs="?", default="")
    level = commands.add_parser("log-level", help="how much the daemon logs")
    level.add_argument("level", metavar="LEVEL", choices=["off", "error", "warning", "info", "debug"])
    metrics = commands.add_parser("metrics", help="counters in the Prometheus text format")
    metrics.add_argument(
        "--http",
        metavar="PORT",
        type=port,
        help="go on, and answer http://127.0.0.1:PORT/metrics with them; 0 takes any port and prints it",
    )


def port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def main(options: argparse.Namespace) -> int:
    """Ask, and print the answer."""
    if getattr(options, "http", None) is not None:
        return export(options)
    arguments = {
        name: getattr(options, name) for name in ("share", "tag", "force", "level") if hasattr(options, name)
    }
    if "share" in arguments:
        arguments["share"] = absolute(arguments["share"])
    try:
        answer = ask(options.path, {"do": options.do, **arguments})
    except (OSError, ValueError) as error:
        print(f"virtiofs ctl: {options.path}: {describe(error)}", file=sys.stderr)
        return 1
    if "error" in answer:
        print(f"virtiofs ctl: {answer['error']}", file=sys.stderr)
        return 1
    show(options, answer["result"])
    return 0


def absolute(share: str) -> str:
    """A share with paths as the daemon, in its own directory, can use them."""
    tag, equals, path = share.partition("=")
    path, marker, policy = path.partition(":policy=")
    if policy.partition(":")[0].endswith((".toml", ".py")) or os.path.exists(policy):
        policy = os.path.abspath(policy)
    return tag + equals + (os.path.abspath(path) if path else "") + marker + policy


def export(options: argparse.Namespace) -> int:
    """Answer a scraper with the metrics, until interrupted."""
    from virtiofs.cli.exporter import serve

    def metrics() -> str:
        answer = ask(options.path, {"do": "metrics"})
        if "error" in answer:
            raise ValueError(answer["error"])
        return str(answer["result"])

    try:
        metrics()  # a wrong path is to be heard of now
        return serve(options.http, metrics)
    except (OSError, ValueError) as error:
        where = (
            f"port {options.http}" if getattr(error, "errno", 0) in (errno.EADDRINUSE, errno.EACCES) else ""
        )
        print(f"virtiofs ctl: {where or options.path}: {describe(error)}", file=sys.stderr)
        return 1


def ask(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Send one request and return the answer.  Raises `OSError`, or `ValueError` for no answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)  # without a time limit: with one, a full backlog is an error at once
        sock.settimeout(TIMEOUT_SECONDS)
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as lines:
            line = lines.readline()
    if not line.endswith(b"\n"):
        raise ValueError("the daemon closed the connection; its control socket is for its own user and root")
    answer: dict[str, Any] = json.loads(line)
    return answer


def describe(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such socket; start the daemon with --control"
    if isinstance(error, ConnectionRefusedError):
        return "no daemon listens there any more"
    if isinstance(error, TimeoutError):
        return f"the daemon did not answer within {TIMEOUT_SECONDS:.0f} s"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def show(options: argparse.Namespace, result: Any) -> None:
    if getattr(options, "json", False):
        print(json.dumps(result, indent=2))
    elif options.do == "status":
        print(
            table(
                ("TAG", "DIRECTORY", "MODE", "SOCKET", "PID", "FILES", "OPEN", "FDS", "EVICTED"),
                status(result),
            )
        )
        for share in result:
            for line in [*quota(share), *metadata(share), *watcher(share), *queues(share)]:
                print(line)
    elif options.do == "list":
        print(table(("TAG", "DIRECTORY", "MODE", "SOCKET", "PID"), (row(share) for share in result)))
    elif options.do == "reload-policy":
        print("\n".join(result))
    elif isinstance(result, str):
        print(result, end="" if result.endswith("\n") else "\n")


def row(share: dict[str, Any]) -> list[str]:
    return [
        share["tag"],
        share["directory"],
        "ro" if share["read_only"] else "rw",
        share["socket"] or "-",
        str(share["connected"] or "-"),
    ]


def status(shares: list[dict[str, Any]]) -> list[list[str]]:
    columns = ("inodes", "handles", "descriptors", "evictions")
    return [row(share) + [str(share["filesystem"].get(name, "-")) for name in columns] for share in shares]


def metadata(share: dict[str, Any]) -> list[str]:
    """A line about a share's metadata table, where it has one."""
    table = share["metadata"]
    if not table:
        return []
    watched = "the host is watched" if table["watched"] else "nobody watches the host"
    return [
        f"{share['tag']}: metadata table: {table['members']} members, {table['followers']} followers, {watched}"
    ]


def quota(share: dict[str, Any]) -> list[str]:
    """A line about a share's quota, where it has one."""
    from virtiofs.cli.sizes import show_size

    if not share["quota"]:
        return []
    used, limit = share["quota"]["used"], share["quota"]["bytes"]
    return [f"{share['tag']}: the guest added {show_size(used)} of {show_size(limit)}"]


def watcher(share: dict[str, Any]) -> list[str]:
    """A line about who enters the host's changes into a share's metadata table, where it has one."""
    found = share["watcher"]
    if not found:
        return []
    line = f"{share['tag']}: host watcher: {found['state']}"
    if found["kind"] != "none":
        line += f", {found['kind']}, {found['events']} events, {found['overflows']} overflows"
    if found["unwatched"]:
        line += f", {found['unwatched']} places not watched (the log says why)"
    return [line]


def queues(share: dict[str, Any]) -> list[str]:
    """A line for each queue that runs."""
    lines = []
    for index, queue in sorted(share["queues"].items(), key=lambda item: int(item[0])):
        what = "hiprio" if index == "0" else f"queue {index}"
        broken = f"; stopped: {queue['broken']}" if queue["broken"] else ""
        lines.append(f"{share['tag']}: {what}: {queue['requests']} requests{broken}")
    return lines


def table(head: tuple[str, ...], rows: Any) -> str:
    """Columns as wide as they need to be."""
    lines = [list(head), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

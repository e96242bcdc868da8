# SPDX-License-Identifier: Apache-2.0
"""See requests as they pass, over the control socket of a running daemon (`virtiofs serve --control PATH`).

    virtiofs trace /run/vm/control                                  # every request to every share, until Ctrl-C
    virtiofs trace /run/vm/control --share data --slower 1ms
    virtiofs trace /run/vm/control --path '/src/*' --operation lookup,open --errors
    virtiofs trace /run/vm/control --json --count 1000 > requests.jsonl

A request is shown once it is answered: when it began, share and queue, operation and path, what came of it, how long
that took, and who asked.  Serving never waits for this command: what it is too slow for is lost, and it says how many
those were.  While it runs each request costs the daemon a tenth of a microsecond more, and otherwise nothing.
"""

from __future__ import annotations

import argparse
import datetime
import errno
import fnmatch
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from virtiofs.cli.ctl import TIMEOUT_SECONDS, ask, describe
from virtiofs.fuse import abi
from virtiofs.fuse.records import Reader, Record

# How often the rings are looked at; a ring holds 16384 requests.
LOOK_MILLISECONDS = 20
NODES_AT_ONCE = 64  # daemon/control.py takes no more
MOST_PATHS = 1 << 16
UNITS = {"us": 1e3, "ms": 1e6, "s": 1e9}
ROOT = 1
NOBODY = 0xFFFFFFFF  # Linux names the caller only where something is made
REPLY_HEAD = abi.FUSE_OUT_HEADER.size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs trace`."""
    parser.set_defaults(parser=parser)
    parser.add_argument("control", metavar="PATH", help="the daemon's control socket")
    parser.add_argument(
        "--share",
        metavar="TAG",
        action="append",
        help="only this share; may be repeated (default: all there are)",
    )
    parser.add_argument(
        "--path",
        metavar="GLOB",
        dest="glob",
        help="only requests about this path of the share and what is below it, or a pattern such as '*.so'",
    )
    parser.add_argument(
        "--operation", metavar="NAME[,NAME]", type=operations, help="only these operations, as in lookup,read"
    )
    parser.add_argument(
        "--slower",
        metavar="TIME",
        type=duration,
        default=0,
        help="only what took this long or longer: 500us, 1ms, 2s",
    )
    parser.add_argument("--errors", action="store_true", help="only what was answered with an error")
    parser.add_argument("--count", metavar="N", type=int, default=0, help="end after so many lines")
    parser.add_argument("--seconds", metavar="S", type=float, help="end after so long")
    parser.add_argument("--json", action="store_true", help="an object a line")


def operations(text: str) -> frozenset[str]:
    names = frozenset(text.lower().split(","))
    unknown = sorted(names - set(abi.BY_NAME))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"there is no operation {unknown[0]!r}; docs/operations.md has them all"
        )
    return names


def duration(text: str) -> int:
    """Nanoseconds of "500us", "1.5ms" or "2s"."""
    for unit, nanoseconds in UNITS.items():
        if text.endswith(unit):
            try:
                return int(float(text.removesuffix(unit)) * nanoseconds)
            except (ValueError, OverflowError):
                break
    raise argparse.ArgumentTypeError(f"a time is given as 500us, 1ms or 2s, not {text!r}")


def main(options: argparse.Namespace) -> int:
    """Show requests until there is a reason to end."""
    try:
        with Talk(options.control) as talk:
            tags = options.share or [share["tag"] for share in talk.ask({"do": "list"})[0]]
            if not tags:
                raise ValueError("the daemon shares nothing yet; add a share first")
            traces = [Traced(talk, tag) for tag in tags]
            return watch(options, talk, traces)
    except (OSError, ValueError) as error:
        print(f"virtiofs trace: {options.control}: {describe(error)}", file=sys.stderr)
        return 1


class Talk:
    """A connection to the control socket, which the traces live as long as."""

    def __init__(self, path: str):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.socket.settimeout(TIMEOUT_SECONDS)

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, request: dict[str, Any]) -> tuple[Any, list[int]]:
        """The result of a request, and the descriptors that came with it.  Raises `OSError` and `ValueError`."""
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        line, descriptors = b"", []
        while not line.endswith(b"\n"):
            data, fds, _, _ = socket.recv_fds(self.socket, 65536, 4)
            descriptors += fds
            if not data:
                raise ValueError(
                    "the daemon closed the connection; its control socket is for its own user and root"
                )
            line += data
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"], descriptors


class Traced:
    """A share that is traced."""

    def __init__(self, talk: Talk, tag: str):
        _, fds = talk.ask({"do": "trace", "tag": tag})
        if not fds:
            raise ValueError("the daemon sent no descriptor for its trace")
        self.tag = tag
        self.reader = Reader(fds[0])
        self.paths = Paths(lambda nodes: ask(talk.path, {"do": "paths", "tag": tag, "nodes": nodes}))
        for fd in fds:
            os.close(fd)


class Paths:
    """Where nodes are, as the requests themselves say, and for others the daemon (`ask`, with a list of node ids).

    A rename on the host is not heard of.
    """

    def __init__(self, ask: Callable[[list[int]], dict[str, Any]]):
        self._ask = ask
        self._known: dict[int, str | None] = {ROOT: ""}

    def find(self, nodes: Iterable[int]) -> None:
        """Ask the daemon for those that are not known; who is not known there either is not asked for again."""
        missing = [node for node in dict.fromkeys(nodes) if node and node not in self._known]
        for first in range(0, len(missing), NODES_AT_ONCE):
            some = missing[first : first + NODES_AT_ONCE]
            found = self._ask(some).get("result") or {}
            for node in some:
                path = found.get(str(node))
                self._keep(node, path.rstrip("/") if isinstance(path, str) else None)

    def of(self, node: int, name: bytes | None = None) -> str:
        """The path of a node, or of a name in it; "" for none."""
        if not node:
            return ""
        path = self._known.get(node)
        if path is None:
            path = f"<node {node:#x}>"
        return (f"{path}/{os.fsdecode(name)}" if name is not None else path) or "/"

    def learn(self, record: Record) -> None:
        """Know what this request tells of others that follow."""
        operation, entries = record.operation, names_of(record)[0]
        if operation in ("init", "destroy"):
            self._known = {ROOT: ""}
        elif operation == "forget":
            if record.nodeid != ROOT:
                self._known.pop(record.nodeid, None)
        elif record.error or record.cut:
            pass
        elif record.child and record.child != ROOT and self._known.get(record.nodeid) is not None:
            if entries:
                self._keep(record.child, self.of(record.nodeid, entries[0]))
        elif len(entries) == 2:
            self._move(self.of(record.nodeid, entries[0]), self.of(record.target, entries[1]))

    def _keep(self, node: int, path: str | None) -> None:
        if len(self._known) >= MOST_PATHS:
            self._known = {ROOT: ""}
        self._known[node] = path

    def _move(self, old: str, new: str) -> None:
        """What was at `new` is gone, or is elsewhere: the daemon knows."""
        moved: dict[int, str | None] = {}
        for node, path in self._known.items():
            if path is None or not below(path, new):
                moved[node] = new + path[len(old) :] if path is not None and below(path, old) else path
        self._known = moved


def below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def names_of(record: Record) -> tuple[list[bytes], list[bytes]]:
    """The names in directories, and others: of an attribute, or what a symbolic link leads to."""
    operation = abi.BY_NAME.get(record.operation)
    kinds = operation.names if operation else ()
    named = list(zip(kinds, record.names, strict=False))
    return [name for kind, name in named if kind == abi.NAME], [
        name for kind, name in named if kind != abi.NAME
    ]


class Line:
    """A request as it is shown."""

    def __init__(self, share: Traced, record: Record):
        self.record = record
        self.share = share.tag
        self.other = ""
        entries, others = names_of(record)
        self.name = os.fsdecode(others[0]) if others else ""
        self.path = share.paths.of(record.nodeid, entries[0] if entries else None)
        if len(entries) == 2:
            self.other = share.paths.of(record.target, entries[1])
        elif record.target:
            self.other = share.paths.of(record.target)

    def human(self, wall: int) -> str:
        record = self.record
        when = datetime.datetime.fromtimestamp((record.began + wall) / 1e9).strftime("%H:%M:%S.%f")
        words = [
            when,
            f"{self.share}/{record.queue}",
            f"{record.operation.upper():<12}",
            printable(self.path) or "-",
        ]
        if self.other:
            words.append(f"-> {printable(self.other)}")
        if self.name:
            words.append(f"[{printable(self.name)}]")
        if record.size:
            words.append(f"{record.size} at {record.offset}")
        words.append(
            f"= {error_name(record.error) if record.error else max(0, record.length_out - REPLY_HEAD)}"
        )
        words.append(f"{record.took / 1000:.1f}us")
        if record.uid != NOBODY:
            words.append(f"uid={record.uid} gid={record.gid}")
        words.append(f"pid={record.pid}")
        return " ".join(words)

    def json(self, wall: int) -> str:
        record = self.record
        return json.dumps(
            {
                "time": (record.began + wall) / 1e9,
                "share": self.share,
                "queue": record.queue,
                "unique": record.unique,
                "operation": record.operation,
                "node": record.nodeid,
                "path": self.path,
                "other_path": self.other,
                "name": self.name,
                "names_cut": record.cut,
                "offset": record.offset,
                "size": record.size,
                "error": error_name(record.error) if record.error else None,
                "microseconds": record.took / 1000,
                "bytes_in": record.length_in,
                "bytes_out": record.length_out,
                "uid": record.uid,
                "gid": record.gid,
                "pid": record.pid,
            }
        )


def error_name(number: int) -> str:
    return errno.errorcode.get(number, f"errno {number}")


def printable(text: str) -> str:
    """Without what a terminal would obey."""
    text = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def wanted(options: argparse.Namespace, record: Record) -> bool:
    return (
        record.took >= options.slower
        and (not options.errors or record.error != 0)
        and (options.operation is None or record.operation in options.operation)
    )


def wanted_path(glob: str | None, *paths: str) -> bool:
    if glob is None:
        return True
    if any(letter in glob for letter in "*?["):
        return any(fnmatch.fnmatchcase(path, glob) for path in paths)
    return any(below(path, glob) for path in paths if path)


def watch(options: argparse.Namespace, talk: Talk, traces: list[Traced]) -> int:
    """Print what comes until there is enough, the time is over, or the daemon ends."""
    wall = time.time_ns() - time.monotonic_ns()
    end = None if options.seconds is None else time.monotonic() + options.seconds
    shown = 0
    gone = select.poll()
    gone.register(talk.socket, select.POLLIN)
    ended = False
    while not ended:
        ended = bool(gone.poll(LOOK_MILLISECONDS)) or (end is not None and time.monotonic() >= end)
        for share in traces:
            records, lost = share.reader.read()
            # Only what is shown has to be asked for.
            share.paths.find(
                node
                for record in records
                if wanted(options, record)
                for node in (record.nodeid, record.target)
            )
            for record in records:
                line = Line(share, record) if wanted(options, record) else None
                share.paths.learn(record)
                if line is not None and wanted_path(options.glob, line.path, line.other):
                    print(line.json(wall) if options.json else line.human(wall))
                    shown += 1
                    if shown == options.count:
                        return 0
            if lost:
                tell_lost(options, share, lost)
        sys.stdout.flush()
    return 0


def tell_lost(options: argparse.Namespace, share: Traced, lost: int) -> None:
    if options.json:
        print(json.dumps({"share": share.tag, "lost": lost}))
    else:
        print(
            f"virtiofs trace: {share.tag}: {lost} requests were too quick for this command", file=sys.stderr
        )

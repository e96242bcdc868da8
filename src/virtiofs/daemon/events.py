# SPDX-License-Identifier: Apache-2.0
"""Telling a client of the control socket what changes in a share: one line of JSON for each change.

Each client has a process of its own, which has its connection and follows the journal of the share's metadata table.
So a client that reads slowly holds up nobody, and needs no buffer: whoever is a whole journal behind is told that
anything may have changed.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from typing import Any

from virtiofs.daemon import beside
from virtiofs.daemon.log import Log
from virtiofs.daemon.port import Share
from virtiofs.metadata import layout, registry
from virtiofs.metadata.follower import Change
from virtiofs.metadata.paths import Identity, Paths
from virtiofs.metadata.table import Table
from virtiofs.sandbox import capabilities

KINDS = {number: name for name, number in layout.KINDS.items()}
# Bytes that are sent at a time, if there is as much to tell.
CHUNK = 16384


def start(sock: socket.socket, share: Share, log: Log) -> tuple[int, int]:
    """Tell `sock` of the changes of `share` from now on, in a process: its number, and a pidfd of it.

    It ends when the client goes.  `sock` can be closed here.
    """

    assert share.seats is not None
    directory = share.seats.directory

    def run() -> int:
        try:
            table = registry.attach(directory)
            Events(table, directory, share.only).tell(sock)
        except BrokenPipeError:
            pass
        except OSError as error:
            sock.sendall(json.dumps({"error": error.strerror or str(error)}).encode() + b"\n")
            return 1
        return 0

    return beside.start(run, log, capabilities.mask("dac_read_search"), [sock.fileno()])


class Events:
    """The changes of the tree below `directory` as lines of JSON; of one file in it only, if `only` is its name."""

    def __init__(self, table: Table, directory: str, only: str = ""):
        self._table = table
        self._follower = table.follow()
        self._paths = Paths(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._only = only

    def tell(self, sock: socket.socket) -> None:
        """Send changes until the client goes.  Raises `OSError`."""
        sock.setblocking(True)
        threading.Thread(target=end_with, args=(sock.fileno(),), daemon=True).start()
        sock.sendall(json.dumps({"result": self._state()}).encode() + b"\n")
        lines = bytearray()
        while True:
            change = self._follower.next(0 if lines else None)
            event = None if change is None else self.event(change)
            if event is not None:
                lines += json.dumps(event).encode() + b"\n"
            if lines and (change is None or len(lines) >= CHUNK):
                sock.sendall(lines)
                lines.clear()

    def _state(self) -> dict[str, bool]:
        return {"watched": self._table.watched}

    def event(self, change: Change) -> dict[str, Any] | None:
        """A change as JSON can say it; None for one that is of no interest to whom it is told."""
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        when = time.time() - (boot - change.time) / 1e9
        event = {"sequence": change.sequence, "time": round(when, 6), "kind": KINDS[change.kind]}
        if change.kind == layout.EVERYTHING:
            return event
        host = self._by_host(change.origin)
        try:
            path = self._path(change, host)
        except LookupError:
            return {**event, "kind": KINDS[layout.EVERYTHING]}
        if path is None or (self._only and path != os.fsencode(self._only)):
            return None
        if change.kind == layout.ENTRY and not self._paths.exists(path):
            event["kind"] = KINDS[layout.GONE]  # renamed away, or made and removed since
        return {**event, "path": os.fsdecode(path) or ".", "by": "host" if host else "guest"}

    def _by_host(self, origin: int) -> bool:
        watcher = self._table.watcher
        return origin == watcher if watcher >= 0 else not self._table.worker(origin)

    def _path(self, change: Change, host: bool) -> bytes | None:
        """Where it happened; None: nowhere that can be told.  Raises `LookupError` if that can not be found out now."""
        inode: Identity = (change.dev, change.ino)
        other: Identity = (change.child_dev, change.child_ino)
        if change.kind in (layout.ENTRY, layout.GONE):
            if other != (0, 0) and change.kind == layout.ENTRY:
                self._paths.learn(other, inode, change.name)
            elif other != (0, 0):
                self._paths.forget(other, inode, change.name)
            return self._paths.find_name(inode, change.name)
        if change.name not in (b"", b".") and other != (0, 0):  # where it was reached
            self._paths.learn(inode, other, change.name)
            return self._paths.find_name(other, change.name)
        # The watcher has no name for a file whose number of names changed; the workers' changes come without.
        return self._paths.find(inode, search=not host or change.name == b".")


def end_with(fd: int) -> None:
    """End this process when the other end of a connection is closed."""
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP and POLLERR are always told
    poll.poll()
    os._exit(0)

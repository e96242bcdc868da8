# SPDX-License-Identifier: Apache-2.0
"""The control socket: what a person or a program asks of a running daemon.  docs/control.md describes it.

Lines of JSON both ways.  The oracle: each line is answered by one line, `{"result": VALUE}` or
`{"error": TEXT}`, or the connection is closed; after the answer to `events`, a line follows for each change.  Only
root and the daemon's own user are let in.

Nobody can hold the daemon up: every read and write is non-blocking, a client's lines are obeyed one in each
turn of the supervisor's loop, and nothing more is read from a client that has not taken its answers.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from virtiofs.daemon import metrics
from virtiofs.daemon.log import Log
from virtiofs.daemon.observed import Observed, Shares
from virtiofs.daemon.socketfile import SocketFile

MAX_LINE = 65536
MAX_CLIENTS = 16
# Clients that are told of changes, each by a process.
MAX_LISTENERS = 32
CHUNK = 65536
MAX_NODES = 64


class Stream(NamedTuple):
    """An answer that goes on: a share's trace, or its changes."""

    port: Observed
    trace: bool


class Client:
    """One connection to the control socket."""

    def __init__(self, sock: socket.socket):
        self.socket = sock
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.ended = False  # it will send nothing more
        self.fds: list[int] = []  # go with the next byte; of ports
        self.traced: list[Observed] = []

    @property
    def has_line(self) -> bool:
        return b"\n" in self.incoming and not self.outgoing


class Control:
    """Answers on `listener`, whose file `path` is removed at the end, what is asked of `supervisor`."""

    def __init__(self, listener: socket.socket, path: str, supervisor: Shares, log: Log):
        self._listener = listener
        self._file = SocketFile(path)
        self._supervisor = supervisor
        self._log = log
        self._clients: list[Client] = []
        self._listeners: dict[int, int] = {}  # the process that tells one what changes, by its pidfd
        listener.setblocking(False)

    @property
    def busy(self) -> bool:
        """Whether there is something to do without anything more happening."""
        return any(client.has_line for client in self._clients)

    def sources(self) -> list[tuple[int, int, Callable[[], None]]]:
        """Descriptors, poll events, and what to do then; that may also be called when nothing happened."""
        sources = []
        if len(self._clients) < MAX_CLIENTS:
            sources.append((self._listener.fileno(), select.POLLIN, self._accept))
        for client in self._clients:
            events = select.POLLOUT if client.outgoing else select.POLLIN
            sources.append((client.socket.fileno(), events, functools.partial(self._serve, client)))
        for handle in self._listeners:
            sources.append((handle, select.POLLIN, functools.partial(self._bury, handle)))
        return sources

    def close(self) -> None:
        """Close the socket and every connection."""
        for client in list(self._clients):
            self._drop(client)
        for handle, pid in list(self._listeners.items()):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(handle)
        self._listener.close()
        self._file.remove()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it is gone again
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid not in (0, os.geteuid()):
            self._log.warning(f"control: refused process {pid} of user {uid}")
            sock.close()
            return
        sock.setblocking(False)
        self._clients.append(Client(sock))

    def _drop(self, client: Client) -> None:
        client.socket.close()
        for port in client.traced:
            port.end_trace()
        self._clients.remove(client)

    def _serve(self, client: Client) -> None:
        """Move on with one client, by one line at most."""
        try:
            self._flush(client)
            if not client.outgoing and not client.has_line and not client.ended:
                self._read(client)
            if client.has_line:
                line, _, rest = bytes(client.incoming).partition(b"\n")
                client.incoming[:] = rest
                reply = answer(self._supervisor, line)
                begun = reply.get("result")
                if isinstance(begun, Stream):
                    reply = (
                        begin_trace(client, begun.port)
                        if begun.trace
                        else self._tell_changes(client, begun.port)
                    )
                client.outgoing += json.dumps(reply).encode() + b"\n" if reply else b""
                self._flush(client)
        except ConnectionError:
            self._drop(client)
            return
        if len(client.incoming) > MAX_LINE and b"\n" not in client.incoming:
            self._drop(client)  # no answer can say which line it is for
        elif client.ended and not client.outgoing and not client.has_line:
            self._drop(client)

    def _tell_changes(self, client: Client, port: Observed) -> dict[str, Any]:
        """Leave a client to a process that tells it of changes, or the error that is its answer."""
        from virtiofs.daemon import events

        if len(self._listeners) >= MAX_LISTENERS:
            return {"error": f"{MAX_LISTENERS} clients are told of changes, which is all this daemon does"}
        pid, handle = events.start(client.socket, port, self._log)
        self._listeners[handle] = pid
        client.ended = True  # nothing else is answered
        client.incoming.clear()
        return {}

    def _bury(self, handle: int) -> None:
        """A client went that was told of changes."""
        if handle in self._listeners and os.waitpid(self._listeners[handle], os.WNOHANG)[0]:
            del self._listeners[handle]
            os.close(handle)

    def _read(self, client: Client) -> None:
        try:
            data = client.socket.recv(CHUNK)
        except BlockingIOError:
            return
        client.incoming += data
        client.ended = not data

    def _flush(self, client: Client) -> None:
        try:
            while client.outgoing:
                # A byte is sent as well, or nothing is.
                del client.outgoing[: socket.send_fds(client.socket, [client.outgoing], client.fds)]
                client.fds = []
        except BlockingIOError:
            pass  # it is read slowly: more when there is room


def begin_trace(client: Client, port: Observed) -> dict[str, Any]:
    """Give a client a port's ring, for as long as it stays: the answer to its request."""
    try:
        ring = port.begin_trace()
    except OSError as error:
        return {"error": f"cannot trace {port.tag}: {error}"}
    client.fds.append(ring)
    client.traced.append(port)
    return {"result": {"tag": port.tag, "directory": port.where}}


def answer(supervisor: Shares, line: bytes) -> dict[str, Any]:
    """Obey one line: `{"result": VALUE}` or `{"error": TEXT}`."""
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError('a request is an object: {"do": COMMAND, ...}')
        name = request.pop("do", None)
        command = COMMANDS.get(name) if isinstance(name, str) else None
        if command is None:
            raise ValueError(f"there is no command {name!r}; there are: {', '.join(COMMANDS)}")
        arguments, act = command
        for key, value in request.items():
            kind = arguments.get(key)
            if kind is None or type(value) is not kind:
                raise ValueError(f"{name} takes no {key}={value!r}; it takes {describe(arguments)}")
        return {"result": act(supervisor, **request)}
    except (TypeError, RecursionError, UnicodeError):
        return {"error": "this request lacks an argument, or is no JSON"}
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    except (LookupError, AttributeError):
        return {"error": "the answer of a worker makes no sense"}


def describe(arguments: dict[str, type]) -> str:
    words = {str: "a string", bool: "true or false", list: "a list of numbers"}
    return ", ".join(f"{key} ({words[kind]})" for key, kind in arguments.items()) or "nothing"


def listing(supervisor: Shares) -> list[dict[str, Any]]:
    """What is shared, without asking the workers."""
    return [
        {
            "tag": port.tag,
            "directory": port.where,
            "read_only": port.read_only,
            "socket": port.path,
            "connected": port.peer,
        }
        for port in supervisor.ports
    ]


def add(supervisor: Shares, share: str) -> str | None:
    return supervisor.add(share).path


def remove(supervisor: Shares, tag: str, force: bool = False) -> None:
    supervisor.remove(tag, force)


def set_log_level(supervisor: Shares, level: str) -> None:
    supervisor.set_log_level(level)


def events(supervisor: Shares, tag: str = "") -> Stream:
    """The share whose changes are to be told."""
    if not tag and len(supervisor.ports) != 1:
        raise ValueError(
            f"this daemon has several shares; say which: {', '.join(port.tag for port in supervisor.ports)}"
        )
    port = supervisor.find(tag) if tag else supervisor.ports[0]
    if port.seats is None:
        raise ValueError(f"{port.tag} has no metadata table; start the daemon with --metadata-table")
    return Stream(port, trace=False)


def counters(supervisor: Shares) -> list[dict[str, Any]]:
    """The state of each share with its counters by operation (see `QueueLoop.counters`)."""
    return [{**port.status(), "operations": port.counters()} for port in supervisor.ports]


def paths(supervisor: Shares, tag: str, nodes: list[int]) -> dict[str, Any]:
    if len(nodes) > MAX_NODES or not all(type(node) is int and 0 < node < 1 << 64 for node in nodes):
        raise ValueError(f"nodes are at most {MAX_NODES} node ids")
    return supervisor.find(tag).paths(nodes)


# Arguments by name with their types, and the function that takes them.
COMMANDS: dict[str, tuple[dict[str, type], Callable[..., Any]]] = {
    "status": ({}, lambda supervisor: supervisor.status()),
    "list": ({}, listing),
    "add": ({"share": str}, add),
    "remove": ({"tag": str, "force": bool}, remove),
    "log-level": ({"level": str}, set_log_level),
    "events": ({"tag": str}, events),
    "counters": ({}, counters),
    "trace": ({"tag": str}, lambda supervisor, tag: Stream(supervisor.find(tag), trace=True)),
    "paths": ({"tag": str, "nodes": list}, paths),
    "reload-policy": ({"tag": str}, lambda supervisor, tag="": supervisor.reload_policies(tag)),
    "metrics": ({}, lambda supervisor: metrics.text(supervisor.ports)),
}

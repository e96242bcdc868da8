# SPDX-License-Identifier: Apache-2.0
"""How the supervisor tells its worker what to do: one message, one answer, descriptors beside them.

A message is a JSON object in one packet of an AF_UNIX SEQPACKET pair: `{"do": NAME, ...}` with the arguments;
the answer is `{"result": VALUE}` or `{"error": TEXT}`.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE = 65536
MAX_FDS = 16


class WorkerError(OSError):
    """The worker refused, or is gone.  The text says which."""


class WorkerGone(WorkerError):
    """The worker ended: nothing can be asked of it any more."""


def pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end and the worker's end."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; `fds` stay the caller's.  Raises `OSError`."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(message).encode()], ancillary)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors, which are the caller's; None when the other end is gone.

    Raises `WorkerError` for what is no message: a worker that a guest has taken over may send anything.
    """
    space = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    try:
        data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    message = None
    try:
        message = json.loads(data) if data else None
    except (ValueError, RecursionError):
        pass
    if isinstance(message, dict):
        return message, list(fds)
    for fd in fds:
        os.close(fd)
    if data:
        raise WorkerError("what came over the channel is no message")
    return None


def ask(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> Any:
    """Send a message and wait for its answer: the result.

    Raises `WorkerError` with the worker's reason, `WorkerGone` if it ended.
    """
    try:
        send(sock, message, fds)
        received = receive(sock)
    except ConnectionError:
        received = None
    if received is None:
        raise WorkerGone("the worker has ended")
    answer, unasked = received
    for fd in unasked:
        os.close(fd)
    if "error" in answer:
        raise WorkerError(str(answer["error"]) or "the worker gives no reason")
    return answer.get("result")

# SPDX-License-Identifier: Apache-2.0
"""How the supervisor tells its worker what to do: one message, one answer, descriptors beside them.

A message is a JSON object in one packet of an AF_UNIX SEQPACKET pair: `{"do": NAME, ...}` with the arguments;
the answer is `{"result": VALUE}` or `{"error": TEXT}`.  Each carries a number, so that an answer that came too late
is not taken for the next one.
"""

from __future__ import annotations

import array
import itertools
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE = 65536
MAX_FDS = 16

_numbers = itertools.count(1)


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
    close_all(fds)
    if data:
        raise WorkerError("what came over the channel is no message")
    return None


def ask(
    sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = (), seconds: float | None = None
) -> Any:
    """Send a message and wait for its answer, if need be only so many seconds: the result.

    Raises `WorkerError` with the worker's reason, or when it does not answer in time, and `WorkerGone` if it ended.
    """
    number = next(_numbers)
    answer: dict[str, Any] = {"number": 0}
    if seconds is not None:
        sock.settimeout(seconds)
    try:
        send(sock, {**message, "number": number}, fds)
        while answer.get("number") != number:
            received = receive(sock)
            if received is None:
                raise ConnectionResetError
            answer, unasked = received
            close_all(unasked)
    except ConnectionError:
        raise WorkerGone("the worker has ended") from None
    except TimeoutError:
        raise WorkerError("the worker does not answer") from None
    finally:
        if seconds is not None:
            sock.settimeout(None)
    if "error" in answer:
        raise WorkerError(str(answer["error"]) or "the worker gives no reason")
    return answer.get("result")


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors nobody asked for: a worker that was taken over might fill our table with them."""
    for fd in fds:
        os.close(fd)


def has_ended(sock: socket.socket) -> bool:
    """Whether the other end is gone, when `sock` is readable while nothing was asked; late answers are dropped."""
    sock.setblocking(False)
    try:
        received = receive(sock)
        close_all(received[1] if received else ())
        return received is None
    except (BlockingIOError, WorkerError):  # a message that makes no sense is one that nobody asked for
        return False
    finally:
        sock.setblocking(True)

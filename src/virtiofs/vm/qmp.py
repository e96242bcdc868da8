# SPDX-License-Identifier: Apache-2.0
"""QEMU's machine protocol (QMP): JSON lines over a connected socket.

Source: QEMU, docs/interop/qmp-spec.rst.  Only the client's end, synchronous, with events kept until they are
asked for.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

from virtiofs.vm.errors import GuestError, GuestTimeout

__all__ = ["Monitor"]


class Monitor:
    """The monitor of one QEMU.  Its descriptor is readable when there are new events or QEMU is gone."""

    def __init__(self, connection: socket.socket) -> None:
        """`connection` leads to a QEMU monitor in control mode; it belongs to the Monitor from now on."""
        self._socket = connection
        self._socket.setblocking(False)
        self._received = b""
        self._events: list[dict[str, Any]] = []
        self._answers: list[dict[str, Any]] = []
        self._number = 0
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def negotiate(self, timeout: float = 30.0) -> None:
        """Say hello.  QEMU takes no other command and sends no event before.  Raises as command() does."""
        self.command("qmp_capabilities", timeout)

    def command(self, name: str, timeout: float = 10.0, **arguments: Any) -> Any:
        """Run the QMP command `name` and give its "return" value.

        Raises GuestError if QEMU refuses it or is gone, GuestTimeout after `timeout` seconds.
        """
        message: dict[str, Any] = {"execute": name}
        if arguments:
            message["arguments"] = arguments
        return self._exchange(message, time.monotonic() + timeout)

    def events(self) -> list[dict[str, Any]]:
        """The events since the last call, oldest first, without waiting.  Sets `closed` if QEMU is gone."""
        self._receive()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._socket.close()
        self.closed = True

    def _exchange(self, message: dict[str, Any], deadline: float) -> Any:
        self._number += 1
        message["id"] = (
            self._number
        )  # an answer that comes after its time-out must not be taken for the next one's
        try:
            # A request is far smaller than a socket's buffer: a full one means that QEMU has stopped reading.
            self._socket.sendall(json.dumps(message).encode() + b"\r\n")
        except OSError as error:
            self.closed = self.closed or not isinstance(error, BlockingIOError)
            raise GuestError(
                f"QEMU does not take the command {message['execute']}: {error.strerror}"
            ) from None
        while not (answers := [answer for answer in self._answers if answer.get("id") == self._number]):
            if self.closed:
                raise GuestError(f"QEMU ended before it answered {message['execute']}")
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                raise GuestTimeout(f"QEMU did not answer {message['execute']} in time")
            self._receive()
        self._answers.clear()
        answer = answers[0]
        if "error" in answer:
            raise GuestError(f"QEMU refused {message['execute']}: {answer['error'].get('desc')}")
        return answer["return"]

    def _receive(self) -> None:
        while not self.closed:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.closed = True
                break
            self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            message = json.loads(line) if line.strip() else {}
            if "event" in message:
                self._events.append(message)
            elif "return" in message or "error" in message:
                self._answers.append(message)

# SPDX-License-Identifier: Apache-2.0
"""The back-end channel: asking the front end to map a piece of a file in the window, and waiting for its answer.

Two dialects.  The standard one (QEMU 11.1, crosvm): SHMEM_MAP and SHMEM_UNMAP.  The older one, of the virtio-fs
branches of QEMU and what grew from them: FS_MAP and FS_UNMAP, which honour "read only".  Its FS_SYNC is not needed
here: fsync(2) on the host writes what was stored through a mapping of the same file.

The answer is always awaited: without, guests with two processors read wrong data (seen).  While we wait, the front
end may be waiting for us on its other connection; so a wait can be interrupted.  What was asked then still happens:
its answer is taken before anything else is asked, and its effect with it.

Source: QEMU documentation 11.1, "Vhost-user Protocol", back-end message types; the older messages: vhost crate 0.11.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import time
from collections.abc import Callable

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.payloads import NO_FD, SHMEM_F_RW, ShmemMap, Value, VringArea

ANSWER_SECONDS = 30.0
WINDOW_ID = 0  # the shared memory region that is the window (virtio 1.3, section 5.11.6.2)

NO_VRING = 0xFF  # an index that no device here has

Effect = Callable[[bool], None]


class Interrupted(Exception):
    """The wait was cut short; the request may come again."""


class ChannelError(OSError):
    """The front end does not answer, or nonsense: nothing can be mapped any more."""


class Channel:
    """Requests to the front end over descriptor `fd`, which is the channel's from now on.

    `wake` is a descriptor that is readable while waits are to be interrupted.  `barriers`: it answers whatever it is
    asked (QEMU; crosvm ends the connection over what it does not know).  For one thread at a time.  `map` and
    `unmap` call `effect` with whether the front end did it, once its answer is there.  All methods raise `Interrupted`
    and `ChannelError`.
    """

    exact = False  # a mapping is as writable as was asked

    def __init__(self, fd: int, wake: int, barriers: bool = True, seconds: float = ANSWER_SECONDS):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
        self._wake = wake
        self._barriers = barriers
        self._seconds = seconds
        self._late: Effect | None = None  # of a request that was asked and not answered yet
        self._request = 0
        self._received = b""
        self._failed = ""

    def close(self) -> None:
        self._socket.close()

    def map(
        self,
        offset: int,
        fd: int,
        fd_offset: int,
        length: int,
        writable: bool,
        effect: Effect,
        region: int = WINDOW_ID,
    ) -> None:
        """Map `length` bytes at `fd_offset` of a file at `offset` of the window, or of another shared memory region.

        `fd` stays the caller's.
        """
        value = ShmemMap(region, fd_offset, offset, length, SHMEM_F_RW if writable else 0)
        self._ask(m.BACKEND_SHMEM_MAP, self._encode(m.BACKEND_SHMEM_MAP, value), [fd], effect)

    def unmap(self, offset: int, length: int, effect: Effect) -> None:
        """Unmap exactly what was mapped at `offset`."""
        value = ShmemMap(WINDOW_ID, 0, offset, length, 0)
        self._ask(m.BACKEND_SHMEM_UNMAP, self._encode(m.BACKEND_SHMEM_UNMAP, value), [], effect)

    def barrier(self) -> None:
        """Return when what was asked before is complete.

        QEMU answers a moment before the guest sees the change, but takes nothing else up until then (seen).  So
        something is asked that it refuses, without a word: it did not take HOST_NOTIFIER.
        """
        if self._barriers:
            value = VringArea(NO_FD | NO_VRING, 0, 0)
            request = m.BACKEND_VRING_HOST_NOTIFIER_MSG
            self._ask(request, self._encode(request, value), [], lambda done: None)

    def settle(self) -> None:
        """Take the answer to a request whose wait was interrupted, if there is one."""
        if self._late is not None:
            done = self._answer() == 0
            effect, self._late = self._late, None
            effect(done)

    @staticmethod
    def _encode(request: int, value: Value) -> bytes:
        return m.encode(request, value, m.VERSION | m.NEED_REPLY, from_front_end=False)

    def _ask(self, request: int, message: bytes, fds: list[int], effect: Effect) -> None:
        self.settle()
        if self._failed:
            raise ChannelError(self._failed)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            if self._socket.sendmsg([message], ancillary, socket.MSG_NOSIGNAL) != len(message):
                self._fail("the front end does not read its back-end channel")
        except OSError as error:
            self._fail(f"the back-end channel is gone: {error.strerror}")
        self._request = request
        self._late = effect
        self.settle()

    def _answer(self) -> int:
        """The number that answers the last request."""
        size = m.HEADER_SIZE + 8
        deadline = time.monotonic() + self._seconds
        if self._failed:
            raise ChannelError(self._failed)
        while len(self._received) < size:
            ready = self._wait(deadline - time.monotonic())
            if self._wake in ready:
                raise Interrupted
            if not ready:
                self._fail(f"the front end did not answer a mapping in {self._seconds:g} s")
            try:
                space = socket.CMSG_SPACE(4 * array.array("i").itemsize)
                data, ancillary, _, _ = self._socket.recvmsg(
                    size - len(self._received), space, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            except OSError as error:
                self._fail(f"the back-end channel is gone: {error.strerror}")
            close_all(ancillary)
            if not data:
                self._fail("the front end closed the back-end channel")
            self._received += data
        request, flags, length, number = struct.unpack("=IIIQ", self._received)
        self._received = b""
        if (request, flags, length) != (self._request, m.REPLY_FLAGS, 8):
            self._fail(f"request {request} with flags {flags:#x} came where an answer was due")
        return int(number)

    def _wait(self, seconds: float) -> list[int]:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        return [fd for fd, _ in poll.poll(max(0, round(seconds * 1000)))]

    def _fail(self, text: str) -> None:
        """Nothing can be asked any more: what the front end maps is not known."""
        self._failed = text
        raise ChannelError(text)


class OlderChannel(Channel):
    """The dialect of the virtio-fs branches of QEMU, in the numbers of the vhost crate up to 0.11."""

    exact = True

    def barrier(self) -> None:
        """These front ends answer when it is done."""

    FS_MAP, FS_UNMAP = 6, 7
    READ, WRITE = 1, 2
    ENTRIES = 8
    _payload = struct.Struct("=32Q")  # fd_offset[8], c_offset[8], len[8], flags[8]

    def map(
        self,
        offset: int,
        fd: int,
        fd_offset: int,
        length: int,
        writable: bool,
        effect: Effect,
        region: int = WINDOW_ID,
    ) -> None:
        if region != WINDOW_ID:
            effect(False)  # there is one
            return
        flags = self.READ | (self.WRITE if writable else 0)
        self._ask(self.FS_MAP, self._message(self.FS_MAP, fd_offset, offset, length, flags), [fd], effect)

    def unmap(self, offset: int, length: int, effect: Effect) -> None:
        self._ask(self.FS_UNMAP, self._message(self.FS_UNMAP, 0, offset, length, 0), [], effect)

    def _message(self, request: int, *entry: int) -> bytes:
        rest = (0,) * (self.ENTRIES - 1)
        payload = self._payload.pack(*(word for value in entry for word in (value, *rest)))
        return struct.pack("=III", request, m.VERSION | m.NEED_REPLY, len(payload)) + payload


def close_all(ancillary: list[tuple[int, int, bytes]]) -> None:
    """Close descriptors that nobody asked for."""
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds = array.array("i")
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
            for fd in fds:
                os.close(fd)

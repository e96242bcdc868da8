# SPDX-License-Identifier: Apache-2.0
"""vhost-user messages: the back end's state machine with a device that objects to nonsense, and its socket."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path
from random import Random

from fuzz.choices import Choices
from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.payloads import ProtocolError
from virtiofs.vhostuser.transport import Connection

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "vhostuser"))

from recording_device import Direct, RecordingDevice, open_fds
from test_vhostuser_hostile import PLAIN, run_a_sequence, some_message, steps_to_a_running_queue

SEQUENCE, STREAM = 0, 1


def _stream(seed: int) -> bytes:
    """A session as bytes: each message with the number of its descriptors before it."""
    random = Random(seed)
    sent = [(m.SET_FEATURES, 0x9, m.encode(m.SET_FEATURES, PLAIN)[m.HEADER_SIZE :], 0)]
    sent += steps_to_a_running_queue(0) if seed & 1 else []
    sent += [some_message(random) for _ in range(6)]
    data = bytes([STREAM])
    for request, flags, payload, fds in sent:
        data += bytes([fds]) + struct.pack("=III", request, flags, len(payload)) + payload
    return data


SEEDS = [bytes([SEQUENCE]) + Random(seed).randbytes(60 + 10 * seed) for seed in range(12)]
SEEDS += [_stream(seed) for seed in range(12)]


class Target:
    """Each message is obeyed, answered with a refusal, or ends the connection by `ProtocolError`; the device is never
    told nonsense, and no descriptor is left."""

    def __init__(self, scratch: Path):
        self.spare = os.memfd_create("spare")
        os.ftruncate(self.spare, 1 << 20)

    def __call__(self, data: bytes) -> None:
        before = open_fds()
        choices = Choices(data)
        if choices.number(1) & 1 == SEQUENCE:
            run_a_sequence(choices)
        else:
            self._run_stream(choices)
        assert open_fds() == before

    def _run_stream(self, choices: Choices) -> None:
        ours, theirs = socket.socketpair()
        # Small enough that nothing blocks: what fits is what is sent.
        ours.setblocking(False)
        peer = Direct(RecordingDevice())
        with ours, Connection(theirs, message_seconds=5) as connection:
            try:
                while choices.left:
                    fds = [self.spare] * (choices.number(1) % 35)
                    head = choices.take(m.HEADER_SIZE)
                    size = int.from_bytes(head[8:12], "little")
                    message = head + choices.take(min(size, 4096))
                    if not message:
                        break
                    socket.send_fds(ours, [message], fds)
                    if len(message) < m.HEADER_SIZE + size:
                        ours.shutdown(socket.SHUT_WR)
                    if not peer.backend.step(connection):
                        break
                    self._drain(ours)
            except ProtocolError:
                pass
            self._drain(ours)
            peer.backend.close()

    @staticmethod
    def _drain(sock: socket.socket) -> None:
        """Take the answers, and close what came with them."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(sock, 65536, 32)
            except (BlockingIOError, ConnectionError):
                return
            for fd in fds:
                os.close(fd)
            if not data:
                return

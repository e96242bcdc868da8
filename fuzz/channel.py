# SPDX-License-Identifier: Apache-2.0
"""What a worker that a guest has taken over may answer its supervisor."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

from fuzz.choices import Choices
from virtiofs.daemon import channel
from virtiofs.daemon.device import ShareDevice
from virtiofs.daemon.log import Log

SEEDS = [
    bytes([fds]) + text
    for fds, text in enumerate(
        [
            b'{"result": null, "number": 1}',
            b'{"error": "no", "number": 1}',
            b'{"result": {"queues": {"0": [1, 2.5, true, "x"]}}, "number": 1}',
            b'{"result": 12} trailing',
            b"[]",
            b'"text"',
            b"\xff\xfe",
            b"[" * 3000,
            b'{"error": {"not": "text"}, "number": 1}',
            b"",
        ]
    )
]


class Target:
    """An answer is a result or `WorkerError`, and no descriptor is left open."""

    def __init__(self, scratch: Path):
        self.spare = os.memfd_create("spare")
        self.log = Log("error")

    def __call__(self, data: bytes) -> None:
        choices = Choices(data)
        count = choices.number(1) % 20
        before = set(os.listdir("/proc/self/fd"))
        channel._numbers = itertools.count(1)  # an answer names the message that it belongs to
        ours, its = channel.pair()
        with ours, its:
            answer = choices.take(60000)
            if answer:
                socket.send_fds(its, [answer], [self.spare] * count)
            its.shutdown(socket.SHUT_WR)
            try:
                base = ShareDevice(b"tag", 1, ours, self.log).stop_queue(0)
                assert 0 <= base <= 0xFFFF
            except channel.WorkerError as error:
                reason = str(error)
                assert reason
        assert set(os.listdir("/proc/self/fd")) == before

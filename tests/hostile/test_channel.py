# SPDX-License-Identifier: Apache-2.0
"""A worker that a guest has taken over lies to its supervisor: that is refused, and costs nothing."""

from __future__ import annotations

import itertools
import os
import socket

import pytest

from virtiofs.daemon import channel
from virtiofs.daemon.device import ShareDevice
from virtiofs.daemon.log import Log

LIES = [
    b"no json",
    b"\xff\xfe",
    b"[]",
    b'"text"',
    b"[" * 50000,
    b'{"error": ["not", "text"], "number": 1}',
    b'{"error": "", "number": 1}',
    b'{"result": null, "number": 1}',
    b'{"result": [], "number": 1}',
    b'{"result": -1, "number": 1}',
    b'{"result": 65536, "number": 1}',
    b'{"result": 1.5, "number": 1}',
]


@pytest.fixture(autouse=True)
def first_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are numbered, and an answer names its message: here it is always the first."""
    monkeypatch.setattr(channel, "_numbers", itertools.count(1))


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("answer", LIES, ids=lambda answer: repr(answer[:30]))
def test_an_answer_that_makes_no_sense_is_a_refusal(answer):
    ours, its = channel.pair()
    with ours, its:
        its.sendall(answer)
        its.shutdown(socket.SHUT_WR)
        with pytest.raises(channel.WorkerError) as caught:
            ShareDevice(b"tag", 1, ours, Log("error")).stop_queue(0)
        assert str(caught.value)


@pytest.mark.parametrize(
    "answer", [b'{"result": 7, "number": 1}', b"no json", b'{"error": "no", "number": 1}']
)
def test_descriptors_that_nobody_asked_for_are_closed(answer):
    spare = os.memfd_create("spare")
    ours, its = channel.pair()
    with ours, its:
        before = open_fds()
        socket.send_fds(its, [answer], [spare] * 5)
        try:
            assert channel.ask(ours, {"do": "stop_queue"}) == 7
        except channel.WorkerError:
            assert b"7" not in answer
        assert open_fds() == before
    os.close(spare)

# SPDX-License-Identifier: Apache-2.0
"""A directory of its own, shared by our daemon with given options, and a session with it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import devices
from virtiofs.client.device import Caller, Device
from virtiofs.client.session import OFFER, Session

ROOT = 1
USER = 1000  # who the unprivileged daemon is


class Shared(NamedTuple):
    session: Session
    host: Path
    running: devices.RunningDevice

    @contextlib.contextmanager
    def caller(self, uid: int, gid: int) -> Iterator[None]:
        """Let requests be made in another user's name."""
        before = self.session.caller
        self.session.caller = Caller(uid, gid, 1)
        try:
            yield
        finally:
            self.session.caller = before


@contextlib.contextmanager
def shared(*options: str, user: int | None = None, flags: int = OFFER) -> Iterator[Shared]:
    """Serve an empty directory; the daemon must outlive the test.  `user`: who the daemon is, and who owns it."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-share-") as place:
        if user is not None:
            os.chown(place, user, user)
        with devices.start_ours(Path(place), options, user) as running:
            with Device.connect(running.socket) as device:
                yield Shared(Session(device, flags=flags), Path(place), running)
            assert running.alive, "the daemon died:\n" + "\n".join(running.log)


def refusal(*options: str) -> str:
    """What our daemon says when it will not start with these options."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-share-") as place:
        try:
            with devices.start_ours(Path(place), options):
                pass
        except RuntimeError as error:
            return str(error)
    raise AssertionError("the daemon started")


def failure(function: object, *arguments: object, **keywords: object) -> int:
    """The errno a call fails with, 0 if it succeeds."""
    try:
        function(*arguments, **keywords)  # type: ignore[operator]
    except OSError as error:
        return error.errno or 0
    return 0

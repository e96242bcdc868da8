# SPDX-License-Identifier: Apache-2.0
"""The notification queue, as the worker runs it: in place of a loop that serves requests, one that tells of changes.

What a driver gives no buffers for stays in the journal; once that has gone round, the driver is told to forget all
that it knows.
"""

from __future__ import annotations

import errno

from virtiofs.daemon.invalidation import Invalidator
from virtiofs.daemon.log import Log
from virtiofs.fs.filesystem import Filesystem
from virtiofs.fuse.notifying import NotificationRing
from virtiofs.fuse.session import Session
from virtiofs.fuse.tracing import Ring
from virtiofs.virtqueue.split import SplitQueue


class Notifications:
    """Tells the driver of `session`, in the queue `ring`, what others change.  To the worker it is as a `QueueLoop`."""

    waiting_count = outstanding = depth = looks = vain_looks = sleeps = kicks = notifications = 0

    def __init__(
        self, ring: SplitQueue, kick: int, call: int, filesystem: Filesystem, session: Session, log: Log
    ):
        self.queue = ring
        self._ring = NotificationRing(ring, kick, call)
        self._filesystem = filesystem
        self._session = session
        self._log = log
        self._invalidator: Invalidator | None = None
        self.set_enabled = self._ring.set_enabled
        self.set_call = self._ring.set_call

    @property
    def requests(self) -> int:
        """Notifications sent."""
        return self._ring.requests

    def trace_to(self, ring: Ring | None, index: int) -> None:
        """No requests pass here."""

    def counters(self) -> dict[str, list[int]]:
        """Nothing is served here."""
        return {}

    def run(self) -> str:
        """Tell of changes until `stop`: why the ring is broken, or nothing."""
        assert self._invalidator is not None
        # A queue that begins in the middle of a session was stopped for a while.
        self._invalidator.run(everything=self._session.initialised)
        return self.queue.reason

    def stop(self) -> None:
        """Make `run` return.  May be called from any thread."""
        if self._invalidator is not None:
            self._invalidator.stop()
        self._ring.stop()

    def rearm(self) -> None:
        """Make ready for `run`, the first time or after `stop`.  Called while no thread is in `run`."""
        table = self._filesystem.metadata
        assert table is not None
        self._ring.rearm()
        self._invalidator = Invalidator(table, self._filesystem, self._session, self._send, self._log)

    def _send(self, message: bytes) -> int:
        return 0 if self._ring.send(message) else errno.ENODEV

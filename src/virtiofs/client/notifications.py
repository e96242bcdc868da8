# SPDX-License-Identifier: Apache-2.0
"""The driver's end of the notification queue: buffers for the device to fill, and what it told in them."""

from __future__ import annotations

import time

from virtiofs.client.device import NOTIFICATIONS, WAKE_UP, Device, DeviceGone, Pending
from virtiofs.fuse.abi import FUSE_OUT_HEADER
from virtiofs.fuse.notification import Notification, decode


class Notifications:
    """What `device`, which was connected with `notifications`, tells.  `buffers`: how many it may fill unread.

    Raises `ValueError` if it has no notification queue.  For one thread at a time.
    """

    def __init__(self, device: Device, buffers: int = 64):
        if not device.notify_size:
            raise ValueError("the device has no notification queue, or the driver did not ask for it")
        self._device = device
        self._given: list[Pending] = []
        self.give(buffers)

    def give(self, buffers: int) -> None:
        """Let the device fill so many buffers more."""
        for _ in range(buffers):
            self._given.append(self._device.submit(b"", self._device.notify_size, NOTIFICATIONS))

    def take(self, seconds: float = 0.0, give: bool = True) -> list[Notification]:
        """What was told since the last time, the first of it perhaps only within so many seconds; none if nothing was.

        `give`: let the device fill the buffers anew.  Raises `NotificationError` for what is no notification, and
        `DeviceGone`.
        """
        queue = self._device.queues[NOTIFICATIONS]
        deadline = time.monotonic() + seconds
        while True:
            self._device.drain(queue)
            done = [pending for pending in self._given if pending.done]
            left = deadline - time.monotonic()
            if done or left <= 0:
                break
            found = queue.ring.wait(min(left, WAKE_UP))
            if found is not None:
                self._device.complete(queue, *found)
            elif self._device.is_gone():
                raise DeviceGone("the device closed the connection")
        self._given = [pending for pending in self._given if not pending.done]
        if give:
            self.give(len(done))
        return [decode(message(pending)) for pending in done]


def message(pending: Pending) -> bytes:
    """The bytes that the device wrote."""
    reply = pending.reply
    if reply is None or reply.used_length < FUSE_OUT_HEADER.size:
        return b""
    head = FUSE_OUT_HEADER.pack(len=reply.length, error=reply.error, unique=reply.unique)
    return head + reply.payload

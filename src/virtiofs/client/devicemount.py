# SPDX-License-Identifier: Apache-2.0
"""Any vhost-user-fs device, mounted on this host without a guest.

The kernel's own FUSE client is mounted at a directory; one thread for each request queue of the device carries its
messages there and the replies back (`relay.py`).  This thread only waits for the end: the mount's, the device's, or
the user's.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time

from virtiofs.client.device import HIPRIO, Device
from virtiofs.client.hiprio import Hiprio
from virtiofs.client.relay import RelayQueue
from virtiofs.fuse.mountpoint import Mountpoint
from virtiofs.vhostuser.frontend import FrontEndError

QUEUE_SIZE = 256
DEPTH = 64  # requests in flight on a queue: more than a kernel thread for each processor reads ahead
PIECES = 5  # of a chain at most, each a descriptor where the device has no indirect tables
RING_MEMORY = 2 << 20  # for a queue's rings and tables
INIT_SECONDS = 10.0
QUIET_SECONDS = 10.0  # without any answer, while unmounting waits for one, until the device is given up
END_SECONDS = 5.0  # for what does not wait for the device
TICK_MS = 5
LOOK_MS = 250


class RelayError(Exception):
    """The device could not be mounted, is lost, or broke the rules.  The text says why, in one line."""


class DeviceMount:
    """The device that listens at `socket`, mounted at `path` while this object lives; a context manager.

    `queues`: request queues to use at most (None: as many as the device has, one for each processor).
    `read_only`, `allow_other`: as of `Mountpoint`.  A device that has no more than one front end at a time must
    be free.  Raises `RelayError`, `TransportError` when nobody listens, and `MountError`.
    """

    def __init__(
        self,
        socket: str,
        path: str,
        *,
        queues: int | None = None,
        read_only: bool = False,
        allow_other: bool = False,
    ):
        self.socket = socket
        self.mount: Mountpoint | None = None
        self.queues: list[RelayQueue] = []
        self._threads: list[threading.Thread] = []
        self._fds: list[int] = []
        self._closed = False
        most = min(queues or 64, os.cpu_count() or 1)
        memory = (most + 1) * RING_MEMORY + most * RelayQueue.memory_needed(DEPTH)
        try:
            self.device = Device.connect(
                socket, most, QUEUE_SIZE, memory + Hiprio.memory_needed(QUEUE_SIZE), fewer=True
            )
        except FrontEndError as error:
            raise RelayError(f"{socket}: {error}; is it the socket of a virtio-fs device?") from error
        self._ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._unmounted = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            # The mount table shows the tag where the device tells it.
            name = self.device.tag or os.path.basename(socket)
            self.mount = Mountpoint(path, name=name, read_only=read_only, allow_other=allow_other)
            self._start()
            self._wait_for_session()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        assert self.mount is not None
        device, arena = self.device, self.device.arena
        depth = DEPTH if device.indirect else min(DEPTH, QUEUE_SIZE // PIECES)
        hiprio = Hiprio(device.queues[HIPRIO].ring, arena.take(Hiprio.memory_needed(QUEUE_SIZE), 4096))
        for queue in device.request_queues:
            # A clone for each thread, so that they do not share the kernel's list of what awaits a reply.
            try:
                self._fds.append(self.mount.clone() if self._fds else os.dup(self.mount.fd))
            except OSError:
                self._fds.append(os.dup(self.mount.fd))
            os.set_blocking(self._fds[-1], False)
            address = arena.take(RelayQueue.memory_needed(depth), 4096)
            self.queues.append(RelayQueue(queue.ring, hiprio, self._fds[-1], address, depth))
        for relay in self.queues:
            self._threads.append(threading.Thread(target=self._run, args=(relay,), daemon=True))
            self._threads[-1].start()

    def _run(self, relay: RelayQueue) -> None:
        try:
            relay.run()
        finally:
            os.eventfd_write(self._ended, 1)

    def _wait_for_session(self) -> None:
        """Wait until the kernel and the device agreed on a session (INIT)."""
        deadline = time.monotonic() + INIT_SECONDS
        while not any(relay.initialised for relay in self.queues):
            if not self.wait(-1, TICK_MS):
                raise RelayError(f"{self.socket}: it was unmounted before the device answered")
            if time.monotonic() > deadline:
                raise RelayError(f"{self.socket}: the device does not answer INIT within {INIT_SECONDS:g} s")

    def wait(self, stop_fd: int = -1, timeout_ms: int | None = None) -> bool:
        """Wait until it is unmounted (False), or for `stop_fd` to become readable or the time to be over (True).

        Raises `RelayError` when the device is lost or broke the rules.
        """
        watch = select.poll()
        watch.register(self._ended, select.POLLIN)
        watch.register(self.device.fileno(), select.POLLRDHUP)
        for queue in self.device.queues:
            watch.register(queue.err_fd, select.POLLIN)
        if stop_fd >= 0:
            watch.register(stop_fd, select.POLLIN)
        events = dict(watch.poll(timeout_ms))
        if complaint := self._complaint():
            raise RelayError(f"{self.socket}: the device breaks the rules: {complaint}")
        if self._ended in events:
            return False
        if self.device.fileno() in events:
            raise RelayError(f"{self.socket}: the device is gone: it closed the connection")
        if any(queue.err_fd in events for queue in self.device.queues):
            raise RelayError(f"{self.socket}: the device gave up a queue; its log says why")
        return True

    def close(self, stop_fd: int = -1) -> None:
        """Unmount, end the session and the connection.  Closing again does nothing.

        What the kernel has yet to write is written first.  When the device answers nothing for QUIET_SECONDS, or
        `stop_fd` becomes readable meanwhile, that is given up and requests fail with EIO.  Raises `MountError`
        if it stays mounted.
        """
        if self._closed:
            return
        self._closed = True
        problems: list[OSError] = []
        unmounting = threading.Thread(target=self._unmount, args=(self._serving(), problems), daemon=True)
        unmounting.start()
        unmounted = self._wait_for_unmounting(stop_fd)
        for relay in self.queues:
            relay.stop()
        for thread in self._threads:
            thread.join(END_SECONDS)
        if not any(thread.is_alive() for thread in self._threads):
            if unmounted and self.queues and self._connected() and not self._complaint():
                self.queues[0].destroy()
            for fd in self._fds:
                os.close(fd)
        if self.mount is not None:
            self.mount.release()
        unmounting.join(END_SECONDS)
        self.device.disconnect()
        if not unmounting.is_alive():
            os.close(self._unmounted)
        os.close(self._ended)
        if problems:
            raise problems[0]

    def _unmount(self, serving: bool, problems: list[OSError]) -> None:
        try:
            if self.mount is not None:
                if serving:
                    # Files that stay open outlive the unmounting; what was written to them is with the kernel still.
                    with contextlib.suppress(OSError):
                        self.mount.sync()
                self.mount.unmount()
        except OSError as error:
            problems.append(error)
        os.eventfd_write(self._unmounted, 1)

    def _wait_for_unmounting(self, stop_fd: int) -> bool:
        """Wait until it is unmounted, or nobody will answer what that waits for: whether it is."""
        watch = select.poll()
        watch.register(self._unmounted, select.POLLIN)
        if stop_fd >= 0:
            watch.register(stop_fd, select.POLLIN)
        answered = -1
        while self._serving():
            if answered != (answered := sum(relay.replies for relay in self.queues)):
                deadline = time.monotonic() + QUIET_SECONDS
            events = dict(watch.poll(LOOK_MS))
            if self._unmounted in events:
                return True
            if events or time.monotonic() > deadline:
                return False
        return bool(select.select([self._unmounted], [], [], 0)[0])

    def _complaint(self) -> str:
        """What the device did wrong, or nothing."""
        return next((relay.reason for relay in self.queues if relay.reason), "")

    def _serving(self) -> bool:
        """Whether requests can be answered: then there is a point in waiting for what unmounting writes."""
        running = bool(self._threads) and all(thread.is_alive() for thread in self._threads)
        return running and self._connected()

    def _connected(self) -> bool:
        watch = select.poll()
        watch.register(self.device.fileno(), select.POLLRDHUP)
        return not watch.poll(0)

    def __enter__(self) -> DeviceMount:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

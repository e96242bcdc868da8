# SPDX-License-Identifier: Apache-2.0
"""One share of a daemon: its socket, the front end that is connected to it, and its worker.

When a front end goes, its worker is left to end by itself and a fresh one waits for the next.  The supervisor
calls what `sources` names when a descriptor is readable, and looks at `lost` and `over` afterwards: what
they mean for the daemon is its business.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from virtiofs.daemon import channel, worker
from virtiofs.daemon.device import ShareDevice
from virtiofs.daemon.log import Log
from virtiofs.daemon.observed import Observed
from virtiofs.daemon.socketfile import SocketFile
from virtiofs.fs.filesystem import Filesystem
from virtiofs.sandbox.walls import Place, Walls
from virtiofs.vhostuser.backend import BackEnd
from virtiofs.vhostuser.messages import ProtocolError
from virtiofs.vhostuser.transport import MESSAGE_SECONDS, Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.audit import Auditor
    from virtiofs.daemon.seats import Seats
    from virtiofs.fs.passthrough.account import Quota
    from virtiofs.fs.policy.reloading import PolicyFile

# How long a worker may take to finish its requests before it is killed.
GRACE_SECONDS = 10.0

Source = tuple[int, Callable[[], None]]


class Share:
    """A tree to serve.  `make` makes its file system; it runs in each worker, inside `walls`.

    `where` is for people to read.  `quota`: the account that `make` gives the file system.  `window_size`: bytes of
    the device's DAX window, 0 for none.  `keep`: descriptors that it works with.  `patience`: seconds that a request
    may still take when the guest resets the device (None: for ever).  `seats`: in the tree's metadata table, which has
    a watcher then.  `only`: the one file of the tree that is shared, "" if all of it is.  `audit`: who writes down what
    the guest does.  `policy`: whose rules `make` gives the file system, as they are then.  `replaceable`: there may be
    another share to go on with (`Port.replace`).
    """

    def __init__(
        self,
        tag: bytes,
        where: str,
        make: Callable[[Place], Filesystem],
        walls: Walls,
        read_only: bool = False,
        quota: Quota | None = None,
        window_size: int = 0,
        keep: Sequence[int] = (),
        patience: float | None = None,
        seats: Seats | None = None,
        only: str = "",
        audit: Auditor | None = None,
        policy: PolicyFile | None = None,
        replaceable: bool = False,
    ):
        self.replaceable = replaceable
        self.only = only
        self.policy = policy
        self.audit = audit
        self.keep = keep
        self.seats = seats
        self.patience = patience
        self.tag = tag
        self.where = where
        self.make = make
        self.walls = walls
        self.read_only = read_only
        self.quota = quota
        self.window_size = window_size


class Leaving:
    """A worker that was told to end."""

    def __init__(self, pid: int):
        self.pid = pid
        self.handle = os.pidfd_open(pid)
        self.deadline = time.monotonic() + GRACE_SECONDS


class Port(Observed):
    """Serves `share` on one socket.

    `listener` is a listening AF_UNIX socket, or None to serve only `connected`.  `path`, if given, is the
    socket's file, which is removed at the end.  `once`: one connection is all.  `patience`: seconds a front
    end may take for one message, while the others of the daemon wait.
    """

    def __init__(
        self,
        share: Share,
        queues: int,
        log: Log,
        listener: socket.socket | None = None,
        connected: socket.socket | None = None,
        path: str | None = None,
        once: bool = False,
        patience: float = MESSAGE_SECONDS,
    ):
        super().__init__(share.where, share.read_only, log)
        self.share = share
        self.lost = False  # the worker died under us
        self.over = False  # the only connection ended
        self.connections = 0
        self._ending = False
        self._peer: int | None = None
        self._queues = queues
        self._listener = listener
        self._first = connected
        self._file = SocketFile(path) if path else None
        self._once = once or listener is None
        self._patience = patience
        self._connection: Connection | None = None
        self._back_end: BackEnd | None = None
        self._device: ShareDevice | None = None
        self._leaving: list[Leaving] = []

    @property
    def seats(self) -> Seats | None:
        return self.share.seats

    @property
    def only(self) -> str:
        return self.share.only

    @property
    def policy(self) -> PolicyFile | None:
        return self.share.policy

    @property
    def tag(self) -> str:
        return self.share.tag.decode()

    @property
    def path(self) -> str | None:
        return self._file.path if self._file else None

    @property
    def peer(self) -> int | None:
        """The process that is connected."""
        return self._peer

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def start(self) -> None:
        """Get a watcher and a worker, and serve the front end that is there already.  Raises `WorkerError`."""
        if self.share.seats is not None:
            from virtiofs.daemon.watcher import WatcherProcess

            self._watcher = WatcherProcess(self.share.seats.directory, self._log)
            self._watcher.start()
        self._start_worker()
        if self._first is not None:
            self._connect(self._first)

    def sources(self) -> list[Source]:
        """What to wait for, and what to do then, the most urgent first; after one of them, ask again."""
        sources: list[Source] = [(left.handle, self._reap) for left in self._leaving]
        if self._watcher is not None and self._watcher.fd >= 0:
            sources.append((self._watcher.fd, self._watcher.ended))
        # What the front end did before it left comes before whoever wants its place.
        if self._worker is not None:
            sources.append((self._worker[1].fileno(), self._look_after_worker))
        if self._connection is not None:
            sources.append((self._connection.fileno(), self._step))
        if self._listener is not None:
            sources.append((self._listener.fileno(), self._accept))
        return sources

    def deadline(self) -> float | None:
        """When `expire` is to be called (monotonic seconds)."""
        return min((left.deadline for left in self._leaving), default=None)

    def expire(self) -> None:
        """Kill workers whose time is up."""
        now = time.monotonic()
        for left in self._leaving:
            if left.deadline <= now:
                self._log.error(f"the worker did not end within {GRACE_SECONDS:.0f} s and is killed")
                os.kill(left.pid, signal.SIGKILL)
                left.deadline = now + GRACE_SECONDS

    def begin_end(self) -> None:
        """Stop listening, drop the front end and let the worker end; `finish` waits for that."""
        self._disconnect()
        self._release_worker()
        if self._watcher is not None:
            self._watcher.end()
            self._watcher = None
        self._ending = True
        self._tidy()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._file is not None:
            self._file.remove()

    def finish(self) -> None:
        """Wait for workers that end."""
        while self._leaving:
            wait = max(0.0, min(left.deadline for left in self._leaving) - time.monotonic())
            select.select([left.handle for left in self._leaving], [], [], wait)
            self._reap()
            self.expire()
        if self.share.audit is not None:
            self.share.audit.close()
            self.share.audit = None
        if self._ring >= 0:
            os.close(self._ring)
            self._ring = -1

    def replace(self, share: Share) -> None:
        """Go on with another share, for the guest that is connected, too.

        What can not be started is logged, and the one before goes on; if that does not finish what it has begun, the
        guest is `lost`.
        """
        before, self.share = self.share, share
        left = self._worker
        try:
            self._start_worker()
        except channel.WorkerError as error:
            self._log.error(f"the file system before goes on: {error}")
            self.share, self._worker = before, left
            return
        began, self._worker = self._worker, left
        assert began is not None
        if self._back_end is not None and self._device is not None:
            worker.add_counters(self._past, self._counted())
            device = self._device
            try:
                self._back_end.while_stopped(lambda: device.replace_worker(began[1]))
            except (OSError, ProtocolError) as error:
                self._log.error(f"the file system before did not finish, and its guest is lost: {error}")
                if left is not None:
                    os.kill(left[0], signal.SIGKILL)
                self._release_worker()
                self._worker = began
                self._release_worker()
                self.lost = True
                return
        self._release_worker()
        self._worker = began
        self._log.info("the file system was loaded again")

    def recover(self) -> None:
        """After `lost`: wait for the next front end with a fresh worker."""
        self.lost = False
        had_guest = self._connection is not None
        self._disconnect()
        if had_guest:  # else it dies by itself, and the next front end gets one
            self._try_to_start_worker()

    # --- what people ask ---

    def status(self) -> dict[str, Any]:
        """The state of the share, its queues and its file system, as JSON can say it."""
        report = super().status()
        report["connections"] = self.connections
        report["dax_window"] = self.share.window_size
        if self.share.quota is not None:
            report["quota"] = {"bytes": self.share.quota.limit, "used": self.share.quota.used}
        return report

    # --- the front end ---

    def _accept(self) -> None:
        assert self._listener is not None
        sock, _ = self._listener.accept()
        if self._connection is not None:
            self._log.warning(
                f"refused process {peer(sock)}: another VMM is connected, and a device has one; start a daemon for each"
            )
            sock.close()
            return
        if self._worker is None and not self._try_to_start_worker():
            sock.close()
            return
        self._connect(sock)

    def _connect(self, sock: socket.socket) -> None:
        assert self._worker is not None
        self._peer = peer(sock)
        self._log.info(f"process {self.peer} connected")
        self.connections += 1
        self._connection = Connection(sock, self._patience)
        self._device = ShareDevice(
            self.share.tag,
            self._queues,
            self._worker[1],
            self._log,
            self.share.window_size,
            self.share.patience,
            self.share.seats is not None,
            self.share.replaceable,
        )
        self._back_end = BackEnd(self._device, self._log.warning)
        self._device.back_end = self._back_end

    def _step(self) -> None:
        """Deal with one message of the front end."""
        assert self._connection is not None and self._back_end is not None
        try:
            if self._back_end.step(self._connection):
                return
            self._log.info("the front end disconnected")
        except ProtocolError as error:
            self._log.error(f"closing the connection: {error}")
        except channel.WorkerGone:
            self._worker_ended()
            return
        worker.add_counters(self._past, self._counted())
        self._disconnect()
        self._release_worker()
        if self._once:
            self.over = True
        else:
            self._start_worker()

    def _disconnect(self) -> None:
        if self._back_end is not None and self._device is not None:
            self._device.abandon()
            try:
                self._back_end.close()
            except OSError as error:
                self._log.debug(f"while disconnecting: {error}")
        if self._connection is not None:
            self._connection.close()
        self._back_end = self._connection = self._device = self._peer = None

    # --- the worker ---

    def _start_worker(self) -> None:
        if self.share.quota is not None and not self._leaving:
            self.share.quota.recover()
        try:
            self._worker = worker.start(
                self.share.make,
                self._log,
                self.share.walls,
                worker.serve_queues(
                    self.share.window_size, self.share.seats is not None, self.share.policy is not None
                ),
                keep=self.share.keep,
                seats=self.share.seats,
            )
        except channel.WorkerError as error:
            raise channel.WorkerError(f"cannot share {self.share.where}: {error}") from None
        self._go_on_tracing()

    def _tidy(self) -> None:
        """In the metadata table, if there is one: clear up after dead workers, and leave it after the last one."""
        if self.share.seats is None:
            return
        try:
            if self._ending and self._worker is None and not self._leaving:
                self.share.seats.close()
            else:
                self.share.seats.tidy()
        except OSError as error:
            self._log.warning(str(error))

    def _try_to_start_worker(self) -> bool:
        try:
            self._start_worker()
        except channel.WorkerError as error:
            self._log.error(str(error))
            return False
        return True

    def _release_worker(self) -> None:
        """Let the worker finish its requests and end, without waiting for it."""
        if self._worker is not None:
            pid, sock = self._worker
            self._worker = None
            sock.close()
            self._leaving.append(Leaving(pid))

    def _reap(self) -> None:
        """Bury workers that ended as they were told to."""
        for left in list(self._leaving):
            if os.waitpid(left.pid, os.WNOHANG)[0]:
                os.close(left.handle)
                self._leaving.remove(left)
                self._tidy()

    def _look_after_worker(self) -> None:
        assert self._worker is not None
        if channel.has_ended(self._worker[1]):
            self._worker_ended()

    def _worker_ended(self) -> None:
        """The worker died: nothing can answer the guest any more."""
        assert self._worker is not None
        pid, sock = self._worker
        self._worker = None
        sock.close()
        _, status = os.waitpid(pid, 0)
        self._log.error(f"the worker (process {pid}) died: {worker.cause_of_death(status)}")
        self._tidy()
        self.lost = True


def peer(sock: socket.socket) -> int:
    """The process at the other end of an AF_UNIX connection, as it was when it connected."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])

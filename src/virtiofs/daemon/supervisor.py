# SPDX-License-Identifier: Apache-2.0
"""The supervisor: the process that a user starts, and that a VMM speaks to.

One thread, one loop: the listening socket, the one front end that is connected, the worker, and signals.  It
holds guest memory and eventfd descriptors only to pass them on.  When a front end goes, its worker goes too,
and a fresh one waits for the next; when a worker dies under a connection the guest's requests can not be
answered, so the daemon says why and ends.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Callable

from virtiofs.daemon import channel, notify, worker
from virtiofs.daemon.device import ShareDevice
from virtiofs.daemon.log import Log
from virtiofs.fs.filesystem import Filesystem
from virtiofs.sandbox.walls import Place, Walls
from virtiofs.vhostuser.backend import BackEnd
from virtiofs.vhostuser.messages import ProtocolError
from virtiofs.vhostuser.transport import Connection

# How long a worker may take to finish its requests before it is killed.
GRACE_SECONDS = 10.0


class Supervisor:
    """Serves one share on one socket.

    `listener` is a listening AF_UNIX socket, or None to serve only `connected`.  `make` makes the file
    system; it runs in each worker, inside `walls`.  `path`, if given, is the socket's file, which is
    removed at the end.
    """

    def __init__(
        self,
        make: Callable[[Place], Filesystem],
        walls: Walls,
        tag: bytes,
        queues: int,
        log: Log,
        listener: socket.socket | None = None,
        connected: socket.socket | None = None,
        path: str | None = None,
    ):
        self._make = make
        self._walls = walls
        self._tag = tag
        self._queues = queues
        self._log = log
        self._listener = listener
        self._first = connected
        self._path = path
        self._socket_file = os.stat(path) if path else None
        self._connection: Connection | None = None
        self._back_end: BackEnd | None = None
        self._worker: tuple[int, socket.socket] | None = None
        self._ending = False
        self._failed = False

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until a signal, or until the only connection ends.  Returns the exit status.

        `ready` is called once, when a front end may connect.  Raises `WorkerError` if the share can not be
        served.
        """
        wake, self._signals = socket.socketpair()
        for end in (wake, self._signals):
            end.setblocking(False)
        previous = signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._end)
        try:
            self._walls.leave()
            self._start_worker()
            if self._first is not None:
                self._connect(self._first)
            ready()
            while not self._ending:
                self._wait(wake)
        finally:
            self._disconnect()
            self._stop_worker()
            signal.set_wakeup_fd(previous)
            self._remove_socket()
        return 1 if self._failed else 0

    def _end(self, number: int, _frame: object) -> None:
        self._log.info(f"ending on {signal.Signals(number).name}")
        self._ending = True

    def _wait(self, wake: socket.socket) -> None:
        """Wait for one thing to happen, and deal with it."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        assert self._worker is not None
        poll.register(self._worker[1], select.POLLIN)
        # What the front end did before it left comes before whoever wants its place.
        sources: list[tuple[int, Callable[[], None]]] = [(self._worker[1].fileno(), self._worker_ended)]
        if self._connection is not None:
            poll.register(self._connection.fileno(), select.POLLIN)
            sources.append((self._connection.fileno(), self._step))
        if self._listener is not None:
            poll.register(self._listener, select.POLLIN)
            sources.append((self._listener.fileno(), self._accept))
        happened = dict(poll.poll())
        if wake.fileno() in happened:
            wake.recv(64)
        for fd, act in sources:
            if fd in happened and not self._ending:
                act()
                return

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
        self._connect(sock)

    def _connect(self, sock: socket.socket) -> None:
        assert self._worker is not None
        self._log.info(f"process {peer(sock)} connected")
        self._connection = Connection(sock)
        device = ShareDevice(self._tag, self._queues, self._worker[1], self._log)
        self._back_end = BackEnd(device, self._log.warning)

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
        self._disconnect()
        self._stop_worker()
        if self._listener is None:
            self._ending = True
        else:
            self._start_worker()

    def _disconnect(self) -> None:
        if self._back_end is not None:
            try:
                self._back_end.close()
            except OSError as error:
                self._log.debug(f"while disconnecting: {error}")
        if self._connection is not None:
            self._connection.close()
        self._back_end = self._connection = None

    # --- the worker ---

    def _start_worker(self) -> None:
        self._worker = worker.start(self._make, self._log, self._walls)

    def _stop_worker(self) -> None:
        """Let the worker finish its requests and end; kill it if it does not."""
        if self._worker is None:
            return
        pid, sock = self._worker
        self._worker = None
        sock.close()
        handle = os.pidfd_open(pid)
        try:
            if not select.select([handle], [], [], GRACE_SECONDS)[0]:
                self._log.error(f"the worker did not end within {GRACE_SECONDS:.0f} s and is killed")
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        finally:
            os.close(handle)

    def _worker_ended(self) -> None:
        """The worker died: nothing can answer the guest any more."""
        assert self._worker is not None
        pid, sock = self._worker
        self._worker = None
        sock.close()
        _, status = os.waitpid(pid, 0)
        reason = f"exit status {os.waitstatus_to_exitcode(status)}"
        if os.WIFSIGNALED(status):
            reason = signal.Signals(os.WTERMSIG(status)).name
            if os.WTERMSIG(status) == signal.SIGBUS:
                reason += ": guest memory vanished under it (the VMM shrank it, or its file system is full)"
            if os.WTERMSIG(status) == signal.SIGSYS:
                reason += ": it made a system call that is not allowed; the kernel's log names it with --seccomp log"
        self._log.error(f"the worker (process {pid}) died: {reason}")
        self._failed = self._ending = True

    def _remove_socket(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._path is None or self._socket_file is None:
            return
        try:
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == (self._socket_file.st_dev, self._socket_file.st_ino):
                os.unlink(self._path)
        except FileNotFoundError:
            pass


def peer(sock: socket.socket) -> int:
    """The process at the other end of an AF_UNIX connection, as it was when it connected."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def announce(ready_fd: int | None) -> None:
    """Tell the service manager, and whoever passed `ready_fd`, that a front end may connect."""
    notify.service_manager("READY=1\nSTATUS=waiting for a VMM")
    if ready_fd is not None:
        notify.descriptor(ready_fd)

# SPDX-License-Identifier: Apache-2.0
"""A share that is mounted on the host itself: the same worker behind the same walls, with /dev/fuse in place of queues.

The first process only waits: for a signal, which means to unmount, and for the worker, which ends by itself when
somebody else unmounts.  It keeps no descriptor of /dev/fuse, so the death of the worker ends all requests at once.  Its
own death ends the worker, and the guardian of the mount point unmounts (fuse/mountpoint.py).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial

from virtiofs.daemon import worker
from virtiofs.daemon.log import Log
from virtiofs.fs.filesystem import Filesystem
from virtiofs.fuse.devfuse import DevFuseLoop
from virtiofs.fuse.mountpoint import MountError, Mountpoint
from virtiofs.fuse.session import Session
from virtiofs.sandbox.walls import Place, Walls

# How long the worker may take to finish its requests before it is killed.
GRACE_SECONDS = 10.0


def serve_descriptors(fds: list[int]) -> Callable[[socket.socket, Filesystem, Log], None]:
    """What the worker does: one thread for each descriptor, until unmounted or until its channel is closed."""

    def serve(sock: socket.socket, filesystem: Filesystem, log: Log) -> None:
        session = Session(filesystem)
        told = os.dup(fds[0])
        filesystem.use_notifications(partial(os.write, told))
        ended = os.eventfd(0)
        failures: list[OSError] = []

        def run(loop: DevFuseLoop) -> None:
            try:
                filesystem.start_thread()
                loop.run()
            except OSError as error:
                failures.append(error)
            finally:
                os.eventfd_write(ended, 1)

        loops = [DevFuseLoop(session, fd, filesystem.wait_limit) for fd in fds]
        threads = [threading.Thread(target=run, args=(loop,)) for loop in loops]
        for thread in threads:
            thread.start()
        select.select([sock.fileno(), ended], [], [])
        for loop in loops:
            loop.stop()
        for thread in threads:
            thread.join()
        session.end()
        filesystem.close()
        os.close(told)
        if failures:
            raise failures[0]

    return serve


def open_descriptors(mountpoint: Mountpoint, threads: int, log: Log) -> list[int]:
    """A descriptor for each thread; fewer where /dev/fuse may not be opened.  All but the first are the caller's."""
    fds = [mountpoint.fd]
    try:
        while len(fds) < threads:
            fds.append(mountpoint.clone())
    except OSError as error:
        log.warning(f"serving with {len(fds)} threads, not {threads}: /dev/fuse: {error.strerror}")
    return fds


class HostMount:
    """Serves what `make` makes at `mountpoint` until it is unmounted.

    `threads`: how many serve at the same time.  `keep`: descriptors that the file system works with.
    """

    def __init__(
        self,
        mountpoint: Mountpoint,
        make: Callable[[Place], Filesystem],
        walls: Walls,
        threads: int,
        log: Log,
        keep: Sequence[int] = (),
    ):
        self._keep = keep
        self._mountpoint = mountpoint
        self._make = make
        self._walls = walls
        self._threads = threads
        self._log = log
        self._signal = 0

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until a signal comes or somebody unmounts: the exit status.  `ready` is called when programs may enter.

        Nothing is mounted afterwards.  Raises `WorkerError` if the share can not be served.
        """
        wake, signals = socket.socketpair()
        for end in (wake, signals):
            end.setblocking(False)
        previous = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        try:
            with self._mountpoint:
                pid, sock = self._start()
                with sock:
                    ready()
                    select.select([sock, wake], [], [])
                    return self._end(pid, sock)
        except MountError as error:
            self._log.error(str(error))
            return 1
        finally:
            signal.set_wakeup_fd(previous)
            wake.close()
            signals.close()

    def _note(self, number: int, _frame: object) -> None:
        self._signal = number

    def _start(self) -> tuple[int, socket.socket]:
        """Fork the worker: its process id and our end of its channel."""
        self._walls.leave()
        fds = open_descriptors(self._mountpoint, self._threads, self._log)
        try:
            return worker.start(
                self._make, self._log, self._walls, serve_descriptors(fds), [*fds, *self._keep]
            )
        finally:
            for fd in fds[1:]:
                os.close(fd)
            self._mountpoint.release()

    def _end(self, pid: int, sock: socket.socket) -> int:
        """Unmount if we were told to, and bury the worker: the exit status."""
        handle = os.pidfd_open(pid)
        path = self._mountpoint.path
        if self._signal:
            self._log.info(f"unmounting {path} on {signal.Signals(self._signal).name}")
            try:
                self._mountpoint.sync()
            except OSError as error:
                self._log.error(f"not all that was written to {path} is in its place: {error.strerror}")
            self._mountpoint.unmount()
        sock.close()  # the worker finishes its requests and ends
        if not select.select([handle], [], [], GRACE_SECONDS)[0]:
            self._log.error(f"the worker did not end within {GRACE_SECONDS:.0f} s and is killed")
            os.kill(pid, signal.SIGKILL)
        os.close(handle)
        _, status = os.waitpid(pid, 0)
        if self._signal:
            return 0
        if status:
            self._log.error(
                f"the worker (process {pid}) died: {worker.cause_of_death(status)}; unmounting {path}"
            )
            return 1
        self._log.info(f"{path} was unmounted")
        return 0

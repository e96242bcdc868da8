# SPDX-License-Identifier: Apache-2.0
"""A share that is mounted on the host itself: the same worker behind the same walls, with /dev/fuse in place of queues.

The first process only waits: for a signal, which means to unmount, and for the worker, which ends by itself when
somebody else unmounts.  It keeps no descriptor of /dev/fuse, so the death of the worker ends all requests at once.  Its
own death ends the worker, and the guardian of the mount point unmounts (fuse/mountpoint.py).
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import socket
import threading
from collections.abc import Callable, Sequence

from virtiofs.daemon import worker
from virtiofs.daemon.log import Log
from virtiofs.fs.filesystem import Filesystem
from virtiofs.fuse.devfuse import DevFuseLoop
from virtiofs.fuse.mountpoint import MountError, Mountpoint
from virtiofs.fuse.session import Session
from virtiofs.sandbox import process
from virtiofs.sandbox.walls import Place, Walls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.invalidation import Invalidator
    from virtiofs.daemon.seats import Seats

# How long the worker may take to finish its requests before it is killed.
GRACE_SECONDS = 10.0
# How long one may take whose channel is closed, before that is taken for a thread of it that can not end.
STUCK_SECONDS = 1.0
# Whether this kernel can be told to look at all names anew (FUSE_NOTIFY_INC_EPOCH, Linux 6.16); behind the walls it
# could not be asked.  One that can not trusts names only so long.
EPOCHS = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 16)
NAMES_SECONDS = 1.0


def serve_descriptors(
    fds: list[int], to_kernel: int = -1
) -> Callable[[socket.socket, Filesystem, Log], None]:
    """What the worker does: one thread for each descriptor, until unmounted or until its channel is closed."""

    def serve(sock: socket.socket, filesystem: Filesystem, log: Log) -> None:
        session = Session(filesystem)
        ended = os.eventfd(0)
        invalidator: Invalidator | None = None
        if filesystem.metadata is not None and to_kernel >= 0:
            from virtiofs.daemon.invalidation import Invalidator

            filesystem.trust_metadata(None if EPOCHS else NAMES_SECONDS)
            invalidator = Invalidator(
                filesystem.metadata, filesystem, session, lambda message: tell(to_kernel, message), log
            )
            telling = threading.Thread(
                target=tell_of_changes, args=(invalidator, to_kernel, log), name="invalidation", daemon=True
            )
            telling.start()
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
        if invalidator is not None:
            # A message may be waiting for a reply of the loops'.
            invalidator.stop()
            telling.join(GRACE_SECONDS / 2)
        for loop in loops:
            loop.stop()
        for thread in threads:
            thread.join()
        session.end()
        filesystem.close()
        if failures:
            raise failures[0]

    return serve


def tell_of_changes(invalidator: Invalidator, to_kernel: int, log: Log) -> None:
    """The body of the thread that tells the kernel.

    It may be waiting for a page that the kernel keeps locked until a READ is answered.  Were this process killed then,
    the READ would have to be failed, which happens when the descriptor that it was read from is closed: so this
    thread must not hold that one open.  The rest is `Mountpoint.abort`.
    """
    process.own_descriptors(to_kernel, *log.target.fds)
    invalidator.run()


def tell(fd: int, message: bytes) -> int:
    """Write a notification to /dev/fuse: 0, or why the kernel does not take it."""
    try:
        os.write(fd, message)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


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

    `threads`: how many serve at the same time.  `keep`: descriptors that the file system works with.  `seats`: in the
    tree's metadata table, which has a watcher then.
    """

    def __init__(
        self,
        mountpoint: Mountpoint,
        make: Callable[[Place], Filesystem],
        walls: Walls,
        threads: int,
        log: Log,
        keep: Sequence[int] = (),
        seats: Seats | None = None,
    ):
        self._keep = keep
        self._seats = seats
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
                    self._wait(sock, wake)
                    return self._end(pid, sock)
        except MountError as error:
            self._log.error(str(error))
            return 1
        finally:
            if self._seats is not None:
                self._seats.close()
            signal.set_wakeup_fd(previous)
            wake.close()
            signals.close()

    def _note(self, number: int, _frame: object) -> None:
        self._signal = number

    def _wait(self, worker: socket.socket, wake: socket.socket) -> None:
        """Wait for a signal or the worker's end."""
        if self._seats is None:
            select.select([worker, wake], [], [])
            return
        from virtiofs.daemon.watcher import WatcherProcess

        watcher = WatcherProcess(self._seats.directory, self._log)
        watcher.start()
        try:
            while True:
                sources = [worker.fileno(), wake.fileno(), *([watcher.fd] if watcher.fd >= 0 else [])]
                happened = select.select(sources, [], [])[0]
                if happened != [watcher.fd]:
                    return
                watcher.ended()
        finally:
            watcher.end()

    def _start(self) -> tuple[int, socket.socket]:
        """Fork the worker: its process id and our end of its channel."""
        if self._seats is not None:
            import virtiofs.daemon.invalidation  # noqa: F401  (behind the walls nothing can be imported)

        self._walls.leave()
        fds = open_descriptors(self._mountpoint, self._threads, self._log)
        to_kernel = self._clone_to_tell() if self._seats is not None else []
        try:
            return worker.start(
                self._make,
                self._log,
                self._walls,
                serve_descriptors(fds, *to_kernel),
                [*fds, *to_kernel, *self._keep],
                self._seats,
            )
        finally:
            for fd in to_kernel:
                os.close(fd)
            for fd in fds[1:]:
                os.close(fd)
            self._mountpoint.release()

    def _clone_to_tell(self) -> list[int]:
        """A descriptor to tell the kernel of changes by, or none."""
        try:
            return [self._mountpoint.clone()]
        except OSError as error:
            self._log.warning(
                f"the kernel is not told of changes, and asks as without a table: {error.strerror}"
            )
            return []

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
        if not self._signal and not select.select([handle], [], [], STUCK_SECONDS)[0]:
            self._mountpoint.abort()  # it was killed, and a thread waits in the kernel for what nobody answers
        if not select.select([handle], [], [], GRACE_SECONDS)[0]:
            self._log.error(f"the worker did not end within {GRACE_SECONDS:.0f} s and is killed")
            os.kill(pid, signal.SIGKILL)
            self._mountpoint.abort()
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

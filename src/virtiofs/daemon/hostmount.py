# SPDX-License-Identifier: Apache-2.0
"""A share that is mounted on the host itself: the same worker behind the same walls, with /dev/fuse in place of queues.

The first process only waits: for a signal, which means to unmount, and for the worker, which ends by itself when
somebody else unmounts.  It keeps no descriptor of /dev/fuse, so the death of the worker ends all requests at once.  Its
own death ends the worker, and the guardian of the mount point unmounts (fuse/mountpoint.py).

Where the file system may be replaced while it is mounted (`reload`), the first process keeps the descriptors.  The next
worker is ready before the last one is told to finish; what INIT agreed on is handed from one to the other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from virtiofs.daemon import channel, worker
from virtiofs.daemon.log import Log
from virtiofs.daemon.observed import Observed, Shares
from virtiofs.fs.filesystem import Filesystem
from virtiofs.fuse.devfuse import DevFuseLoop
from virtiofs.fuse.mountpoint import MountError, Mountpoint
from virtiofs.fuse.readers import Readers
from virtiofs.fuse.session import Session
from virtiofs.fuse.tracing import Ring
from virtiofs.sandbox import process
from virtiofs.sandbox.walls import Place, Walls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.invalidation import Invalidator
    from virtiofs.daemon.reload import Teller
    from virtiofs.daemon.seats import Seats
    from virtiofs.daemon.watcher import WatcherProcess
    from virtiofs.fs.policy.reloading import PolicyFile
    from virtiofs.fs.python.serving import Servable

# How long the worker may take to finish its requests before it is killed.
GRACE_SECONDS = 10.0
# How often it is asked whether there is another file system.
RELOAD_SECONDS = 0.25
# How long one may take whose channel is closed, before that is taken for a thread of it that can not end.
STUCK_SECONDS = 1.0
# Whether this kernel can be told to look at all names anew (FUSE_NOTIFY_INC_EPOCH, Linux 6.16); behind the walls it
# could not be asked.  One that can not trusts names only so long.
EPOCHS = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 16)
NAMES_SECONDS = 1.0


class Observing:
    """Answers, in the worker, what is asked about its loops.  Each public method is one message (see `channel`).

    `teller`: tells the kernel what to forget, where nothing else does.
    """

    def __init__(
        self, filesystem: Filesystem, log: Log, loops: Sequence[DevFuseLoop], teller: Teller | None = None
    ):
        self._teller = teller
        self._filesystem = filesystem
        self._log = log
        self._loops = loops
        self._ring: Ring | None = None

    def status(self, fds: list[int]) -> dict[str, Any]:
        return {"filesystem": self._filesystem.statistics()}

    def counters(self, fds: list[int]) -> dict[str, list[int]]:
        total: dict[str, list[int]] = {}
        for loop in self._loops:
            worker.add_counters(total, loop.counters())
        return total

    def set_log_level(self, fds: list[int], level: str) -> None:
        self._log.set_level(level)

    def trace(self, fds: list[int], on: bool) -> None:
        """Write requests down in the ring that comes along, the same each time; or no more."""
        if on and self._ring is None:
            self._ring = Ring(fds[0])
        for index, loop in enumerate(self._loops):
            loop.trace_to(self._ring if on else None, index)

    def paths(self, fds: list[int], nodes: list[int]) -> dict[str, str | None]:
        return worker.paths_of(self._filesystem, nodes)

    def prepare_policy(self, fds: list[int]) -> None:
        worker.prepare_policy(self._filesystem, fds[0])

    def use_policy(self, fds: list[int]) -> None:
        """Let it hold for requests that begin from now on, and have the kernel forget what it knows."""
        self._filesystem.use_policy()
        if self._filesystem.metadata is not None:
            self._filesystem.metadata.bump_everything()
        elif self._teller is not None:
            self._teller.begin()


COMMANDS: dict[str, Callable[..., Any]] = {
    method.__name__: method
    for method in (
        Observing.status,
        Observing.counters,
        Observing.set_log_level,
        Observing.trace,
        Observing.paths,
        Observing.prepare_policy,
        Observing.use_policy,
    )
}


def serve_descriptors(
    fds: list[int], to_kernel: int = -1, successor: bool = False
) -> Callable[[socket.socket, Filesystem, Log], None]:
    """What the worker does: one thread for each descriptor, until unmounted or until its channel is closed.

    Then it says what the session is.  `to_kernel`: a descriptor to tell of changes by, if any.  `successor`: it waits
    until it is told that of the worker before.
    """

    def serve(sock: socket.socket, filesystem: Filesystem, log: Log) -> None:
        session = Session(filesystem)
        if successor:
            received = channel.receive(sock)
            if received is None:
                return
            if received[0]["initialised"]:
                session.resume(received[0]["minor"], received[0]["flags"])
        told = os.dup(fds[0])
        filesystem.use_notifications(partial(os.write, told))
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

        filesystem.one_thread = len(fds) == 1
        readers = Readers(len(fds)) if filesystem.few_readers and len(fds) > 1 else None
        loops = [
            DevFuseLoop(session, fd, filesystem.wait_limit, readers, place) for place, fd in enumerate(fds)
        ]
        threads = [threading.Thread(target=run, args=(loop,)) for loop in loops]
        for thread in threads:
            thread.start()
        teller: Teller | None = None
        if to_kernel >= 0 and filesystem.metadata is None:
            from virtiofs.daemon.reload import Teller

            teller = Teller(filesystem, to_kernel, log)
        observing = Observing(filesystem, log, loops, teller)
        watched = [sock.fileno(), ended]
        while ended not in select.select(watched, [], [])[0] and worker.obey(sock, observing, COMMANDS):
            pass
        if invalidator is not None:
            # A message may be waiting for a reply of the loops'.
            invalidator.stop()
            telling.join(GRACE_SECONDS / 2)
        for loop in loops:
            loop.stop()
        for thread in threads:
            thread.join()
        state = {"initialised": session.initialised, "minor": session.minor, "flags": session.flags}
        with contextlib.suppress(OSError):  # nobody may want to know
            channel.send(sock, state)
        session.end()
        filesystem.close()
        os.close(told)
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


class MountedShare(Observed):
    """What is mounted, to whom asks: its tag is the directory it is mounted at."""

    def __init__(
        self,
        path: str,
        where: str,
        read_only: bool,
        log: Log,
        seats: Seats | None,
        policy: PolicyFile | None = None,
    ):
        super().__init__(where, read_only, log)
        self._policy = policy
        self._mounted_at = path
        self._seats = seats

    @property
    def tag(self) -> str:
        return self._mounted_at

    @property
    def peer(self) -> int | None:
        """We ourselves: the kernel is no process."""
        return os.getpid()

    @property
    def seats(self) -> Seats | None:
        return self._seats

    @property
    def policy(self) -> PolicyFile | None:
        return self._policy

    def begin_watching(self) -> None:
        """Have a watcher of the host's changes, if the share is in a metadata table."""
        if self._seats is not None:
            from virtiofs.daemon.watcher import WatcherProcess

            self._watcher = WatcherProcess(self._seats.directory, self._log)
            self._watcher.start()

    def end_watching(self) -> None:
        """Have none any more."""
        if self._watcher is not None:
            self._watcher.end()
            self._watcher = None

    @property
    def watcher(self) -> WatcherProcess | None:
        return self._watcher

    def observe(self, worker: tuple[int, socket.socket] | None) -> None:
        """Whom to ask: process and channel."""
        self._worker = worker


class HostMount(Shares):
    """Serves what `make` makes at `mountpoint` until it is unmounted.

    `threads`: how many serve at the same time.  `keep`: descriptors that the file system works with.  `where`: what it
    is, and `read_only`: for people to read.  `seats`: in the tree's metadata table, which has a watcher then.
    `control`, if set, answers what is asked of us meanwhile.  `reload` is asked
    again and again whether there is another file system to go on with.  `policy`: whose rules `make` applies.
    """

    def __init__(
        self,
        mountpoint: Mountpoint,
        make: Callable[[Place], Filesystem],
        walls: Walls,
        threads: int,
        log: Log,
        keep: Sequence[int] = (),
        where: str = "",
        read_only: bool = False,
        seats: Seats | None = None,
        reload: Callable[[], Servable | None] | None = None,
        policy: PolicyFile | None = None,
    ):
        super().__init__(log)
        self._share = MountedShare(mountpoint.path, where, read_only, log, seats, policy)
        self.ports = (self._share,)
        self._reload = reload
        self._fds: list[int] = []
        self._keep = keep
        self._seats = seats
        self._mountpoint = mountpoint
        self._make = make
        self._walls = walls
        self._threads = threads
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
        self._hung_up = False
        try:
            with self._mountpoint:
                pid, sock = self._start()
                self._share.observe((pid, sock))
                ready()
                self._share.begin_watching()
                while not self._signal and not self._wait(sock, wake):
                    pid, sock = self._replace(pid, sock)
                with sock:
                    return self._end(pid, sock)
        except MountError as error:
            self._log.error(str(error))
            return 1
        finally:
            self._share.observe(None)
            self._share.end_watching()
            if self.control is not None:
                self.control.close()
            if self._seats is not None:
                self._seats.close()
            signal.set_wakeup_fd(previous)
            wake.close()
            signals.close()

    def _wait(self, sock: socket.socket, wake: socket.socket) -> bool:
        """Wait for something to happen, and deal with it: whether the worker ended."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(sock, select.POLLIN)
        clients = self.control.sources() if self.control is not None else []
        watcher = self._share.watcher
        if watcher is not None and watcher.fd >= 0:
            clients = [*clients, (watcher.fd, select.POLLIN, watcher.ended)]
        for fd, events, _ in clients:
            poll.register(fd, events)
        busy = self.control is not None and self.control.busy
        pause = None if self._reload is None else int(1000 * RELOAD_SECONDS)
        happened = dict(poll.poll(0 if busy else pause))
        if wake.fileno() in happened:
            wake.recv(64)
        if self._hung_up:
            self._hung_up = False
            if self.hang_up():
                self._signal = signal.SIGHUP
                return False
        if sock.fileno() in happened and channel.has_ended(sock):
            return True
        for fd, _, answer in clients:
            if fd in happened or (busy and (watcher is None or fd != watcher.fd)):
                answer()
        return False

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._hung_up = True
        else:
            self._signal = number

    def _start(self) -> tuple[int, socket.socket]:
        """Fork the worker: its process id and our end of its channel."""
        # Behind the walls nothing can be imported.
        if self._seats is not None:
            import virtiofs.daemon.invalidation
        if self._share.policy is not None:
            import virtiofs.daemon.reload  # noqa: F401

        self._walls.leave()
        fds = open_descriptors(self._mountpoint, self._threads, self._log)
        if self._reload is not None:
            self._fds = fds
            return worker.start(
                self._make, self._log, self._walls, serve_descriptors(fds), [*fds, *self._keep]
            )
        tells = self._seats is not None or self._share.policy is not None
        to_kernel = self._clone_to_tell() if tells else -1
        try:
            return worker.start(
                self._make,
                self._log,
                self._walls,
                serve_descriptors(fds, to_kernel),
                [*fds, *([to_kernel] if to_kernel >= 0 else []), *self._keep],
                self._seats,
            )
        finally:
            if to_kernel >= 0:
                os.close(to_kernel)
            for fd in fds[1:]:
                os.close(fd)
            self._mountpoint.release()

    def _replace(self, pid: int, sock: socket.socket) -> tuple[int, socket.socket]:
        """Go on with another worker if there is another file system, else with this one.  Raises `WorkerError`."""
        servable = self._reload() if self._reload is not None else None
        if servable is None:
            return pid, sock
        try:
            serve = serve_descriptors(self._fds, successor=True)
            keep = [*self._fds, *servable.keep]
            successor, channel_to_it = worker.start(servable.make, self._log, servable.walls, serve, keep)
        except channel.WorkerError as error:
            self._log.error(f"the file system before goes on: {error}")
            return pid, sock
        sock.shutdown(socket.SHUT_WR)
        answered = select.select([sock], [], [], GRACE_SECONDS)[0]
        state = channel.receive(sock) if answered else None
        sock.close()
        if state is None:
            # A request that nobody answers any more; only the end of the mount ends it.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            channel_to_it.close()
            os.waitpid(successor, 0)
            raise channel.WorkerError(
                f"the file system before did not finish within {GRACE_SECONDS:.0f} s; mount it again"
            )
        channel.send(channel_to_it, state[0])
        os.waitpid(pid, 0)
        self._log.info("the file system was loaded again")
        self._share.observe((successor, channel_to_it))
        return successor, channel_to_it

    def _clone_to_tell(self) -> int:
        """A descriptor to tell the kernel of changes by, or -1."""
        try:
            return self._mountpoint.clone()
        except OSError as error:
            self._log.warning(
                f"the kernel is not told of changes, and asks as without a table: {error.strerror}"
            )
            return -1

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

# SPDX-License-Identifier: Apache-2.0
"""The worker: the process that reads guest memory, inside the walls of `sandbox/`.

It is forked before a front end connects and serves one connection; a new one takes its place afterwards, so
nothing of one guest is left for the next.  Its main thread obeys the supervisor; each queue has a thread that
runs a compiled loop, and all share the threads of a pool for what would block.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from virtiofs.daemon import channel
from virtiofs.daemon.log import Log
from virtiofs.fs.filesystem import Filesystem
from virtiofs.fuse.loop import QueueLoop
from virtiofs.fuse.pool import Pool
from virtiofs.fuse.session import Session
from virtiofs.fuse.tracing import Ring
from virtiofs.sandbox.walls import Place, Walls
from virtiofs.virtqueue.memory import GuestMemory
from virtiofs.virtqueue.split import SplitQueue

POOL_NICENESS = 5  # of a pool's threads that yield: a third of a queue's weight

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.notifications import Notifications
    from virtiofs.daemon.seats import Seats
    from virtiofs.daemon.versions import Versions
    from virtiofs.dax.window import Window


class Queue:
    """A queue that runs: its loop, the thread in it, and the descriptor to signal when its ring is broken."""

    def __init__(self, index: int, loop: QueueLoop | Notifications, err: int):
        self.index = index
        self.loop = loop
        self.err = err
        self.thread: threading.Thread | None = None

    def close(self) -> None:
        if self.err >= 0:
            os.close(self.err)


class Worker:
    """Obeys messages from `sock` until it closes.  Each public method is one message (see `channel`)."""

    def __init__(self, sock: socket.socket, filesystem: Filesystem, log: Log, window_size: int = 0):
        self._socket = sock
        self._filesystem = filesystem
        self._log = log
        self._memory = GuestMemory()
        self._window = make_window(window_size, self._memory, log) if window_size else None
        self._session = Session(filesystem)
        self._queues: dict[int, Queue] = {}
        self._stopped: dict[str, list[int]] = {}  # counters of queues that are no more
        self._pool = Pool() if filesystem.pool_threads else None
        self._pool_threads: list[threading.Thread] = []
        self._ring: Ring | None = None
        self._tracing = False
        self._versions: Versions | None = None
        if filesystem.metadata is not None:
            from virtiofs.daemon.versions import Versions

            self._versions = Versions(filesystem.metadata, filesystem, log)

    def run(self) -> None:
        """Obey until the supervisor closes its end."""
        while obey(self._socket, self, COMMANDS):
            pass
        for index in list(self._queues):
            self.stop_queue([], index)
        if self._versions is not None:
            self._versions.stop()
        if self._pool is not None:
            self._pool.end()
        for thread in self._pool_threads:
            thread.join()
        self.reset([])
        self._filesystem.close()

    def connect_back(self, fds: list[int], older: bool, barriers: bool) -> None:
        """Map files of the guest's (`dax.window`), and its versions, through this back-end channel."""
        if self._window is None and self._versions is None:
            raise ValueError("this device has nothing to map")
        if self._window is not None:
            self._window.connect(fds.pop(0), older, barriers)
            self._filesystem.use_window(self._window, self._window.exact)
        if self._versions is not None:
            self._versions.connect(self._window, fds.pop(0) if fds else -1, barriers)

    def versions_size(self, fds: list[int]) -> int:
        """Bytes of the region of versions."""
        return 0 if self._versions is None else self._versions.size

    def map_memory(self, fds: list[int], regions: list[list[int]]) -> None:
        """Replace all guest memory by `regions` ([guest address, size, offset in its file] each)."""
        self._memory.clear()
        if self._window is not None:
            self._window.forget_regions()
        for (guest, size, offset), fd in zip(regions, fds, strict=True):
            self._add(guest, size, fd, offset)

    def add_memory(self, fds: list[int], guest: int, size: int, offset: int) -> None:
        self._add(guest, size, fds[0], offset)

    def _add(self, guest: int, size: int, fd: int, offset: int) -> None:
        """A region of guest memory, or a piece of the window, which the front end shows us like memory."""
        if self._window is None or not self._window.announced(guest, size, fd, offset):
            self._memory.add(guest, size, fd, offset)

    def remove_memory(self, fds: list[int], guest: int, size: int) -> None:
        """Unmap a region; the queues stand still meanwhile, as a request may be using it."""
        if self._window is not None and self._window.withdrawn(guest, size):
            return
        for queue in self._queues.values():
            self._pause(queue)
        try:
            self._memory.remove(guest, size)
        finally:
            for queue in self._queues.values():
                self._resume(queue)

    def start_queue(
        self,
        fds: list[int],
        index: int,
        size: int,
        desc: int,
        avail: int,
        used: int,
        base: int,
        event_idx: bool,
        indirect: bool,
        enabled: bool,
        call: bool,
        err: bool,
        notifications: bool = False,
    ) -> None:
        """Run a queue.  `fds`: kick, then call and err if they are there."""
        ring = SplitQueue(self._memory, size, desc, avail, used, base, event_idx, indirect)
        kick_fd = fds.pop(0)
        call_fd = fds.pop(0) if call else -1
        loop: QueueLoop | Notifications
        if notifications:
            loop = self._notifications(ring, kick_fd, call_fd)
        else:
            if self._pool is not None and not self._pool_threads:
                self._fill_pool(self._pool)
            loop = QueueLoop(self._session, ring, kick_fd, call_fd, self._filesystem.wait_limit, self._pool)
        loop.set_enabled(enabled)
        loop.trace_to(self._ring if self._tracing else None, index)
        queue = Queue(index, loop, fds.pop(0) if err else -1)
        self._queues[index] = queue
        self._resume(queue)

    def _notifications(self, ring: SplitQueue, kick_fd: int, call_fd: int) -> Notifications:
        from virtiofs.daemon.notifications import Notifications

        return Notifications(ring, kick_fd, call_fd, self._filesystem, self._session, self._log)

    def stop_queue(self, fds: list[int], index: int) -> int:
        """Finish what is in flight and stop; returns the next available index."""
        queue = self._queues.pop(index)
        self._pause(queue)
        queue.close()
        add_counters(self._stopped, queue.loop.counters())
        return int(queue.loop.queue.base)

    def set_call(self, fds: list[int], index: int) -> None:
        # Without a descriptor the driver polls: notifications then go where nobody listens.
        fd = fds[0] if fds else os.eventfd(0)
        try:
            self._queues[index].loop.set_call(fd)
        finally:
            if not fds:
                os.close(fd)

    def set_err(self, fds: list[int], index: int) -> None:
        queue = self._queues[index]
        queue.close()
        queue.err = fds.pop(0) if fds else -1

    def set_enabled(self, fds: list[int], index: int, enabled: bool) -> None:
        self._queues[index].loop.set_enabled(enabled)

    def reset(self, fds: list[int]) -> None:
        """Forget the driver's session: inodes, handles, mappings."""
        with self._standing_still():
            self._session.end()

    def status(self, fds: list[int]) -> dict[str, Any]:
        """Counters of the share and of each running queue."""
        return {
            "filesystem": self._filesystem.statistics()
            | ({} if self._window is None else self._window.statistics()),
            "queues": {
                str(queue.index): {
                    "requests": queue.loop.requests,
                    "waiting": queue.loop.waiting_count,
                    "pooled": queue.loop.outstanding,
                    "depth": queue.loop.depth,
                    "looks": queue.loop.looks,
                    "vain_looks": queue.loop.vain_looks,
                    "sleeps": queue.loop.sleeps,
                    "kicks": queue.loop.kicks,
                    "notifications": queue.loop.notifications,
                    "broken": queue.loop.queue.reason,
                }
                for queue in self._queues.values()
            },
            "pool": {
                "threads": self._pool.threads,
                "busy": self._pool.threads - self._pool.idle,
                "jobs": self._pool.jobs,
                "taken": self._pool.taken,
                "refused": self._pool.refused,
            }
            if self._pool is not None
            else {},
        }

    def counters(self, fds: list[int]) -> dict[str, list[int]]:
        """What all queues served so far, by operation (see `QueueLoop.counters`)."""
        total: dict[str, list[int]] = {}
        for counted in (self._stopped, *(queue.loop.counters() for queue in self._queues.values())):
            add_counters(total, counted)
        return total

    def set_log_level(self, fds: list[int], level: str) -> None:
        self._log.set_level(level)

    def trace(self, fds: list[int], on: bool) -> None:
        """Write requests down in the ring that comes along (fuse/tracing.py), the same each time; or no more."""
        if on and self._ring is None:
            self._ring = Ring(fds[0])
        self._tracing = on
        for queue in self._queues.values():
            queue.loop.trace_to(self._ring if on else None, queue.index)

    def paths(self, fds: list[int], nodes: list[int]) -> dict[str, str | None]:
        """The paths of nodes."""
        return paths_of(self._filesystem, nodes)

    def session(self, fds: list[int]) -> dict[str, Any]:
        """What INIT agreed on, for a worker that takes this one's place."""
        session = self._session
        return {"initialised": session.initialised, "minor": session.minor, "flags": session.flags}

    def resume(self, fds: list[int], initialised: bool, minor: int, flags: int) -> None:
        """Take the place of a worker that said so in `session`."""
        if initialised:
            self._session.resume(minor, flags)

    def prepare_policy(self, fds: list[int]) -> None:
        """Make the policy in the shared memory that comes along ready."""
        prepare_policy(self._filesystem, fds[0])

    def use_policy(self, fds: list[int]) -> None:
        """Let it hold for requests that begin from now on, and have clients that can be told forget what they know."""
        self._filesystem.use_policy()
        if self._filesystem.metadata is not None:
            self._filesystem.metadata.bump_everything()

    def _fill_pool(self, pool: Pool) -> None:
        """Start the pool's threads, and wait until each can take jobs."""
        ready = threading.Semaphore(0)

        def work() -> None:
            try:
                self._filesystem.start_thread()
                if self._filesystem.pool_yields:
                    os.nice(POOL_NICENESS)
                pool.enter()
            except OSError as error:  # those that did start do the work, and the queues without any
                self._log.error(f"a thread of the pool can not serve: {error}")
                return
            finally:
                ready.release()
            pool.run()

        for number in range(self._filesystem.pool_threads):
            thread = threading.Thread(target=work, name=f"pool {number}")
            thread.start()
            self._pool_threads.append(thread)
        for _ in self._pool_threads:
            ready.acquire()

    def _resume(self, queue: Queue) -> None:
        queue.loop.rearm()
        queue.thread = threading.Thread(target=self._serve, args=(queue,), name=f"queue {queue.index}")
        queue.thread.start()

    def _pause(self, queue: Queue) -> None:
        queue.loop.stop()
        if queue.thread is not None:
            with self._standing_still():
                queue.thread.join()
        queue.thread = None

    def _standing_still(self) -> contextlib.AbstractContextManager[None]:
        """The front end waits for us: no request may wait for it."""
        return contextlib.nullcontext() if self._window is None else self._window.standing_still()

    def _serve(self, queue: Queue) -> None:
        """The body of a queue's thread."""
        try:
            self._filesystem.start_thread()
            if self._window is not None:
                self._window.catch_up()
            reason = queue.loop.run()
        except OSError as error:
            reason = str(error)
        if reason:
            self._log.error(f"queue {queue.index} is stopped until the device is reset: {reason}")
            if queue.err >= 0:
                os.eventfd_write(queue.err, 1)


COMMANDS: dict[str, Callable[..., Any]] = {
    method.__name__: method
    for method in (
        Worker.connect_back,
        Worker.versions_size,
        Worker.map_memory,
        Worker.add_memory,
        Worker.remove_memory,
        Worker.start_queue,
        Worker.stop_queue,
        Worker.set_call,
        Worker.set_err,
        Worker.set_enabled,
        Worker.reset,
        Worker.status,
        Worker.counters,
        Worker.set_log_level,
        Worker.trace,
        Worker.paths,
        Worker.session,
        Worker.resume,
        Worker.prepare_policy,
        Worker.use_policy,
    )
}


def obey(sock: socket.socket, obedient: object, commands: dict[str, Callable[..., Any]]) -> bool:
    """Do what the next message of the supervisor says, by a method of `obedient`; False if there will be none."""
    received = channel.receive(sock)
    if received is None:
        return False
    message, fds = received
    number = message.pop("number", None)
    try:
        answer = {"result": commands[message.pop("do")](obedient, fds, **message)}
    except (OSError, ValueError, KeyError, MemoryError) as error:
        answer = {"error": str(error) or type(error).__name__}
    finally:
        for fd in fds:
            os.close(fd)
    channel.send(sock, {**answer, "number": number})
    return True


def paths_of(filesystem: Filesystem, nodes: list[int]) -> dict[str, str | None]:
    """The paths of nodes, as JSON can say them, as many of the first as one message has room for."""
    found: dict[str, str | None] = {}
    room = channel.MAX_MESSAGE // 2
    for node in nodes:
        path = filesystem.path_of(node)
        room -= len(json.dumps(path)) + 32
        if room < 0:
            break
        found[str(node)] = path
    return found


def prepare_policy(filesystem: Filesystem, fd: int) -> None:
    """Have a file system make the policy ready that is the content of `fd`."""
    filesystem.prepare_policy(os.pread(fd, os.fstat(fd).st_size, 0))


def add_counters(total: dict[str, list[int]], more: dict[str, list[int]]) -> None:
    """Add counters by operation to others of the same shape."""
    for name, row in more.items():
        known = total.get(name)
        total[name] = [a + b for a, b in zip(known, row, strict=True)] if known else row


def make_window(size: int, memory: GuestMemory, log: Log) -> Window:
    """A DAX window, with room for it in this process."""
    from virtiofs.dax.window import Window

    memory.reserve_window(size)
    return Window(size, memory, log.warning)


def serve_queues(
    window_size: int, table: bool = False, policy: bool = False
) -> Callable[[socket.socket, Filesystem, Log], None]:
    """What a worker does for a front end.  `window_size`: of the device's DAX window, 0 for none.  `table`: the share
    has a metadata table.  `policy`: it has a policy, which may be replaced.
    """
    # Behind the walls nothing can be imported.
    if window_size:
        import virtiofs.dax.window
    if table:
        import virtiofs.daemon.notifications
        import virtiofs.daemon.versions
    if policy:
        import virtiofs.daemon.reload  # noqa: F401

    def serve(sock: socket.socket, filesystem: Filesystem, log: Log) -> None:
        Worker(sock, filesystem, log, window_size).run()

    return serve


def start(
    make: Callable[[Place], Filesystem],
    log: Log,
    walls: Walls,
    serve: Callable[[socket.socket, Filesystem, Log], None],
    keep: Sequence[int] = (),
    seats: Seats | None = None,
) -> tuple[int, socket.socket]:
    """Fork a worker that serves what `make` makes inside `walls`: a process id and the supervisor's end of its channel.

    The process is the worker, or one that ends as the worker does.  Raises `WorkerError` if the walls can not be
    put up or the file system can not be made.  It keeps the log's descriptors and `keep`; others belong to other
    guests.  `serve` is what it does then, until the other end of its channel is closed.  `seats`: of the metadata table
    that the file system is told to use.
    """
    if seats is not None:
        try:
            keep = (*keep, seats.take())
        except OSError as error:
            raise channel.WorkerError(str(error)) from None
    ours, its = channel.pair()
    supervisor = os.pidfd_open(os.getpid())
    pid = os.fork()
    if pid:
        its.close()
        os.close(supervisor)
        try:
            channel.ask(ours, {"do": "ready"})
        except channel.WorkerError:
            ours.close()
            os.waitpid(pid, 0)
            if seats is not None:
                seats.leave(None)
            raise
        if seats is not None:
            seats.leave(pid)
        return pid, ours
    status = 1
    try:
        # The supervisor decides when to end; a Ctrl-C at the terminal reaches all.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        try:
            place = walls.enter(supervisor, its.fileno(), *log.target.fds, *keep)
            filesystem = make(place)
            threading.excepthook = lambda what: log.error(f"a thread failed: {what.exc_value!r}")
            walls.seal(place)
        except (OSError, ValueError) as error:
            answer = {"error": getattr(error, "strerror", None) or str(error)}
        else:
            answer = {}
            status = 0
        received = channel.receive(its)
        channel.send(its, {**answer, "number": received[0]["number"] if received else 0})
        if not status:
            serve(its, filesystem, log)
    except BaseException as error:  # nothing may return into the supervisor's code
        status = 1
        log.error(f"the worker failed: {type(error).__name__}: {error}")
    finally:
        os._exit(status)


def cause_of_death(status: int) -> str:
    """Why a worker ended that was not told to, from what `os.waitpid` says."""
    if not os.WIFSIGNALED(status):
        return f"exit status {os.waitstatus_to_exitcode(status)}"
    reason = signal.Signals(os.WTERMSIG(status)).name
    if os.WTERMSIG(status) == signal.SIGBUS:
        reason += ": guest memory vanished under it (the VMM shrank it, or its file system is full)"
    if os.WTERMSIG(status) == signal.SIGSYS:
        reason += ": it made a system call that is not allowed; the kernel's log names it with --seccomp log"
    return reason

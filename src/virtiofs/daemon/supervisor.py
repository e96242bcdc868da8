# SPDX-License-Identifier: Apache-2.0
"""The supervisor: the process that a user starts, and that VMMs speak to.

One thread, one loop: the ports (`port.py`: a share's socket, front end and worker), the control socket
(`control.py`), and signals.  It holds guest memory and eventfd descriptors only to pass them on.  When a
worker dies under a connection its guest's requests can not be answered: with one share the daemon says why
and ends; with several that connection ends and the others never notice.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Callable

from virtiofs.daemon import channel, notify
from virtiofs.daemon.log import Log
from virtiofs.daemon.observed import Shares
from virtiofs.daemon.port import Port

TICK_MS = 250


class Supervisor(Shares):
    """Serves `ports` until told to end.

    `leave` is called once, when all sockets listen, and gives up what no worker needs.  `add_port` makes a port
    from what a user says on the control socket (see `add`).
    """

    def __init__(
        self,
        ports: list[Port],
        log: Log,
        leave: Callable[[], None],
        add_port: Callable[[str], Port] | None = None,
    ):
        super().__init__(log)
        self.ports: list[Port] = ports
        self.tick: Callable[[], None] | None = None  # called a few times a second, if there is one
        self._leave = leave
        self._add_port = add_port
        self._leaving: list[Port] = []
        self._ending = False
        self._hung_up = False
        self._failed = False

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until a signal, or until the only connection ends.  Returns the exit status.

        `ready` is called once, when front ends may connect.  Raises `WorkerError` if a share can not be served.
        """
        wake, signals = socket.socketpair()
        for end in (wake, signals):
            end.setblocking(False)
        previous = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        try:
            self._leave()
            for port in self.ports:
                port.start()
            ready()
            while not self._ending:
                self._wait(wake)
        finally:
            if self.control is not None:
                self.control.close()
            for port in self.ports:
                port.begin_end()
            for port in self.ports + self._leaving:
                port.finish()
            signal.set_wakeup_fd(previous)
            wake.close()
            signals.close()
        return 1 if self._failed else 0

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._hung_up = True
        else:
            self._end(number)

    def _end(self, number: int) -> None:
        self._log.info(f"ending on {signal.Signals(number).name}")
        self._ending = True

    def _wait(self, wake: socket.socket) -> None:
        """Wait for something to happen, and deal with it: at most one thing of each port and of each client."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        timeout: float | None = None
        watched = []
        for port in self.ports + self._leaving:
            sources = port.sources()
            watched.append((port, sources))
            for fd, _ in sources:
                poll.register(fd, select.POLLIN)
            deadline = port.deadline()
            if deadline is not None:
                timeout = min(deadline, timeout or deadline)
        clients = self.control.sources() if self.control is not None else []
        for fd, events, _ in clients:
            poll.register(fd, events)
        milliseconds = None if timeout is None else max(0, round((timeout - time.monotonic()) * 1000) + 1)
        if self.control is not None and self.control.busy:
            milliseconds = 0
        if self.tick is not None:
            self.tick()
            for port in list(self.ports):
                self._look_after(port)
            milliseconds = TICK_MS if milliseconds is None else min(milliseconds, TICK_MS)
        happened = dict(poll.poll(milliseconds))
        if wake.fileno() in happened:
            wake.recv(64)
        if self._hung_up:
            self._hung_up = False
            if self.hang_up():
                self._end(signal.SIGHUP)
        for port, sources in watched:
            port.expire()
            act = next((act for fd, act in sources if fd in happened), None)
            if act is not None and not self._ending:
                self._deal(port, act)
        for port in self._leaving:
            if not port.sources():
                port.finish()
        self._leaving = [port for port in self._leaving if port.sources()]
        for fd, _, answer in clients:
            if not self._ending and (fd in happened or milliseconds == 0):
                answer()

    def _deal(self, port: Port, act: Callable[[], None]) -> None:
        alone = len(self.ports) == 1
        try:
            act()
        except channel.WorkerError as error:
            if alone:
                raise
            self._log.error(str(error))
        self._look_after(port)

    def _look_after(self, port: Port) -> None:
        """See to what happened to a port."""
        if port.lost and len(self.ports) == 1:
            self._failed = self._ending = True
        elif port.lost:
            port.recover()
        if port.over:
            self._ending = True

    # --- what the control socket asks ---

    def find(self, tag: str) -> Port:
        """The share of this tag.  Raises `ValueError`."""
        port = super().find(tag)
        assert isinstance(port, Port)
        return port

    def add(self, share: str) -> Port:
        """Serve one more share, "TAG=DIR[:ro][:quota=SIZE]".  Raises `ValueError` or `OSError` saying what is wrong."""
        if self._add_port is None:
            raise ValueError(
                "this daemon was started for one share; start one with --socket-dir to add others"
            )
        port = self._add_port(share)
        try:
            port.start()
        except BaseException:
            port.begin_end()
            raise
        self.ports.append(port)
        self._log.info(f"sharing {port.share.where} as {port.tag}")
        return port

    def remove(self, tag: str, force: bool = False) -> None:
        """Serve a share no more.  Raises `ValueError` while a VMM is connected to it, unless forced."""
        port = self.find(tag)
        if port.connected and not force:
            raise ValueError(
                f"process {port.peer} is connected to {tag}; unmount it there first, or use --force and break it"
            )
        self.ports.remove(port)
        port.begin_end()
        self._leaving.append(port)
        self._log.info(f"sharing {port.share.where} as {port.tag} no more")


def announce(ready_fd: int | None) -> None:
    """Tell the service manager, and whoever passed `ready_fd`, that a front end may connect."""
    notify.service_manager("READY=1\nSTATUS=waiting for a VMM")
    if ready_fd is not None:
        notify.descriptor(ready_fd)

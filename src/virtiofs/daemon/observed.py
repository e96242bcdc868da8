# SPDX-License-Identifier: Apache-2.0
"""What the control socket can ask of a share and of those there are, whoever serves them (`port.py`, `hostmount.py`).

A worker that is stopped, drowned or gone answers nothing, and that is waited for two seconds, not longer.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Sequence
from typing import Any

from virtiofs.daemon import channel, worker
from virtiofs.daemon.log import Log
from virtiofs.fuse.serving import COLUMNS, NAMES, UNKNOWN
from virtiofs.fuse.tracing import RING_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.control import Control
    from virtiofs.daemon.seats import Seats
    from virtiofs.daemon.watcher import WatcherProcess
    from virtiofs.fs.policy.reloading import PolicyFile

# How long somebody who asks for counters waits for a worker that is stopped or drowned.
ANSWER_SECONDS = 2.0
# And whoever changes a policy: a worker may have to look through the whole tree for it.
POLICY_SECONDS = 20.0
OPERATIONS = {*NAMES.values(), UNKNOWN}


class Observed:
    """A share whose worker, if it has one, can be asked.  `where`: what is shared, for people to read."""

    def __init__(self, where: str, read_only: bool, log: Log):
        self.where = where
        self.read_only = read_only
        self._log = log
        self._worker: tuple[int, socket.socket] | None = None
        self._watcher: WatcherProcess | None = None
        self._past: dict[str, list[int]] = {}  # counters of workers that are no more
        self._ring = -1  # shared memory for a trace, once somebody wanted one
        self._tracers = 0

    @property
    def tag(self) -> str:
        raise NotImplementedError

    @property
    def path(self) -> str | None:
        """The socket that front ends connect to."""
        return None

    @property
    def seats(self) -> Seats | None:
        """In the metadata table of the tree, if the share uses it."""
        return None

    @property
    def only(self) -> str:
        """The one file of the tree that is shared, "" if all of it is."""
        return ""

    @property
    def policy(self) -> PolicyFile | None:
        """What the guest may see and do, if there are rules."""
        return None

    @property
    def peer(self) -> int | None:
        """Who is served: a process."""
        return None

    def status(self) -> dict[str, Any]:
        """The state of the share, its queues and its file system, as JSON can say it."""
        report: dict[str, Any] = {
            "tag": self.tag,
            "directory": self.where,
            "read_only": self.read_only,
            "socket": self.path,
            "connected": self.peer,
            "connections": 1,
            "quota": None,
            "policy": None if self.policy is None else self.policy.text,
            "watcher": self._watcher.status() if self._watcher is not None else None,
            "metadata": None if self.seats is None else self.seats.status(),
            "worker": self._worker[0] if self._worker else None,
            "dax_window": 0,
            "queues": {},
            "pool": {},
            "filesystem": {},
        }
        return {**report, **self._ask("status")}

    def counters(self) -> dict[str, list[int]]:
        """What was served since the daemon started, by operation (see `Loop.counters`)."""
        total = {name: list(row) for name, row in self._past.items()}
        worker.add_counters(total, self._counted())
        return total

    def _counted(self) -> dict[str, list[int]]:
        """What the worker has counted.  A guest may have taken it over: what makes no sense is left out."""
        return {
            name: row
            for name, row in self._ask("counters").items()
            if name in OPERATIONS
            and isinstance(row, list)
            and len(row) == COLUMNS
            and all(type(value) is int for value in row)
        }

    def set_log_level(self, level: str) -> None:
        """Have the worker log at `level`; ours is the supervisor's."""
        self._ask("set_log_level", level=level)

    def paths(self, nodes: list[int]) -> dict[str, Any]:
        """The paths of node ids, by their decimal digits; null for one that nobody knows."""
        return self._ask("paths", nodes=nodes)

    def prepare_policy(self, encoded: bytes) -> None:
        """Have the worker, if there is one, make another policy ready.  Raises `WorkerError` if it can not."""
        fd = os.memfd_create("virtiofs-policy", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(encoded)
            self._demand("prepare_policy", [fd])
        finally:
            os.close(fd)

    def use_policy(self) -> None:
        """Have the worker put in force what it made ready.  Raises `WorkerError` if it does not."""
        self._demand("use_policy")

    def _demand(self, do: str, fds: Sequence[int] = ()) -> None:
        """Have the worker, if there is one, do something that may take a while.  Raises `WorkerError`."""
        if self._worker is not None:
            channel.ask(self._worker[1], {"do": do}, fds, POLICY_SECONDS)

    def begin_trace(self) -> int:
        """Have requests written down: the ring (`fuse.records` reads it), a descriptor of ours.

        It goes on, from worker to worker, until `end_trace` was called as often.  Raises `OSError`.
        """
        if self._ring < 0:
            self._ring = make_ring()
        self._tracers += 1
        if self._tracers == 1:
            self._go_on_tracing()
        return self._ring

    def end_trace(self) -> None:
        """One who looked at the trace is gone."""
        self._tracers -= 1
        if not self._tracers:
            self._ask("trace", on=False)

    def _go_on_tracing(self) -> None:
        """Tell a worker of the trace, if there is one."""
        if self._tracers:
            self._ask("trace", [self._ring], on=True)

    def _ask(self, do: str, fds: Sequence[int] = (), **arguments: Any) -> dict[str, Any]:
        """What the worker answers; nothing from one that does not."""
        if self._worker is None:
            return {}
        try:
            answer = channel.ask(self._worker[1], {"do": do, **arguments}, fds, ANSWER_SECONDS)
            return answer if isinstance(answer, dict) else {}
        except OSError as error:
            self._log.warning(f"while asking for {do}: {error}")
            return {}


class Shares:
    """The shares of a daemon, as the control socket sees them.  `control`: what answers there, if anything does."""

    ports: Sequence[Observed] = ()
    control: Control | None = None

    def __init__(self, log: Log):
        self._log = log
        self._terminal = Terminal()

    def find(self, tag: str) -> Observed:
        """The share of this tag.  Raises `ValueError`."""
        for port in self.ports:
            if port.tag == tag:
                return port
        tags = ", ".join(port.tag for port in self.ports) or "none"
        raise ValueError(f"there is no share {tag!r}; there are: {tags}")

    def status(self) -> list[dict[str, Any]]:
        """The state of every share."""
        return [port.status() for port in self.ports]

    def add(self, share: str) -> Observed:
        """Serve one more share, "TAG=DIR[:ro][:quota=SIZE]".  Raises `ValueError` or `OSError` saying what is wrong."""
        raise ValueError("this is a mount of one directory; start another for another")

    def remove(self, tag: str, force: bool = False) -> None:
        """Serve a share no more.  Raises `ValueError` while a VMM is connected to it, unless forced."""
        raise ValueError("this is a mount of one directory; unmount it")

    def reload_policies(self, tag: str = "") -> list[str]:
        """Read the policies of all shares, or of one, again: the tags where that is in force now.

        Raises `ValueError` or `OSError` saying what is wrong; then what was in force still is.
        """
        from virtiofs.daemon import reload

        if tag:
            self.find(tag)
        tags = reload.reload_policies(self.ports, tag)
        self._log.info(f"the policy of {', '.join(tags)} was read again")
        return tags

    def hang_up(self) -> bool:
        """What SIGHUP means: to read policies again, where there are any; else to end, which is what this returns.

        It also means to end when it is the terminal that went away.
        """
        if not any(port.policy for port in self.ports) or self._terminal.gone:
            return True
        try:
            self.reload_policies()
        except (ValueError, OSError) as error:
            self._log.error(f"what was in force still is: {error}")
        return False

    def set_log_level(self, level: str) -> None:
        """Log at `level` from now on, in every process.  Raises `ValueError` for an unknown one."""
        self._log.set_level(level)
        for port in self.ports:
            port.set_log_level(level)


class Terminal:
    """The terminal that controls this process, if there was one when it started."""

    def __init__(self) -> None:
        self._was_there = self._is_there()

    @property
    def gone(self) -> bool:
        return self._was_there and not self._is_there()

    @staticmethod
    def _is_there() -> bool:
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            return False
        return True


def make_ring() -> int:
    """Shared memory for a trace, of a size that nobody can change under its readers."""
    fd = os.memfd_create("virtiofs-trace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, RING_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd

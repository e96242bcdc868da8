# SPDX-License-Identifier: Apache-2.0
"""The watcher's process: what the host does to a share's tree enters its metadata table (`metadata/watch.py`).

Each daemon has one for each share with a table; of all those of one tree, in whatever daemons, one watches and the
others wait for its end in a lock of the kernel's.  Once it listens it gives up all privileges but the one to open file
handles; to hear of what is mounted later it would need them again, so it ends then, and another takes its place.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any, NoReturn

from virtiofs.daemon import beside
from virtiofs.daemon.log import Log
from virtiofs.metadata.watch import STATES, Gauges, Remount, watch
from virtiofs.sandbox import capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.metadata.table import Table

# What fanotify takes: to mark file systems, and to open file handles.
MARKING = capabilities.mask("sys_admin")
WATCHING = capabilities.mask("dac_read_search")
# The status of a process that is to be started again.
REMOUNTED = 75
# One that fails is tried again, but not all the time.
PAUSE_SECONDS = 5.0
# How long it may take to leave the table.
GRACE_SECONDS = 2.0


class WatcherProcess:
    """Watches `directory`, an absolute path, for its metadata table.

    `start` it, wait for `fd` (-1: for nothing) to be readable, and call `ended` then.  `kind`: "fanotify" or
    "inotify" only.
    """

    def __init__(self, directory: str, log: Log, kind: str = ""):
        self.fd = -1
        self.pid = 0
        self.gauges = Gauges()
        self._directory = directory
        self._log = log
        self._kind = kind
        self._not_before = 0.0

    def start(self) -> None:
        """Fork it; nothing is waited for."""
        self.gauges["state"] = STATES.index("starting")
        self.pid, self.fd = beside.start(self._run, self._log, MARKING | WATCHING)

    def ended(self) -> None:
        """It died, or something was mounted: start another."""
        pid, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        self.fd, self.pid = -1, 0
        if status == 0:  # somebody told it to end
            self.gauges["state"] = STATES.index("off")
            return
        now = time.monotonic()
        if not os.WIFEXITED(status) or os.WEXITSTATUS(status) != REMOUNTED:
            if now < self._not_before:
                self.gauges["state"] = STATES.index("failed")
                self._log.error(f"the watcher of {self._directory} (process {pid}) ended again: given up")
                self._clear_up()
                return
            self._not_before = now + PAUSE_SECONDS
            self._log.warning(f"the watcher of {self._directory} (process {pid}) ended; starting another")
        self.start()

    def end(self) -> None:
        """Have no watcher any more."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            if not select.select([self.fd], [], [], GRACE_SECONDS)[0]:
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.fd)
        self.fd, self.pid = -1, 0
        self.gauges["state"] = STATES.index("off")

    def _clear_up(self) -> None:
        """Have the table say that nobody watches; another watcher would see to that."""
        from virtiofs.metadata import registry

        try:
            registry.attach(self._directory).close()
        except OSError as error:
            self._log.error(str(error))

    def status(self) -> dict[str, Any]:
        """What it does and what it has seen, as JSON can say it."""
        return {"process": self.pid or None, **self.gauges.report()}

    def _run(self) -> int:
        """The process."""
        from virtiofs.metadata import registry

        def told_to_end(number: int, _frame: object) -> NoReturn:
            signal.signal(number, signal.SIG_IGN)
            raise Told

        try:
            table: Table = registry.attach(self._directory)
            try:
                signal.signal(signal.SIGTERM, told_to_end)
                self.gauges["state"] = STATES.index("waiting")
                table.take_watch(True)
                watch(
                    self._directory,
                    table,
                    self.gauges,
                    self._log.warning,
                    lambda: capabilities.keep(WATCHING),
                    self._kind,
                )
            finally:
                table.close()
        except Told:
            return 0
        except Remount:
            return REMOUNTED
        except OSError as error:
            self._log.error(f"what the host does in {self._directory} is not seen: {error.strerror or error}")
        return 1


class Told(Exception):
    """The process is told to end."""

# SPDX-License-Identifier: Apache-2.0
"""The watcher's process: what the host does to a share's tree enters its metadata table (`metadata/watch.py`).

Each daemon has one for each share with a table; of all those of one tree, in whatever daemons, one watches and the
others wait for its end in a lock of the kernel's.  It is forked by the process that the user started, ends with it, and
gives up all privileges but the one to open file handles once it listens.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from virtiofs.daemon.log import Log
from virtiofs.metadata.watch import REMOUNTED, STATES, Gauges, Remount, watch
from virtiofs.sandbox import capabilities, process
from virtiofs.sandbox.walls import close_all_but

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.metadata.table import Table

# What fanotify takes: to mark file systems, and to open file handles.
MARKING = capabilities.mask("sys_admin")
WATCHING = capabilities.mask("dac_read_search")
# A watcher that fails is tried again, but not all the time.
PAUSE_SECONDS = 5.0


class WatcherProcess:
    """Watches `directory`, an absolute path, for its metadata table.

    `start` it, wait for `fd` to be readable, and call `ended` then.  `kind`: "fanotify" or "inotify" only.
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
        parent = os.pidfd_open(os.getpid())
        try:
            self.pid = os.fork()
            if not self.pid:
                self._run(parent)
        finally:
            os.close(parent)
        self.fd = os.pidfd_open(self.pid)

    def ended(self) -> None:
        """It died, or is to be started again since mounts changed: start another."""
        pid, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        self.fd, self.pid = -1, 0
        again = os.WIFEXITED(status) and os.WEXITSTATUS(status) == REMOUNTED
        now = time.monotonic()
        if not again and now < self._not_before:
            self.gauges["state"] = STATES.index("failed")
            self._log.error(f"the watcher of {self._directory} (process {pid}) ended again, and is given up")
            return
        if not again:
            self._not_before = now + PAUSE_SECONDS
            self._log.warning(f"the watcher of {self._directory} (process {pid}) ended; starting another")
        self.start()

    def end(self) -> None:
        """Have no watcher any more."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.fd)
        self.fd, self.pid = -1, 0
        self.gauges["state"] = STATES.index("off")

    def status(self) -> dict[str, Any]:
        """What it does, and what it has seen, as JSON can say it."""
        return {"process": self.pid or None, **self.gauges.report()}

    def _run(self, parent: int) -> None:
        """The process.  Never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # the supervisor decides when to end
            close_all_but(parent, *self._log.target.fds)
            process.die_with_parent(parent)
            os.close(parent)
            process.no_new_privileges()
            process.forbid_core()
            capabilities.keep(MARKING | WATCHING)
            self._watch()
        except Remount:
            status = REMOUNTED
        except OSError as error:
            self._log.error(f"what the host does in {self._directory} is not seen: {error.strerror or error}")
        except BaseException as error:  # nothing may return into the supervisor's code
            self._log.error(f"the watcher failed: {type(error).__name__}: {error}")
        finally:
            os._exit(status)

    def _watch(self) -> None:
        from virtiofs.metadata import registry

        table: Table = registry.attach(self._directory)
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



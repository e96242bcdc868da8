# SPDX-License-Identifier: Apache-2.0
"""Processes beside the supervisor that serve no guest: the watcher, and who tells a client of changes.

They keep none of its descriptors but those they are given, no privilege but the one they need, and end with it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

from virtiofs.daemon.log import Log
from virtiofs.sandbox import capabilities, process
from virtiofs.sandbox.walls import close_all_but


def start(run: Callable[[], int], log: Log, privileges: int, keep: Sequence[int] = ()) -> tuple[int, int]:
    """Fork a process that ends with the status that `run` returns: its number, and a pidfd of it.

    `privileges`: capabilities it keeps, of those there are.  `keep`: descriptors it keeps besides the log's.
    """
    parent = os.pidfd_open(os.getpid())
    pid = os.fork()
    if pid:
        os.close(parent)
        return pid, os.pidfd_open(pid)
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        # The supervisor decides when to end; a Ctrl-C at the terminal reaches all.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        close_all_but(parent, *log.target.fds, *keep)
        process.die_with_parent(parent)
        os.close(parent)
        process.no_new_privileges()
        process.forbid_core()
        capabilities.keep(privileges)
        status = run()
    except BaseException as error:  # nothing may return into the supervisor's code
        log.error(f"a process beside the supervisor failed: {type(error).__name__}: {error}")
    finally:
        os._exit(status)

# SPDX-License-Identifier: Apache-2.0
"""Child processes that do not outlive us, whatever ends us.

Source: prctl(2), PR_SET_PDEATHSIG.  The signal comes when the *thread* that started the child ends, so it is
only set by the main thread; a child started by another thread is ended by its owner's close() alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

__all__ = ["end", "start", "wait_for_end"]

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start(command: Sequence[str | bytes], **options: Any) -> subprocess.Popen[bytes]:
    """Start `command`, with `options` as for subprocess.Popen.  The kernel kills it if we die first.

    It gets a session of its own, so that Ctrl-C at the terminal is ours to answer.  Raises OSError.
    """
    if threading.current_thread() is threading.main_thread():
        parent = os.getpid()

        def follow_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        options["preexec_fn"] = follow_parent
    return subprocess.Popen(command, start_new_session=True, **options)


def end(process: subprocess.Popen[bytes], grace: float = 3.0) -> None:
    """Ask `process` to end with SIGTERM; after `grace` seconds kill it, and what it left in its session."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    wait_for_end(process, grace)
    # Not reaped yet, so the number still means this process group and no other.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait until `process` has ended, without reaping it.  False if it has not after `seconds`."""
    if process.returncode is not None:
        return True
    watch = os.pidfd_open(process.pid)
    try:
        return bool(select.select([watch], [], [], max(0.0, seconds))[0])
    finally:
        os.close(watch)

# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: lines on standard error or in the system's log, the same from supervisor and worker.

`logging` is not used as importing it costs a tenth of the time a daemon may take to be ready.  Under systemd
each line carries the priority prefix that the journal understands (sd-daemon(3)).
"""

from __future__ import annotations

import os
import socket
import time

LEVELS = {"off": 0, "error": 3, "warning": 4, "info": 6, "debug": 7}
# What a guest or a front end can trigger may not fill the host's disk.
BURST = 20
REFILL_SECONDS = 5.0
SYSTEM_LOG = "/dev/log"
FACILITY = 3 << 3  # LOG_DAEMON


class StandardError:
    """Lines on standard error.  `name` stands in front of each."""

    fds: tuple[int, ...] = ()

    def __init__(self, name: str = "virtiofs"):
        self._name = name
        self._journal = "JOURNAL_STREAM" in os.environ

    def write(self, level: str, text: str) -> None:
        prefix = f"<{LEVELS[level]}>" if self._journal else f"{self._name}: {level}: "
        try:
            os.write(2, (prefix + text.replace("\n", " ") + "\n").encode(errors="replace"))
        except OSError:
            pass  # nobody reads: serving goes on


class SystemLog:
    """Datagrams to /dev/log (RFC 3164, as glibc's syslog(3) writes them).  Raises `OSError` if nobody listens there.

    Not the C library's own: it keeps a descriptor that nobody else knows of, and reconnects by path, which a
    sandboxed worker cannot.
    """

    def __init__(self, name: str, path: str = SYSTEM_LOG):
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.fds: tuple[int, ...] = (self._socket.fileno(),)

    def write(self, level: str, text: str) -> None:
        stamp = time.strftime("%b %e %H:%M:%S")
        line = f"<{FACILITY | LEVELS[level]}>{stamp} {self._name}[{os.getpid()}]: {level}: {text}"
        try:
            self._socket.send(line.replace("\n", " ").encode(errors="replace"))
        except OSError:
            pass  # full, or its reader is gone: serving goes on


class Log:
    """Writes lines of `level` ("off", "error", "warning", "info", "debug") and above to `target`."""

    def __init__(self, level: str = "info", target: StandardError | SystemLog | None = None):
        self._threshold = [LEVELS[level]]  # shared with the logs that `about` makes
        self.target = target or StandardError()
        self._subject = ""
        self._tokens = float(BURST)
        self._refilled = time.monotonic()
        self._dropped = 0

    def about(self, subject: str) -> Log:
        """A log whose lines begin with `subject`; of the same level, but its flood does not drown the others."""
        log = Log(target=self.target)
        log._threshold = self._threshold
        log._subject = f"{subject}: "
        return log

    def set_level(self, level: str) -> None:
        """Change the level, also of the logs made by `about`.  Raises `ValueError` for an unknown one."""
        if level not in LEVELS:
            raise ValueError(f"a log level is one of {', '.join(LEVELS)}, not {level!r}")
        self._threshold[0] = LEVELS[level]

    def error(self, text: str) -> None:
        self._write("error", text)

    def warning(self, text: str) -> None:
        self._write("warning", text)

    def info(self, text: str) -> None:
        self._write("info", text)

    def debug(self, text: str) -> None:
        self._write("debug", text)

    def _write(self, level: str, text: str) -> None:
        priority = LEVELS[level]
        if priority > self._threshold[0] or not self._admit(priority):
            return
        if self._dropped:
            text, self._dropped = f"{text} ({self._dropped} lines were left out)", 0
        self.target.write(level, self._subject + text)

    def _admit(self, priority: int) -> bool:
        if priority == LEVELS["debug"]:
            return True  # asked for by name
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._refilled) * BURST / REFILL_SECONDS)
        self._refilled = now
        if self._tokens < 1:
            self._dropped += 1
            return False
        self._tokens -= 1
        return True

# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: lines on standard error, the same from supervisor and worker.

`logging` is not used as importing it costs a tenth of the time a daemon may take to be ready.  Under systemd
each line carries the priority prefix that the journal understands (sd-daemon(3)).
"""

from __future__ import annotations

import os
import time

LEVELS = {"error": 3, "warning": 4, "info": 6, "debug": 7}
# What a guest or a front end can trigger may not fill the host's disk.
BURST = 20
REFILL_SECONDS = 5.0


class Log:
    """Writes lines of `level` ("error", "warning", "info", "debug") and above."""

    def __init__(self, level: str = "info"):
        self._threshold = LEVELS[level]
        self._journal = "JOURNAL_STREAM" in os.environ
        self._tokens = float(BURST)
        self._refilled = time.monotonic()
        self._dropped = 0

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
        if priority > self._threshold or not self._admit(priority):
            return
        if self._dropped:
            text, self._dropped = f"{text} ({self._dropped} lines were left out)", 0
        prefix = f"<{priority}>" if self._journal else f"virtiofs: {level}: "
        try:
            os.write(2, (prefix + text.replace("\n", " ") + "\n").encode(errors="replace"))
        except OSError:
            pass  # nobody reads: serving goes on

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

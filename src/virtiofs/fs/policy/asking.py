# SPDX-License-Identifier: Apache-2.0
"""The function of a policy that asks: called once for a path, waited for a while, its answer kept.

Each call has a thread of its own, and whoever wants the answer waits for `patience` seconds.  A call that takes longer
goes on, and what asks for the same path meanwhile is refused at once; with `MOST_LATE` of them everything that is not
answered yet is.  So a function that hangs takes a thread of the pool for a moment, and never for good.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from errno import EIO

from virtiofs.fs.policy.rules import DENY, READ_ONLY, Policy

ANSWERS = {"allow": 0, "deny": DENY, "read-only": READ_ONLY}
MOST_LATE = 8
MOST_KEPT = 65536
TELL_AGAIN_SECONDS = 60.0
# What went wrong is asked again only after this.
WRONG_SECONDS = 1.0
LONGEST = 1e9


class Call:
    """A call that runs."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.late = False
        self.result: tuple[int, float] = (-EIO, 0.0)


class Asker:
    """Asks `policy`.  `log` is given a line for what goes wrong."""

    def __init__(self, policy: Policy, log: Callable[[str], None]):
        self._policy = policy
        self._log = log
        self._lock = threading.Lock()
        self._calls: dict[bytes, Call] = {}
        self._kept: dict[bytes, tuple[int, float]] = {}  # answer, and until when (monotonic seconds)
        self._late = 0
        self._told: dict[str, float] = {}
        self.asked = 0

    def ask(self, path: bytes) -> tuple[int, int]:
        """What holds for `path`: bits of a verdict or a negative errno, and for how many nanoseconds from now.  Raises
        nothing.
        """
        try:
            answer, until = self._find(path)
            return answer, int(max(0.0, min(until - time.monotonic(), LONGEST)) * 1e9)
        except Exception as error:
            self._tell(path, f"{type(error).__name__}: {error}")
            return -EIO, 0

    def _find(self, path: bytes) -> tuple[int, float]:
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(path)
            if kept is not None and kept[1] > now:
                return kept
            call = self._calls.get(path)
            if call is not None and call.late:
                return -EIO, now
            if call is None:
                if self._late >= MOST_LATE:
                    return -EIO, now
                call = self._calls[path] = Call()
                try:
                    threading.Thread(target=self._run, args=(path, call), daemon=True).start()
                except RuntimeError:
                    del self._calls[path]
                    raise
                self.asked += 1
        if call.done.wait(self._policy.patience):
            return call.result
        with self._lock:
            if call.done.is_set():
                return call.result
            if not call.late:
                call.late = True
                self._late += 1
        self._tell(path, f"no answer within {self._policy.patience:g} s")
        return -EIO, now

    def _run(self, path: bytes, call: Call) -> None:
        """The body of a call's thread."""
        answer, seconds = -EIO, WRONG_SECONDS
        try:
            answer, seconds = read_answer(
                self._policy.ask(path.decode("utf-8", "surrogateescape")), self._policy.keep_answers
            )
        except OSError as error:
            code = error.errno
            answer = -code if isinstance(code, int) and 0 < code < 512 else -EIO
        except BaseException as error:
            self._tell(path, f"{type(error).__name__}: {error}")
        with self._lock:
            call.result = (answer, time.monotonic() + seconds)
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[path] = call.result
            self._calls.pop(path, None)
            self._late -= call.late
            call.done.set()

    def _tell(self, path: bytes, what: str) -> None:
        """Log what went wrong; the same again only from time to time."""
        now = time.monotonic()
        with self._lock:
            if now - self._told.get(what, -TELL_AGAIN_SECONDS) < TELL_AGAIN_SECONDS:
                return
            if len(self._told) >= 256:
                self._told.clear()
            self._told[what] = now
        self._log(f"asking the policy about {path.decode('utf-8', 'replace')!r}: {what}"[:1000])


def read_answer(answer: object, seconds: float) -> tuple[int, float]:
    """What `ask` returned, as bits and seconds.  Raises `ValueError` for nonsense."""
    if isinstance(answer, tuple) and len(answer) == 2:
        answer, seconds = answer
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
            raise ValueError(f"an answer holds for a number of seconds, not {seconds!r}")
    if not isinstance(answer, str) or answer not in ANSWERS:
        raise ValueError(f"an answer is one of {', '.join(ANSWERS)}, not {answer!r}")
    return ANSWERS[answer], min(float(seconds), LONGEST)

# SPDX-License-Identifier: Apache-2.0
"""Watching mapped files for others that cut them: host programs, and other guests.

A VMM dies of a touch of what was mapped behind the end that a file has now (SIGBUS), and a guest touches what it
believes to be there.  The kernel has no way to be asked before that would do (docs/dax.md says which were weighed),
so this is told right after, and the window unmaps what is gone: what is left is the moment in between.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from virtiofs.dax import fanotify

EVENTS = 4096  # bytes read at a time; they are only counted on to come
AGAIN_SECONDS = 0.01  # until what could not be done is tried again


class Watch:
    """A thread that calls `look` after a watched file was written to or cut, again and again until it says True.

    `log` takes one line if files can not be watched.
    """

    def __init__(self, look: Callable[[], bool], log: Callable[[str], None]):
        self._look = look
        self._log = log
        self._group = -1
        self._end = -1
        self._thread: threading.Thread | None = None
        self._said = False

    def add(self, fd: int) -> None:
        """Watch a file from now on."""
        try:
            if self._thread is None:
                self._start()
            fanotify.add(self._group, fd)
        except OSError as error:
            if not self._said:
                self._said = True
                self._log(
                    f"mapped files can not be watched ({error.strerror}): the VMM may die if others truncate them"
                )

    def remove(self, fd: int) -> None:
        """Watch it no longer."""
        if self._thread is not None:
            try:
                fanotify.remove(self._group, fd)
            except OSError:
                pass  # it could not be watched

    def close(self) -> None:
        """Watch nothing any more.  Not to be called under a lock that `look` takes."""
        if self._thread is not None:
            os.eventfd_write(self._end, 1)
            self._thread.join()
            self._thread = None
            os.close(self._group)
            os.close(self._end)

    def _start(self) -> None:
        group = fanotify.new_group()
        self._group, self._end = group, os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        done = True
        while True:
            ready = [fd for fd, _ in poll.poll(None if done else AGAIN_SECONDS * 1000)]
            if self._end in ready:
                return
            try:
                while len(os.read(self._group, EVENTS)) > EVENTS // 2:
                    pass
            except BlockingIOError:
                pass
            done = self._look()

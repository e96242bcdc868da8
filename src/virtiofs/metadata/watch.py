# SPDX-License-Identifier: Apache-2.0
"""The host watcher: what the host's programs do to a tree enters its table.

One process of each daemon runs `watch`; of all processes that share a table one has the role, and the others wait for
its end.  Where the kernel allows it fanotify tells of whole file systems (`watch_fanotify.py`), else inotify of one
directory at a time (`watch_inotify.py`).  docs/events.md says what is seen and what is not.

Soundness: who takes the role, or has lost events, bumps `everything` after it has begun to listen; an event is left
out only when it is known to be of no consequence; a file that can not be told is never taken for another.
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Callable

from virtiofs.metadata.layout import ATTRIBUTES, DATA, ENTRY, GONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from virtiofs.metadata.watch_mounts import Mounts

    class Sink(Protocol):
        """What changes enter: a table."""

        def bump(
            self, dev: int, ino: int, kind: int, name: bytes = b"", child: tuple[int, int] = (0, 0)
        ) -> None: ...
        def bump_everything(self) -> None: ...
        def worker_pids(self) -> set[int]: ...
        def announce_watch(self, on: bool) -> None: ...

    class Watcher(Protocol):
        """Hears of changes.  `complete`: of all that happens in the tree; `unfinished`: there is more to set up."""

        kind: str
        fd: int

        @property
        def complete(self) -> bool: ...
        @property
        def unfinished(self) -> bool: ...

        def read(self) -> None:
            """Deal with what has happened so far.  Raises `Remount` if it has to begin anew."""

        def go_on(self) -> None:
            """Do a part of what is left to set up."""

        def mounts_changed(self) -> None:
            """Something was mounted or unmounted in the tree.  Raises `Remount` as above."""


Identity = tuple[int, int]
NOBODY = (0, 0)
STATES = ("off", "waiting", "starting", "incomplete", "complete", "failed")
KINDS = ("none", "fanotify", "inotify")


class Remount(Exception):
    """Something was mounted or unmounted, and marking file systems takes a privilege that was given up."""


class Gauges:
    """Numbers that the watcher counts and its supervisor reads, in memory they share."""

    NAMES = ("state", "kind", "events", "bumps", "coalesced", "overflows", "watches", "unwatched")

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def __getitem__(self, name: str) -> int:
        return self._words[self.NAMES.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[self.NAMES.index(name)] = value

    def add(self, name: str, value: int = 1) -> None:
        self[name] += value

    def report(self) -> dict[str, object]:
        """All of them, as JSON can say it."""
        numbers: dict[str, object] = {name: self[name] for name in self.NAMES[2:]}
        state = STATES[self["state"]]
        return {"kind": KINDS[self["kind"]], "state": state, "complete": state == "complete"} | numbers


class Batch:
    """What happened since the table was last told, the same change once."""

    def __init__(self, sink: Sink, gauges: Gauges):
        self.sink = sink
        self.gauges = gauges
        self._changes: dict[tuple[int, int, int, bytes], Identity] = {}
        self._noted = 0
        self._everything = False

    def data(self, inode: Identity, directory: Identity = NOBODY, name: bytes = b"") -> None:
        """The contents of a file; `name` in `directory` is how it was reached, if that is known."""
        self._note(DATA, inode, name, directory)

    def attributes(self, inode: Identity, directory: Identity = NOBODY, name: bytes = b"") -> None:
        self._note(ATTRIBUTES, inode, name, directory)

    def entry(self, directory: Identity, name: bytes, child: Identity = NOBODY) -> None:
        self._note(ENTRY, directory, name, child)

    def gone(self, directory: Identity, name: bytes, child: Identity = NOBODY) -> None:
        self._note(GONE, directory, name, child)

    def everything(self) -> None:
        """Who knows what happened: all that was known before is void."""
        self._everything = True

    def _note(self, kind: int, inode: Identity, name: bytes, other: Identity) -> None:
        self._noted += 1
        key = (kind, *inode, name)
        # The last one counts: a name that goes and comes again is there, for those who replay it.
        self._changes.pop(key, None)
        self._changes[key] = other

    def flush(self) -> None:
        """Tell the table."""
        if self._everything:
            self._everything = False
            self.sink.bump_everything()
        bump = self.sink.bump
        for (kind, dev, ino, name), other in self._changes.items():
            bump(dev, ino, kind, name, other)
        self.gauges.add("bumps", len(self._changes))
        self.gauges.add("coalesced", self._noted - len(self._changes))
        self._changes.clear()
        self._noted = 0


def choose(root: int, mounts: Mounts, batch: Batch, warn: Callable[[str], None], kind: str = "") -> Watcher:
    """A watcher of the tree below the directory of descriptor `root`: the best that can be had, or of `kind`.

    Raises `OSError` if there is none.
    """
    from virtiofs.metadata.watch_fanotify import FanotifyWatcher
    from virtiofs.metadata.watch_inotify import InotifyWatcher

    if kind != "inotify":
        try:
            return FanotifyWatcher(root, mounts, batch, warn)
        except OSError as error:
            if kind:
                raise
            warn(
                f"watching by inotify, one directory at a time, as fanotify can not be had: {error.strerror or error}"
            )
    return InotifyWatcher(root, mounts, batch, warn)


def watch(
    directory: str,
    sink: Sink,
    gauges: Gauges,
    warn: Callable[[str], None],
    settle: Callable[[], object] = lambda: None,
    kind: str = "",
) -> None:
    """Have what happens below `directory` enter `sink`, for ever.

    `settle` is called when it listens, to give up privileges.  Raises `OSError` if the tree can not be watched, and
    `Remount` when something was mounted: begin again then, with the privileges that were there first.
    """
    from virtiofs.metadata.watch_mounts import Mounts

    gauges["state"] = STATES.index("starting")
    batch = Batch(sink, gauges)
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts = Mounts(root)
    watcher = choose(root, mounts, batch, warn, kind)
    gauges["kind"] = KINDS.index(watcher.kind)
    settle()
    batch.everything()
    batch.flush()
    sources = select.poll()
    sources.register(watcher.fd, select.POLLIN)
    sources.register(mounts.fd, select.POLLPRI)
    told = None
    while True:
        if told != watcher.complete:
            told = watcher.complete
            sink.announce_watch(told)
            gauges["state"] = STATES.index("complete" if told else "incomplete")
        happened = dict(sources.poll(0 if watcher.unfinished else None))
        if watcher.fd in happened:
            watcher.read()
        if mounts.fd in happened and mounts.changed():
            watcher.mounts_changed()
        if watcher.unfinished:
            watcher.go_on()
        batch.flush()

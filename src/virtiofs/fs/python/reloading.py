# SPDX-License-Identifier: Apache-2.0
"""Loads a class again when a file that its module came from has changed (`--reload`).

Everything that was imported for it is imported anew, but for what is installed.  Nothing of the old object is carried
over: state that is to outlive a change belongs into a file.
"""

from __future__ import annotations

import importlib
import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Sequence

from virtiofs.fs.python import loading
from virtiofs.fs.python.filesystem import Filesystem
from virtiofs.fs.python.paths import PathFilesystem

PLACES = ("stdlib", "platstdlib", "purelib", "platlib")
OURS = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
INSTALLED = tuple(
    os.path.realpath(path) + os.sep for path in (*map(sysconfig.get_paths().get, PLACES), OURS) if path
)
Loaded = tuple[Filesystem | PathFilesystem, list[int]]


class Reloader:
    """The file system `what`, made with `words`, again and again.  `log` hears why it can not be."""

    def __init__(self, what: str, words: Sequence[str], log: Callable[[str], None]):
        self._what = what
        self._words = words
        self._log = log
        self._names: set[str] = set()
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._changed: dict[str, tuple[int, int, int]] = {}
        sys.dont_write_bytecode = True  # what is compiled is known by the second only

    def load(self) -> Loaded:
        """The file system, and the descriptors it opened.  Raises `ValueError`."""
        before = set(sys.modules)
        for name in self._names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.checkcache()
        fds: list[int] = []
        try:
            with loading.opened(fds):
                return loading.load(self._what, self._words), fds
        finally:
            new = (set(sys.modules) - before) | self._names
            self._names = {name for name in new if name not in sys.modules or self._is_theirs(name)}
            self._seen = self._look()

    @staticmethod
    def _is_theirs(name: str) -> bool:
        path = getattr(sys.modules.get(name), "__file__", None)
        return path is not None and not os.path.realpath(path).startswith(INSTALLED)

    def _look(self) -> dict[str, tuple[int, int, int]]:
        """What identifies the contents of each file."""
        found = {}
        for name in self._names:
            path = getattr(sys.modules.get(name), "__file__", None)
            if path is None:
                path = next((one for one in self._seen if os.path.basename(one) == f"{name}.py"), None)
            if path is not None:
                try:
                    status = os.stat(path)
                except OSError:  # an editor that renames is about to put it back
                    found[path] = (0, 0, 0)
                else:
                    found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found

    def again(self) -> Loaded | None:
        """The file system anew if a file has changed, and was left alone since the last call; else None."""
        now = self._look()
        if now == self._seen or now != self._changed:
            self._changed = now
            return None
        if any(not size for _, size, _ in now.values()):
            return None
        try:
            return self.load()
        except ValueError as error:
            self._log(f"what is served goes on as it was: {error}")
            return None

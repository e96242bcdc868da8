# SPDX-License-Identifier: Apache-2.0
"""Where in a tree an inode lies: for people and programs, as the table and its journal know no paths.

What is remembered of an inode is its name and the directory above it.  A path that comes of that is looked up before
it is given out; if it leads elsewhere, the tree is walked.  So a path is right at the moment it is given, or, of what
is gone, the last one known.
"""

from __future__ import annotations

import os
import time

Identity = tuple[int, int]
# Files and directories that are remembered; directories always are.
MOST_FILES = 200_000
# How much longer than a walk took there is none after it.
REST = 20.0


class Paths:
    """Paths in the tree below the directory of descriptor `root`, relative to it; b"" is the root's."""

    def __init__(self, root: int):
        self._root_fd = root
        found = os.fstat(root)
        self._root = (found.st_dev, found.st_ino)
        self._above: dict[Identity, tuple[Identity, bytes]] = {}
        self._missing: set[Identity] = set()
        self._next_walk = 0.0

    def learn(self, inode: Identity, above: Identity, name: bytes) -> None:
        """`name` in the directory `above` leads to `inode` from now on."""
        if len(self._above) > 2 * MOST_FILES:
            self._above.clear()
        self._above[inode] = (above, name)
        self._missing.discard(inode)

    def forget(self, inode: Identity, above: Identity, name: bytes) -> None:
        """This name leads to nothing any more; if `inode` has no other, it is gone, and not searched for."""
        if self._above.get(inode) == (above, name):
            self._miss(inode)

    def find(self, inode: Identity, search: bool = True) -> bytes | None:
        """The path of an inode, or the last one; None if it was never seen in the tree.

        `search`: walk the tree if need be; without it, None also for what is not where it was.  Raises `LookupError` if
        it would have to be walked again too soon.
        """
        path = self._known(inode)
        if path is not None and self._leads_to(path, inode):
            return path
        if not search:
            return None
        if inode in self._missing:
            return path
        if time.monotonic() < self._next_walk:
            raise LookupError("the tree was walked just now, and it was not there")
        self._walk()
        again = self._known(inode)
        if again is not None and self._leads_to(again, inode):
            return again
        self._miss(inode)
        return path

    def find_name(self, directory: Identity, name: bytes) -> bytes | None:
        """The path of a name in a directory; None if that is not in the tree.  Raises `LookupError` as `find` does."""
        path = self.find(directory)
        return None if path is None else path + b"/" + name if path else name

    def exists(self, path: bytes) -> bool:
        """Whether there is something at a path now; if so, that is learned."""
        above, _, name = path.rpartition(b"/")
        try:
            found = os.stat(path or b".", dir_fd=self._root_fd, follow_symlinks=False)
            inode = (found.st_dev, found.st_ino)
            if inode not in self._above and inode != self._root:
                parent = os.stat(above or b".", dir_fd=self._root_fd, follow_symlinks=False)
                self.learn(inode, (parent.st_dev, parent.st_ino), name)
        except OSError:
            return False
        return True

    def _miss(self, inode: Identity) -> None:
        if len(self._missing) > MOST_FILES:
            self._missing.clear()
        self._missing.add(inode)

    def _known(self, inode: Identity) -> bytes | None:
        words: list[bytes] = []
        while inode != self._root:
            known = self._above.get(inode)
            if known is None or len(words) > 4096:
                return None
            inode, name = known
            words.append(name)
        return b"/".join(reversed(words))

    def _leads_to(self, path: bytes, inode: Identity) -> bool:
        try:
            found = os.stat(path or b".", dir_fd=self._root_fd, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == inode

    def _walk(self) -> None:
        """Learn where everything is."""
        began = time.monotonic()
        self._missing.clear()
        files = 0
        pending: list[tuple[Identity, bytes]] = [(self._root, b"")]
        while pending:
            directory, path = pending.pop()
            try:
                with os.scandir(b"/proc/self/fd/%d/%s" % (self._root_fd, path)) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            found = entry.stat(follow_symlinks=False)
                            inode = (found.st_dev, found.st_ino)
                            self._above[inode] = (directory, entry.name)
                            pending.append((inode, path + b"/" + entry.name if path else entry.name))
                        elif files < MOST_FILES:
                            files += 1
                            self._above[(directory[0], entry.inode())] = (directory, entry.name)
            except OSError:
                continue  # gone meanwhile, or not ours to read
        now = time.monotonic()
        self._next_walk = now + (now - began) * REST

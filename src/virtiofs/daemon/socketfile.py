# SPDX-License-Identifier: Apache-2.0
"""The file of a listening socket: ours, unless somebody else has put theirs in its place."""

from __future__ import annotations

import os


class SocketFile:
    """The file of a listening socket, removed by `remove` unless somebody else has put theirs there."""

    def __init__(self, path: str):
        self.path = path
        self._found = os.stat(path)

    def remove(self) -> None:
        try:
            found = os.stat(self.path)
            if (found.st_dev, found.st_ino) == (self._found.st_dev, self._found.st_ino):
                os.unlink(self.path)
        except FileNotFoundError:
            pass

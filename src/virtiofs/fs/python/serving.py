# SPDX-License-Identifier: Apache-2.0
"""A file system in Python as something a daemon can serve: what makes its bridge, its walls, its descriptors."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from virtiofs.fs.python.bridge import Bridge
from virtiofs.fs.python.filesystem import Filesystem
from virtiofs.fs.python.loading import needs_of, preload
from virtiofs.fs.python.paths import PathFilesystem
from virtiofs.sandbox.walls import Place, Walls

# How many descriptors the process that serves may have.
DESCRIPTORS = 4096


class Servable:
    """`filesystem` inside walls, which `settings` say more of (see `Walls`).  `keep`: descriptors it works with.
    `needs`: what is granted besides its own.  `epoch`: see `Bridge`.

    Raises `ValueError` and `OSError` for what makes no sense or can not be done here.
    """

    def __init__(
        self,
        filesystem: Filesystem | PathFilesystem,
        log: Callable[[str], None],
        read_only: bool = False,
        keep: Sequence[int] = (),
        needs: Sequence[str] = (),
        epoch: int = 0,
        **settings: Any,
    ):
        directory, network, files = needs_of(filesystem, needs)
        preload()
        if filesystem.loop is not None:
            importlib.import_module(filesystem.loop)
        self.filesystem = filesystem
        self.keep = keep
        self._directory = directory
        self._log = log
        self._epoch = epoch
        self.read_only = read_only
        self.walls = Walls(
            directory or None,
            file_handles=False,
            features=("python", "network") if network else ("python",),
            files=files,
            read_only=read_only,
            **{"descriptors": DESCRIPTORS, **settings},
        )

    def make(self, place: Place) -> Bridge:
        """The bridge, inside the walls.  Raises `ValueError` if the file system does not start."""
        where = place.directory if self._directory else ""
        try:
            return Bridge(self.filesystem, self._log, where, self.read_only, self._epoch)
        except Exception as error:
            raise ValueError(f"it does not start: {type(error).__name__}: {error}") from error

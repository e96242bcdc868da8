# SPDX-License-Identifier: Apache-2.0
"""The supervisor's part in a metadata table: it attaches for its workers, and tidies up after them.

A worker is a member of its own, so that what it had begun when it died is known to be its.  Behind its walls it could
not attach, so the supervisor takes a *seat* for it just before the fork and leaves it to the worker afterwards: the
mapping alone keeps the membership, for as long as the worker lives.  The supervisor's own membership keeps the table
while no worker is there.
"""

from __future__ import annotations

import os
from typing import Any

from virtiofs.metadata import registry
from virtiofs.metadata.layout import VERSION_SHIFT
from virtiofs.metadata.table import MetadataError, Table


class Seats:
    """The metadata table of the tree below `directory`, for the workers that serve it.

    Raises `MetadataError`, also for a tree that holds the table itself: a guest could write to it.
    """

    def __init__(self, directory: str):
        self.directory = directory
        place = os.path.realpath(registry.runtime_directory())
        tree = os.path.realpath(directory)
        if f"{place}/".startswith(f"{tree.rstrip('/')}/"):
            raise MetadataError(
                0,
                f"the metadata table would lie in {place}, inside {directory}, for guests to write; share less",
            )
        self.table = registry.attach(tree)
        self.table.keep_from_children()
        self._seat: Table | None = None

    def take(self) -> int:
        """Take a seat for a worker that is about to be forked: a descriptor that it needs.  Raises `MetadataError`."""
        if self._seat is not None:  # nobody was forked
            self._seat.close()
        self._seat = registry.attach(self.directory)
        return self._seat.fd

    def sit(self) -> Table:
        """In the worker: its table."""
        assert self._seat is not None
        self._seat.keep_mapping_only()
        return self._seat

    def leave(self, pid: int | None) -> None:
        """In the supervisor: the seat is the worker's that runs now (None: there is none).

        `pid`: its process, or the one that stands in for it (see `sandbox.walls`).
        """
        seat, self._seat = self._seat, None
        assert seat is not None
        if pid is not None:
            seat.set_worker(last_of(pid))
            seat.keep_mapping_only()
        seat.close()

    def tidy(self) -> None:
        """End what dead workers had begun."""
        registry.tidy(self.table)

    def close(self) -> None:
        """Leave the table, when no worker is left."""
        self.table.close()

    def status(self) -> dict[str, Any]:
        """The state of the table, as JSON can say it."""
        table = self.table
        return {
            "path": table.path,
            "slots": table.slots,
            "members": len(registry.living(table)),
            "followers": len(table.followers()),
            "changes": table.changes,
            "everything": table.everything >> VERSION_SHIFT,
            "watched": table.watched,
        }


def last_of(pid: int) -> int:
    """The only child's only child of a process, and so on, or itself."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = file.read().split()
    except OSError:
        return pid
    return last_of(int(children[0])) if children else pid

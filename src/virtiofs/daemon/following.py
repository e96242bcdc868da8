# SPDX-License-Identifier: Apache-2.0
"""Keeps a guest's copy of the metadata table (metadata/copy.py) up to date with what others change."""

from __future__ import annotations

import threading

from virtiofs.metadata import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.metadata.copy import Copy
    from virtiofs.metadata.table import Table


class Following:
    """A thread that follows the journal of `table` and renews the words in `copy`."""

    def __init__(self, table: Table, copy: Copy):
        self._copy = copy
        self._follower = table.follow()
        self._thread = threading.Thread(target=self._run, name="versions", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._follower.close()
        self._thread.join()

    def _run(self) -> None:
        while (change := self._follower.next()) is not None:
            if change.kind == layout.EVERYTHING:
                # In this order: what the guest asks for from now on is compared with words that are right.
                self._copy.renew_all()
                self._copy.change_everything()
                continue
            self._copy.renew(change.dev, change.ino)
            if change.child_ino:
                self._copy.renew(change.child_dev, change.child_ino)

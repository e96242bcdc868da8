# SPDX-License-Identifier: Apache-2.0
"""What a guest is shown of the metadata table: its own copy (metadata/copy.py), and who keeps that up to date.

What this worker changes is put into the copy before the guest's request is answered (fs/passthrough); what others
change by a thread that follows the journal.
"""

from __future__ import annotations

import os
import threading

from virtiofs.daemon.log import Log
from virtiofs.dax.channel import Channel, Interrupted
from virtiofs.metadata import layout, region
from virtiofs.metadata.copy import Copy
from virtiofs.metadata.follower import Follower

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.dax.window import Window
    from virtiofs.fs.filesystem import Filesystem
    from virtiofs.metadata.table import Table


class Versions:
    """The copy of `table` for the guest of `filesystem`.

    Nothing is followed or shown before a driver asks for versions, which a stock one never does.  It is shown to the
    front end over a back-end channel, on a thread of its own: a front end that waits for us answers nothing meanwhile.
    """

    def __init__(self, table: Table, filesystem: Filesystem, log: Log):
        self._log = log
        self._table = table
        self._copy = Copy(table)
        self._asked = os.eventfd(0)
        filesystem.use_versions(self._copy, self._asked)
        self.size = self._copy.size
        self._window: Window | None = None
        self._channel: Channel | None = None
        self._wake = os.eventfd(0)
        self._follower: Follower | None = None
        self._stopping = False
        self._threads = [threading.Thread(target=self._show, name="versions shown", daemon=True)]
        self._threads[0].start()

    def connect(self, window: Window | None, fd: int, barriers: bool) -> None:
        """Show it through the channel of `window`, or if that is None through `fd`, which is ours from now on."""
        self._window = window
        if window is None:
            self._channel = Channel(fd, self._wake, barriers)

    def stop(self) -> None:
        """Show and renew nothing any more."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        os.eventfd_write(self._asked, 1)
        self._threads[0].join()
        if self._follower is not None:
            self._follower.close()
            self._threads[1].join()

    def _show(self) -> None:
        """Each time a driver asks: a front end forgets with the driver what was mapped."""
        while os.eventfd_read(self._asked) and not self._stopping:
            if self._follower is None:
                self._follower = Follower(self._table)
                self._copy.renew_all()  # what changed while nobody followed
                self._copy.change_everything()
                self._threads.append(threading.Thread(target=self._follow, name="versions", daemon=True))
                self._threads[1].start()
            done: list[bool] = []
            try:
                if self._window is not None:
                    done.append(self._window.show(region.REGION, self._copy.fd, self.size))
                elif self._channel is not None:
                    self._channel.map(0, self._copy.fd, 0, self.size, True, done.append, region.REGION)
            except (Interrupted, OSError) as error:
                self._log.debug(f"the versions are not shown to the guest: {error}")
            if done == [False]:
                self._log.debug("the front end does not show the versions to the guest, or it did already")

    def _follow(self) -> None:
        assert self._follower is not None
        while (change := self._follower.next()) is not None:
            if change.kind == layout.EVERYTHING:
                self._copy.renew_all()
                self._copy.change_everything()
                continue
            self._copy.renew(change.dev, change.ino)
            if change.child_ino:
                self._copy.renew(change.child_dev, change.child_ino)

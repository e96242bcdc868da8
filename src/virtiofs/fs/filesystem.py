# SPDX-License-Identifier: Apache-2.0
"""What every file system is to the rest of the house.

A file system is a table of handlers, one for each operation it knows (`fuse.request.Handlers`); what it
leaves out is answered with ENOSYS.  A compiled file system fills the table with its functions, which run
without the GIL, on any queue's thread, several at once.  One written in Python has functions there that call
its methods.
"""

import cython
from cython.cimports.virtiofs.fuse.request import Handlers


@cython.cclass
class Filesystem(Handlers):
    """A tree that can be served to a guest.

    Life: made once, before the first request; `start_thread` on each thread that will serve; any number of
    sessions, each ended by `reset`; `close`.  `wait_limit`: seconds a request may wait, for a lock,
    before it is refused.  `pool_threads`: how many threads, besides the queues', serve what would block (0: none,
    and no handler is asked with `no_wait`).
    """

    def __cinit__(self, *args, **kwargs):
        self.wait_limit = 600.0
        self.pool_threads = 0

    def start_thread(self) -> None:
        """Prepare the calling thread to serve requests.  Called once on each, before its first request."""

    def close(self) -> None:
        """Give back what the file system holds of the host.  No thread may serve any more."""

    def use_window(self, window: object, exact: bool) -> None:
        """Map files in a DAX window (`dax.window.Window`), from now on.  One that can not has nothing to do."""

    def use_notifications(self, send: object) -> None:
        """Tell the guest's kernel by `send`, which takes a whole message (a notification of fuse.h), what changed.

        Called at most once, before the first request, where the carrier can deliver.  One that says nothing has
        nothing to do.
        """

    def statistics(self) -> dict[str, int]:
        """Counters by name, for people to read."""
        return {}

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
    and no handler is asked with `no_wait`).  `pool_yields`: a processor that both want goes to a queue's thread first.
    `one_thread`: whoever serves it says that it does so with a single thread.
    `few_readers`: of the threads that serve a mount, only as many read requests as keep up (see `fuse.readers`).
    `metadata`: the metadata table that its changes are entered into (`metadata.table.Table`), or None.
    """

    def __cinit__(self, *args, **kwargs):
        self.wait_limit = 600.0
        self.pool_threads = 0
        self.pool_yields = False
        self.few_readers = False
        self.one_thread = False
        self.metadata = None

    def start_thread(self) -> None:
        """Prepare the calling thread to serve requests.  Called once on each, before its first request."""

    def close(self) -> None:
        """Give back what the file system holds of the host.  No thread may serve any more."""

    def use_window(self, window: object, exact: bool) -> None:
        """Map files in a DAX window (`dax.window.Window`), from now on.  One that can not has nothing to do."""

    def path_of(self, nodeid: int) -> str | None:
        """The path of a node from the root of the tree, "/" for that; None where nobody can tell."""
        return None

    def trust_metadata(self, names: float | None) -> None:
        """The guest is told of all that others enter into the table.  `names`: seconds that it may trust names."""

    def use_versions(self, copy: object, asked: int) -> None:
        """Show a guest that asks for it `copy` (`metadata.copy.Copy`), and tell the eventfd `asked` when one does.

        A file system that can not has nothing to do.
        """

    def nodes_of(self, dev: int, ino: int) -> list[int]:
        """The node ids that the guest holds of the host's file with this st_dev and st_ino."""
        return []

    def every_node(self) -> list[int]:
        """All node ids that the guest holds."""
        return []

    def is_removed(self, nodeid: int) -> bool:
        """Whether no name of the host's leads to a node that the guest holds any more."""
        return False

    def use_notifications(self, send: object) -> None:
        """Tell the guest's kernel by `send`, which takes a whole message (a notification of fuse.h), what changed.

        Called at most once, before the first request, where the carrier can deliver.  One that says nothing has
        nothing to do.
        """

    def prepare_policy(self, encoded: bytes) -> None:
        """Make another policy (`policy.reloading.encode`) ready for `use_policy`.

        Raises `ValueError` and `OSError` for one that can not be used, and where there is none to replace.
        """
        raise ValueError("this share was started without a policy; start it with one")

    def use_policy(self) -> None:
        """Let the policy that was made ready hold for requests that begin from now on.  Raises `OSError`."""
        raise OSError("no policy was made ready")

    def verdicts_of(self, nodes: list) -> list:
        """What the policy says of nodes that the guest knows: bits (`policy.rules`), -1 where that is not known."""
        return [0] * len(nodes)

    def place_of(self, nodeid: int) -> tuple[int, bytes] | None:
        """A directory's node and the name there that leads to a node; None for the root, and where nobody can tell."""
        return None

    def statistics(self) -> dict[str, int]:
        """Counters by name, for people to read."""
        return {}

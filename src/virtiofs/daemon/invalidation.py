# SPDX-License-Identifier: Apache-2.0
"""Tells a client of a share what to forget, as the table's journal says that others changed it.

A client with unlimited validity (this host's kernel, or a driver with a notification queue) asks for nothing that
it knows.  A thread of the worker follows the journal and sends INVAL_ENTRY, INVAL_INODE or DELETE for what the client
holds.  It is never a thread that serves requests: the kernel takes the directory's lock for INVAL_ENTRY, and the page's
for INVAL_INODE, which it may hold while it waits for our reply (libfuse, fuse_lowlevel_notify_inval_entry).

What a client itself changed is left out: it knows.  Everything else is sent at once, and again after each of `AGAIN`
seconds: a reply that was made before the change may reach the client after the notification, and would stay.  What
changed less than a second ago is given out without validity, so this costs no more requests.
"""

from __future__ import annotations

import errno
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from virtiofs.fuse import notification
from virtiofs.fuse.notification import Notification
from virtiofs.metadata import layout
from virtiofs.metadata.follower import Change, Follower

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.log import Log
    from virtiofs.fs.filesystem import Filesystem
    from virtiofs.fuse.session import Session
    from virtiofs.metadata.table import Table

AGAIN = (0.02, 0.5)
MOST_AT_ONCE = 1024  # changes whose messages are put together, so that each is sent once for all of them
EPOCH_MINOR = 44  # of the protocol that has INC_EPOCH
ENDED = (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF)


class Invalidator:
    """Follows `table` for the client of `filesystem`; `send` takes a message: 0, or the errno it is refused with.

    `session` says what the client understands.  `expire`: it knows EXPIRE_ONLY (FUSE_HAS_EXPIRE_ONLY), which leaves
    what is mounted below a name, and who works there, in peace.
    """

    def __init__(
        self,
        table: Table,
        filesystem: Filesystem,
        session: Session,
        send: Callable[[bytes], int],
        log: Log,
    ):
        self.sent = 0
        self._filesystem = filesystem
        self._session = session
        self._send = send
        self._log = log
        self._own = table.member
        self._follower = Follower(table)
        self._again: list[OrderedDict[Notification, float]] = [OrderedDict() for _ in AGAIN]
        self._stopping = False

    def stop(self) -> None:
        """Make `run` return.  Whoever serves goes on meanwhile: a message may be waiting for a reply of theirs."""
        self._stopping = True
        self._follower.close()

    def run(self, everything: bool = False) -> None:
        """Tell the client of changes until `stop`, or until there is nobody to tell.  `everything`: of all there is
        first, as it may have missed some.
        """
        told: dict[Notification, None] = dict.fromkeys(self._everything()) if everything else {}
        while not self._stopping:
            change = self._follower.next(0 if told else self._until_due())
            for _ in range(MOST_AT_ONCE):
                if change is None or self._stopping:
                    break
                if change.origin != self._own or change.kind == layout.EVERYTHING:
                    told.update(dict.fromkeys(self._messages(change)))
                change = self._follower.next(0)
            now = time.monotonic()
            due = [one for queue in self._again for one, at in queue.items() if at <= now]
            for queue in self._again:
                while queue and next(iter(queue.values())) <= now:
                    queue.popitem(last=False)
            if not self._session.initialised:
                told = {}  # there is nothing that the client knows
                continue
            for one in (*told, *due):
                if not self._tell(one):
                    return
            for queue, delay in zip(self._again, AGAIN, strict=True):
                for one in told:
                    # A later time is enough: what is sent now covers what this was to repeat.
                    queue.pop(one, None)
                    queue[one] = now + delay
            told = {}

    def _until_due(self) -> float | None:
        first = [next(iter(queue.values())) for queue in self._again if queue]
        return max(0.0, min(first) - time.monotonic()) if first else None

    def _messages(self, change: Change) -> Iterator[Notification]:
        """What a change by somebody else means for what the client knows."""
        if change.kind == layout.EVERYTHING:
            yield from self._everything()
            return
        nodes = self._filesystem.nodes_of(change.dev, change.ino)
        if change.kind in (layout.ATTRIBUTES, layout.DATA):
            for node in nodes:
                yield Notification(notification.INVAL_INODE, node, data=change.kind == layout.DATA)
            return
        children = self._filesystem.nodes_of(change.child_dev, change.child_ino) if change.child_ino else []
        for node in nodes:
            removed = [child for child in children if self._filesystem.is_removed(child)]
            if change.kind == layout.GONE and removed:
                yield Notification(notification.DELETE, node, change.name, removed[0])
            else:
                yield Notification(notification.INVAL_ENTRY, node, change.name, expire_only=True)
            # Its times, and its listing.
            yield Notification(notification.INVAL_INODE, node, data=True)
        for child in children:
            yield Notification(notification.INVAL_INODE, child)

    def _everything(self) -> Iterator[Notification]:
        if self._session.minor >= EPOCH_MINOR:
            yield Notification(notification.INC_EPOCH)
        for node in self._filesystem.every_node():
            yield Notification(notification.INVAL_INODE, node, data=True)

    def _tell(self, told: Notification) -> bool:
        """Send one; False when there is nobody to send to any more.  That the client does not know it is as well."""
        self.sent += 1
        refused = self._send(notification.encode(told))
        if refused in ENDED:
            return False
        if refused and told.code == notification.DELETE:
            # Not that child any more, a directory that is not empty for the client, or something is mounted there.
            self._send(
                notification.encode(
                    Notification(notification.INVAL_ENTRY, told.node, told.name, expire_only=True)
                )
            )
        elif refused not in (0, errno.ENOENT):
            self._log.warning(f"the client does not take notification {told.code}: errno {refused}")
        return True

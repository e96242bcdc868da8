# SPDX-License-Identifier: Apache-2.0
"""A policy that is read again while shares are served: in the supervisor, and in each worker.

The supervisor reads the file and checks all of it.  Then every worker makes it ready, and only when all could, each
puts it in force; so what one of them refuses holds nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence

from virtiofs.daemon.channel import WorkerGone
from virtiofs.fs.policy.reloading import encode
from virtiofs.fs.policy.rules import HIDE
from virtiofs.fuse import notification
from virtiofs.fuse.notification import Notification
from virtiofs.sandbox import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.log import Log
    from virtiofs.daemon.observed import Observed
    from virtiofs.fs.filesystem import Filesystem

# After which what was told is told again: a reply from before may reach the client after the notification.
AGAIN_SECONDS = 0.5


def reload_policies(ports: Sequence[Observed], tag: str = "") -> list[str]:
    """Read the policy of one share, or of all that have one, again: the tags where it is in force now.

    Shares of one file go together.  Raises `ValueError` or `OSError`; then everything is as it was.
    """
    files = {port.policy: None for port in ports if port.policy is not None and tag in ("", port.tag)}
    if not files:
        raise ValueError(
            f"{tag or 'no share here'} has {'no' if tag else 'a'} policy; a share is started with one, or without"
        )
    read = {file: file.again() for file in files}
    concerned = [port for port in ports if port.policy in read]
    for port in concerned:
        assert port.policy is not None
        port.prepare_policy(encode(read[port.policy]))
    for file, policy in read.items():
        file.policy = policy
    for port in concerned:
        # It can not refuse any more; one that died leaves its guest to a worker that has the policy from the start.
        with contextlib.suppress(WorkerGone):
            port.use_policy()
    return [port.tag for port in concerned]


def messages(filesystem: Filesystem) -> Iterator[Notification]:
    """What a client is to forget, so that it looks at everything by the policy in force.

    The names of what is hidden; and of everything attributes, as owners may be shown in another way, and data, as that
    is a directory's listing and what a file may no longer be read for.
    """
    nodes = filesystem.every_node()
    for node, verdict in zip(nodes, filesystem.verdicts_of(nodes), strict=True):
        place = filesystem.place_of(node) if verdict < 0 or verdict & HIDE else None
        if place is not None:
            yield Notification(notification.INVAL_ENTRY, *place)
        yield Notification(notification.INVAL_INODE, node, data=True)


class Teller:
    """Tells the kernel, over a descriptor of /dev/fuse, what to forget after a policy was replaced."""

    def __init__(self, filesystem: Filesystem, to_kernel: int, log: Log):
        self._filesystem = filesystem
        self._to_kernel = to_kernel
        self._log = log

    def begin(self) -> None:
        """Tell it, on a thread of its own that serves nothing (see `invalidation.py`)."""
        threading.Thread(target=self._run, name="policy", daemon=True).start()

    def _run(self) -> None:
        told = [notification.encode(one) for one in messages(self._filesystem)]
        # As `hostmount.tell_of_changes`: it may wait for a page that a READ has locked.
        process.own_descriptors(self._to_kernel, *self._log.target.fds)
        for pause in (0.0, AGAIN_SECONDS):
            time.sleep(pause)
            for message in told:
                if not self._tell(message):
                    return

    def _tell(self, message: bytes) -> bool:
        """Write one; False when nothing is mounted any more.  That the kernel does not know it is as well."""
        try:
            os.write(self._to_kernel, message)
        except OSError as error:
            return error.errno not in (errno.ENODEV, errno.ENOTCONN, errno.EBADF)
        return True

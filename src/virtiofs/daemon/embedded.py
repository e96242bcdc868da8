# SPDX-License-Identifier: Apache-2.0
"""Serve a file system in Python from one's own program, in place of `virtiofs serve module:Class`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from virtiofs.daemon.device import check_tag
from virtiofs.daemon.log import Log
from virtiofs.daemon.port import Port, Share
from virtiofs.daemon.supervisor import Supervisor
from virtiofs.fs.python.filesystem import Filesystem
from virtiofs.fs.python.paths import PathFilesystem
from virtiofs.fs.python.serving import Servable
from virtiofs.vhostuser.transport import listen


def serve(
    filesystem: Filesystem | PathFilesystem,
    *,
    socket: str,
    tag: str = "virtiofs",
    queues: int = 1,
    read_only: bool = False,
    sandbox: str = "namespace",
    seccomp: str = "kill",
    keep: Sequence[int] = (),
    log_level: str = "warning",
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Serve `filesystem` on the vhost-user socket at the path `socket`, until a signal: an exit status.

    SIGTERM, SIGINT and SIGHUP end it.

    Each front end that connects gets `filesystem` as it is now, in a process of its own that is forked from this one
    behind walls: so call it from the main thread, before there are others.  `keep`: descriptors that
    the file system works with; all others are closed there.  `ready` is called when front ends may connect.
    This process gives up what privilege the walls do not need, for good.

    Raises `ValueError` and `OSError` for what makes no sense or can not be done, `WorkerError` (an OSError) if the
    file system does not start.
    """
    log = Log(log_level)
    servable = Servable(
        filesystem, log.error, read_only, keep, mode=sandbox, filter=seccomp, warn=log.warning
    )
    where = type(filesystem).__name__
    share = Share(
        check_tag(tag),
        where,
        servable.make,
        servable.walls,
        read_only,
        keep=keep,
        patience=filesystem.patience,
    )
    port = Port(share, queues, log, listen(socket), path=os.path.abspath(socket))
    return Supervisor([port], log, servable.walls.leave).run(ready)

# SPDX-License-Identifier: Apache-2.0
"""What `virtiofs mount --socket` does: any vhost-user-fs device, mounted on this host without a VM."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from virtiofs.client.devicemount import DeviceMount
    from virtiofs.daemon.log import Log

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def mount(options: argparse.Namespace, log: Log, tell: Callable[[str], None]) -> int:
    """Mount, and wait for the end: 0 when it was unmounted or a signal came, 1 for any trouble.

    `tell` hears why it failed, or "" when it is mounted.
    """
    from virtiofs.client.devicemount import DeviceMount, RelayError
    from virtiofs.daemon import notify
    from virtiofs.fuse.mountpoint import MountError
    from virtiofs.vhostuser.transport import TransportError

    stop, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in ENDING:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    allow_other = os.geteuid() == 0 if options.allow_other is None else options.allow_other
    try:
        mounted = DeviceMount(
            options.socket,
            options.mountpoint,
            queues=options.most_queues,
            read_only=options.readonly,
            allow_other=allow_other,
        )
    except (RelayError, MountError, TransportError) as error:
        tell(str(error))
        return 1
    try:
        with mounted:
            notify.service_manager(f"READY=1\nSTATUS={options.socket} is mounted at {options.mountpoint}")
            if options.ready_fd is not None:
                notify.descriptor(options.ready_fd)
            tell("")
            if mounted.wait(stop):
                end(mounted, stop, log)
            else:
                log.info(f"{options.mountpoint} was unmounted")
    except (RelayError, MountError, ValueError) as error:
        log.error(str(error))
        return 1
    finally:
        # The interpreter takes its handlers back when it ends: one more signal would then be our exit status.
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
    return 0


def end(mounted: DeviceMount, stop: int, log: Log) -> None:
    """Unmount, as a signal wants it; one more through `stop` gives up a device that does not answer."""
    number = 0
    with contextlib.suppress(BlockingIOError):
        number = os.read(stop, 64)[0]
    log.info(f"unmounting on {signal.Signals(number).name}")
    text = "waiting for the device to take what was written; one more signal gives that up"
    patience = threading.Timer(1.0, log.warning, [text])
    patience.start()
    try:
        mounted.close(stop)
    finally:
        patience.cancel()

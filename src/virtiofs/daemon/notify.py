# SPDX-License-Identifier: Apache-2.0
"""Telling whoever started the daemon that it is ready: sd_notify(3), and a descriptor of the caller's."""

from __future__ import annotations

import os
import socket


def service_manager(text: str) -> None:
    """Send `text` ("READY=1") to the service manager that $NOTIFY_SOCKET names; without one, nothing."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(text.encode(), address)
        except OSError:
            pass  # a service manager that does not listen is no reason not to serve


def descriptor(fd: int) -> None:
    """Write a line to `fd` and close it.  The reader may be gone."""
    try:
        os.write(fd, b"READY\n")
    except BrokenPipeError:
        pass
    finally:
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""How `virtiofsd` serves: one connection, a locked PID file, the system's log, and the background if asked for.

`virtiofs.cli.virtiofsd` reads the command line.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from virtiofs.cli.virtiofsd_options import Settings
    from virtiofs.daemon.log import Log

# The launcher of Kata Containers waits for this line.
WAITING = "Waiting for vhost-user socket connection..."


def serve(settings: Settings) -> int:
    """Listen, serve one connection, and return the exit status."""
    from virtiofs.cli.ownership import id_maps
    from virtiofs.cli.shares import check_directory, describe, make_share
    from virtiofs.daemon.channel import WorkerError
    from virtiofs.daemon.port import Port
    from virtiofs.daemon.supervisor import Supervisor, announce
    from virtiofs.sandbox.walls import Walls
    from virtiofs.vhostuser.transport import TransportError, adopt

    log = make_log(settings)
    listener = connected = path = lock = None
    assert settings.shared_dir is not None
    try:
        more = {**settings.passthrough, **owners(settings)}
        walls = Walls(
            "/",
            settings.sandbox,
            settings.seccomp,
            settings.modcaps,
            file_handles=settings.passthrough["file_handles"] != "never",
            descriptors=settings.rlimit_nofile,
            warn=log.warning,
            **id_maps(argparse.Namespace(**settings.owners)),
        )
        directory = check_directory(settings.shared_dir)
        share = make_share(settings.tag, directory, settings.readonly, more, walls, settings.shared_dir)
        if settings.socket_path is not None:
            path = os.path.abspath(settings.socket_path)
            lock = lock_pid_file(f"{settings.socket_path}.pid")
            listener = listen_for(settings)
        else:
            assert settings.fd is not None
            sock, listening = adopt(settings.fd)
            listener, connected = (sock, None) if listening else (None, sock)
    except (ValueError, OSError, TransportError) as error:
        print(f"virtiofsd: {describe(error)}", file=sys.stderr)
        return 1
    terminal = Terminal() if settings.daemonize else None
    if lock is not None:
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())

    def ready() -> None:
        announce(None)
        log.info(WAITING)
        if settings.syslog and settings.log_level not in ("off", "error", "warning"):
            print(f"virtiofsd: {WAITING}", file=sys.stderr, flush=True)
        if terminal is not None:
            terminal.leave()

    port = Port(share, 1, log, listener, connected, path, once=True)
    try:
        return Supervisor([port], log, walls.leave).run(ready)
    except WorkerError as error:
        if terminal is not None:
            terminal.back()
        print(f"virtiofsd: {error}", file=sys.stderr)
        return 1


def owners(settings: Settings) -> dict[str, Any]:
    """The arguments of `Passthrough` about owners and attributes.  Raises `ValueError` where they make no sense."""
    from virtiofs.cli.ownership import share_options

    mapped = bool(settings.owners["translate_uid"] or settings.owners["translate_gid"])
    return share_options(
        argparse.Namespace(
            ownership="mapped" if mapped else "as-is",
            unmapped_ids="keep" if mapped else "refuse",
            **settings.owners,
        )
    )


def make_log(settings: Settings) -> Log:
    """Standard error, or the system's log if it is asked for and there."""
    from virtiofs.daemon.log import Log, StandardError, SystemLog

    if settings.syslog:
        try:
            return Log(settings.log_level, SystemLog("virtiofsd"))
        except OSError as error:
            log = Log(settings.log_level, StandardError("virtiofsd"))
            log.warning(f"--syslog: nobody listens on /dev/log ({error.strerror}); logging to standard error")
            return log
    return Log(settings.log_level, StandardError("virtiofsd"))


def listen_for(settings: Settings) -> socket.socket:
    """The listening socket.  Raises `ValueError` and `TransportError`."""
    from virtiofs.vhostuser.transport import listen

    assert settings.socket_path is not None
    if settings.socket_group is None:
        return listen(settings.socket_path)
    import grp

    try:
        group = grp.getgrnam(settings.socket_group).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {settings.socket_group}; name another --socket-group") from None
    return listen(settings.socket_path, group)


def lock_pid_file(path: str) -> int:
    """A descriptor that holds the lock on this file until the daemon is dead.  Raises `OSError` and `ValueError`.

    The file stays when the daemon goes: removing it would let two others lock two files of one name.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise ValueError(
            f"a live daemon (pid {pid}) holds {path}; stop it or choose another --socket-path"
        ) from None
    return fd


class Terminal:
    """What a daemon in the background leaves behind: its launcher, who waits until `leave`, and its descriptors.

    Made, the program goes on in a child whose workers know nothing of the terminal any more.
    """

    def __init__(self) -> None:
        waiting, self._told = os.pipe()
        if os.fork():
            os.close(self._told)
            os._exit(0 if os.read(waiting, 1) else 1)
        os.close(waiting)
        os.setsid()
        self._stderr = os.dup(2)
        os.set_inheritable(self._stderr, False)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)

    def back(self) -> None:
        """Let what is said on standard error be seen again."""
        os.dup2(self._stderr, 2)

    def leave(self) -> None:
        """Let the launcher's command end."""
        os.chdir("/")
        os.close(self._stderr)
        os.write(self._told, b"\n")
        os.close(self._told)

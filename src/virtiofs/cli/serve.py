# SPDX-License-Identifier: Apache-2.0
"""Share a directory with a VM over vhost-user.

The VMM connects to the socket and the guest mounts the tag:

    virtiofs serve /srv/data --socket /run/data.sock --tag data qemu-system-x86_64 -m 1G -object
    memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \\
        -chardev socket,id=c0,path=/run/data.sock -device vhost-user-fs-pci,chardev=c0,tag=data ...
    guest# mount -t virtiofs data /mnt

The daemon serves one VM at a time and waits for the next when it goes.  SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import os
import sys

from virtiofs.cli import ownership

MAX_QUEUES = 64
MIN_DESCRIPTORS = 1400
MAX_LOCK_WAIT = 30 * 86400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs serve`."""
    parser.add_argument("directory", metavar="DIR", help="the directory to share")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", metavar="PATH", help="make a socket here and listen on it")
    where.add_argument(
        "--fd", metavar="N", type=int, help="use this descriptor: a listening socket, or a connected one"
    )
    parser.add_argument(
        "--tag",
        default="virtiofs",
        help="the name the guest mounts, for VMMs that ask the device for it (%(default)s); QEMU's vhost-user-fs-pci"
        " has its own tag option",
    )
    parser.add_argument("--readonly", action="store_true", help="refuse every change")
    parser.add_argument(
        "--queues", metavar="N", type=int, default=1, help="request queues, 1 to 64 (%(default)s)"
    )
    parser.add_argument(
        "--inode-file-handles",
        metavar="WHEN",
        choices=["never", "prefer", "mandatory"],
        default="prefer",
        help="come back to files by file handle instead of by name: never, prefer (where the file system has them and"
        " privilege allows), or mandatory (%(default)s)",
    )
    parser.add_argument(
        "--max-open",
        metavar="N",
        type=int,
        default=0,
        help="descriptors kept for inodes the guest knows, at least 16 (default: a quarter of the limit, at most 8192)",
    )
    parser.add_argument(
        "--locks",
        choices=["shared", "local"],
        default="shared",
        help="whether the guest's file locks are taken on the host, where other guests and programs see them, or stay"
        " the guest's own (%(default)s)",
    )
    parser.add_argument(
        "--lock-wait",
        metavar="S",
        type=float,
        default=600.0,
        help="seconds a guest's program may wait for a lock before it gets ENOLCK (%(default)g)",
    )
    parser.add_argument(
        "--no-announce-submounts",
        action="store_true",
        help="do not show mounts below the directory as mounts in the guest",
    )
    parser.add_argument(
        "--rlimit-nofile",
        metavar="N",
        type=int,
        default=0,
        help="limit of open descriptors (default: as high as is allowed, at most a million)",
    )
    parser.add_argument(
        "--sandbox",
        metavar="MODE",
        choices=["namespace", "chroot", "none"],
        default="namespace",
        help="what keeps the worker in the directory besides its own rules: namespace, chroot (root only) or none"
        " (%(default)s)",
    )
    parser.add_argument(
        "--seccomp",
        metavar="ACTION",
        choices=["kill", "log", "trap", "none"],
        default="kill",
        help="what happens when the worker makes a system call it has no need of: kill, log, trap, or none to allow all"
        " (%(default)s)",
    )
    parser.add_argument(
        "--modcaps",
        metavar="LIST",
        default="",
        help="change the capabilities the worker keeps, as in --modcaps=+sys_admin:-mknod",
    )
    parser.add_argument(
        "--log-level",
        metavar="L",
        choices=["error", "warning", "info", "debug"],
        default="warning",
        help="error, warning, info or debug (%(default)s)",
    )
    parser.add_argument(
        "--ready-fd",
        metavar="N",
        type=int,
        help="write a line to this descriptor and close it when a VMM may connect; systemd is told by itself",
    )
    ownership.add_arguments(parser)


def main(options: argparse.Namespace) -> int:
    """Serve until told to end."""
    from virtiofs.daemon.channel import WorkerError
    from virtiofs.daemon.device import check_tag
    from virtiofs.daemon.log import Log
    from virtiofs.daemon.supervisor import Supervisor, announce
    from virtiofs.fs.passthrough.share import Passthrough
    from virtiofs.sandbox.walls import Place, Walls
    from virtiofs.vhostuser.transport import TransportError, adopt, listen

    log = Log(options.log_level)
    listener = connected = None
    try:
        tag = check_tag(options.tag)
        if not 1 <= options.queues <= MAX_QUEUES:
            raise ValueError(f"--queues takes 1 to {MAX_QUEUES}, not {options.queues}")
        if options.max_open and options.max_open < 16:
            raise ValueError(f"--max-open takes 16 or more, not {options.max_open}")
        if options.rlimit_nofile and options.rlimit_nofile < MIN_DESCRIPTORS:
            raise ValueError(f"--rlimit-nofile takes {MIN_DESCRIPTORS} or more, not {options.rlimit_nofile}")
        if not 0 <= options.lock_wait <= MAX_LOCK_WAIT:
            raise ValueError(f"--lock-wait takes 0 to {MAX_LOCK_WAIT} seconds, not {options.lock_wait:g}")
        if options.ready_fd is not None:
            check_descriptor(options.ready_fd)
        more = ownership.share_options(options)
        directory = check_directory(options.directory)
        walls = Walls(
            directory,
            options.sandbox,
            options.seccomp,
            options.modcaps,
            read_only=options.readonly,
            file_handles=options.inode_file_handles != "never",
            descriptors=options.rlimit_nofile,
            warn=log.warning,
        )
        if options.socket is not None:
            listener = listen(options.socket)
        else:
            sock, listening = adopt(options.fd)
            listener, connected = (sock, None) if listening else (None, sock)
    except (ValueError, OSError, TransportError) as error:
        print(f"virtiofs serve: {describe(error)}", file=sys.stderr)
        return 1

    def make(place: Place) -> Passthrough:
        return Passthrough(
            place.directory,
            options.readonly,
            max_open=options.max_open,
            file_handles=options.inode_file_handles,
            shared_locks=options.locks == "shared",
            wait_limit=options.lock_wait,
            announce_submounts=not options.no_announce_submounts,
            proc=place.proc,
            **more,
        )

    supervisor = Supervisor(make, walls, tag, options.queues, log, listener, connected, options.socket)
    try:
        return supervisor.run(lambda: announce(options.ready_fd))
    except WorkerError as error:
        print(f"virtiofs serve: cannot share {options.directory}: {error}", file=sys.stderr)
        return 1


def check_directory(path: str) -> str:
    """The absolute path of a directory that can be read.  Raises `ValueError` saying what is wrong with it."""
    absolute = os.path.abspath(path)
    try:
        os.close(os.open(absolute, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except NotADirectoryError:
        raise ValueError(f"{path} is not a directory; share the directory that holds it") from None
    except FileNotFoundError:
        raise ValueError(f"there is no directory {path}; make it, or name another") from None
    except PermissionError:
        raise ValueError(f"no permission to read {path}; run as a user who may, or change its mode") from None
    return absolute


def check_descriptor(fd: int) -> None:
    """Raises `ValueError` if `fd` is not open."""
    try:
        os.fstat(fd)
    except (OSError, OverflowError):
        raise ValueError(f"--ready-fd {fd} is not an open descriptor; have the launcher pass it") from None


def describe(error: Exception) -> str:
    """An error as one line for a person."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)

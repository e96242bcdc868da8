# SPDX-License-Identifier: Apache-2.0
"""Share directories with VMs over vhost-user.

The VMM connects to the socket and the guest mounts the tag:

    virtiofs serve /srv/data --socket /run/data.sock --tag data
    qemu-system-x86_64 -m 1G \\
        -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \\
        -chardev socket,id=c0,path=/run/data.sock -device vhost-user-fs-pci,chardev=c0,tag=data ...
    guest# mount -t virtiofs data /mnt

Many shares in one daemon, each on a socket of its own (/run/vm/data.sock, /run/vm/conf.sock); a single file
is shared as a directory that holds it:

    virtiofs serve --share data=/srv/data --share conf=/etc/app.conf:ro --socket-dir /run/vm \\
        --control /run/vm/control
    virtiofs ctl /run/vm/control status

In place of a directory, a file system in Python (docs/writing-a-file-system.md): a class in a module, or in a file:

    virtiofs serve examples/zipped.py:ZipFilesystem --option archive=/srv/data.zip --socket /run/zip.sock

The daemon serves one VM for each share at a time and waits for the next when it goes.  SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from virtiofs.cli import pythonshare, shares

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.log import Log
    from virtiofs.daemon.observed import Shares
    from virtiofs.daemon.port import Port, Share
    from virtiofs.sandbox.walls import Walls

MAX_QUEUES = 64
# A queue that no front end starts costs nothing; a thread runs for each that is started.
DEFAULT_QUEUES = min(len(os.sched_getaffinity(0)), 8)
MIN_DESCRIPTORS = 1400
MAX_POOL_THREADS = 64
MAX_LOCK_WAIT = 30 * 86400
MIN_WINDOW, MAX_WINDOW = 2 << 20, 512 << 20
DAX_FROM = {"never": 0, "inode": 32 << 10, "always": 1}  # the least size of a file
# With many shares the others wait while one front end sends a message, so it has less time for it.
PATIENCE_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs serve`."""
    parser.set_defaults(parser=parser)
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        help="the directory to share, or module:Class, or an fsspec URL",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="PATH", help="make a socket here and listen on it")
    where.add_argument(
        "--fd", metavar="N", type=int, help="use this descriptor: a listening socket, or a connected one"
    )
    where.add_argument(
        "--socket-dir", metavar="DIRECTORY", help="make the socket of each --share here, as TAG.sock"
    )
    parser.add_argument(
        "--share",
        metavar="TAG=DIR[:ro][:quota=SIZE][:policy=FILE]",
        action="append",
        default=[],
        help="share a directory, a file, a module:Class or a URL under a tag, with a quota and a policy of its"
        " own if they are given; may be repeated",
    )
    parser.add_argument(
        "--control",
        metavar="PATH",
        help="make a socket here for `virtiofs ctl`, `top` and `trace`, for this user and root",
    )
    parser.add_argument(
        "--tag",
        help=f"the name the guest mounts, for VMMs that ask the device for it ({shares.DEFAULT_TAG}); QEMU's"
        " vhost-user-fs-pci has its own tag option",
    )
    parser.add_argument(
        "--quota",
        metavar="SIZE",
        help="let the guest add this much to the host's disk, as in 10G, and no more (docs/quota.md); for one of"
        " several shares: --share TAG=DIR:quota=SIZE",
    )
    parser.add_argument(
        "--queues",
        metavar="N",
        type=int,
        default=DEFAULT_QUEUES,
        help="request queues a VMM may use, 1 to 64 (default: one for each processor, at most 8)",
    )
    parser.add_argument(
        "--thread-pool-size",
        metavar="N",
        type=int,
        default=4,
        help="threads for requests that wait for a disk, such as reads of what is not cached; 0: each queue waits"
        " itself (%(default)s)",
    )
    parser.add_argument(
        "--dax-window",
        metavar="SIZE",
        help="give the guest a window of this size, as 512M, to map files in (docs/dax.md); it takes QEMU 11.1's"
        " vhost-user-test-device-pci",
    )
    parser.add_argument(
        "--dax",
        metavar="WHEN",
        choices=["never", "inode", "always"],
        help="with --dax-window: which files the guest is told to map, if its mount leaves that to us: never any;"
        " inode, those of whole pages from 32 KiB; always, all of whole pages (inode)",
    )
    parser.add_argument(
        "--workspace",
        metavar="DIRECTORY",
        help="leave DIR as it is and keep what the guest changes there (docs/workspace.md); for root",
    )
    parser.add_argument(
        "--no-announce-submounts",
        action="store_true",
        help="do not show mounts below the directory as mounts in the guest",
    )
    shares.add_arguments(parser)


def check_forms(options: argparse.Namespace) -> None:
    """Either one DIR on --socket or --fd, or any number of --share in --socket-dir; ends the program otherwise."""
    error = options.parser.error
    if options.dax is not None and options.dax_window is None:
        error(f"--dax {options.dax} is about files in a window: give its size too, as --dax-window 512M")
    if options.socket_dir is None:
        if options.share:
            error("--share needs --socket-dir, the directory for the sockets")
        if options.socket is None and options.fd is None:
            error("one of the arguments --socket --fd is required")
        if options.directory is None:
            error("the following arguments are required: DIR")
        pythonshare.check_options(options)
        if options.workspace and pythonshare.is_class(options.directory):
            error("--workspace keeps the changes of a directory, not of a class")
        return
    if options.workspace is not None:
        error("--workspace goes with one DIR on --socket or --fd")
    if options.directory is not None:
        error(f"with --socket-dir every share has a tag: --share TAG={options.directory}")
    if options.tag is not None:
        error("with --socket-dir the tag of each share stands in --share TAG=DIR")
    tags = [text.partition("=")[0] for text in options.share if pythonshare.is_class(text.partition("=")[2])]
    for text in options.option:
        if not any(text.startswith(f"{tag}.") for tag in tags):
            error(
                f"--option {text}: with --share it begins with the tag of a class, as in --option TAG.{text}"
            )
    if options.reload and not tags and not options.control:
        error("--reload is for a class in Python, given as --share TAG=module:Class or TAG=file.py:Class")
    if not options.share and not options.control:
        error("nothing to share: give --share TAG=DIR, or --control to add shares later")


def main(options: argparse.Namespace) -> int:
    """Serve until told to end."""
    from virtiofs.daemon.channel import WorkerError
    from virtiofs.daemon.log import Log
    from virtiofs.daemon.supervisor import Supervisor, announce
    from virtiofs.vhostuser.transport import TransportError

    check_forms(options)
    shares.check_cache(options)
    log = Log(options.log_level)
    ports: list[Port] = []
    try:
        check_numbers(options)
        settings = shares.passthrough_settings(options, log)
        window = window_size(options.dax_window)
        if window:
            settings["dax_from"] = DAX_FROM[options.dax or "inode"]
            # What waits for the front end can be left in the ring by a queue's thread, and by no other.
            settings["pool_threads"] = 0
        if window and options.readonly:
            raise ValueError(
                "--readonly leaves nothing to --dax-window: front ends map every page writable; use one of the two"
            )
        add_port = None
        again: list[Callable[[], None]] = []  # looks for what has changed
        if options.workspace is not None:
            from virtiofs.cli.workspace import mount

            workspace = mount(options.workspace, options.directory)  # locked as long as we have it
            options.directory = workspace.merged
        if pythonshare.is_class(options.directory):
            tag = shares.DEFAULT_TAG if options.tag is None else options.tag
            if options.reload:
                reloading = pythonshare.Again(options, log, options.directory, options.option)
                python = reloading.first
            else:
                python = pythonshare.load(options, log, options.directory, options.option)
            share = shares.python_share(tag, options.directory, python, options.reload)
            ports.append(single_port(options, share, log))
            if options.reload:
                again.append(replacing(reloading, ports[0], ports))
            walls = python.walls
        elif options.socket_dir is None:
            walls = shares.make_walls(options, log, settings["policy"])
            ports.append(single_port(options, shares.directory_share(options, settings, walls, window), log))
        else:
            walls = shares.make_walls(options, log, settings["policy"])
            add_port = port_maker(options, settings, walls, log, ports, again, window)
            for text in options.share:
                ports.append(add_port(text))
        supervisor = Supervisor(ports, log, walls.leave, add_port)
        if options.reload:
            supervisor.tick = in_turn(again)
        if options.control is not None:
            open_control(supervisor, options.control, log)
    except (ValueError, OSError, TransportError) as error:
        for port in ports:
            port.begin_end()
        print(f"virtiofs serve: {shares.describe(error)}", file=sys.stderr)
        return 1
    try:
        return supervisor.run(lambda: announce(options.ready_fd))
    except WorkerError as error:
        print(f"virtiofs serve: {error}", file=sys.stderr)
        return 1


def check_numbers(options: argparse.Namespace) -> None:
    """Raises `ValueError` for numbers that are out of range."""
    if not 1 <= options.queues <= MAX_QUEUES:
        raise ValueError(f"--queues takes 1 to {MAX_QUEUES}, not {options.queues}")
    if options.max_open and options.max_open < 16:
        raise ValueError(f"--max-open takes 16 or more, not {options.max_open}")
    if options.rlimit_nofile and options.rlimit_nofile < MIN_DESCRIPTORS:
        raise ValueError(f"--rlimit-nofile takes {MIN_DESCRIPTORS} or more, not {options.rlimit_nofile}")
    if not 0 <= options.thread_pool_size <= MAX_POOL_THREADS:
        raise ValueError(f"--thread-pool-size takes 0 to {MAX_POOL_THREADS}, not {options.thread_pool_size}")
    if not 0 <= options.lock_wait <= MAX_LOCK_WAIT:
        raise ValueError(f"--lock-wait takes 0 to {MAX_LOCK_WAIT} seconds, not {options.lock_wait:g}")
    if options.ready_fd is not None:
        check_descriptor(options.ready_fd)


def window_size(text: str | None) -> int:
    """Bytes of "512M", 0 of None.  Raises `ValueError` for a size that a window can not have.

    QEMU aborts over one that is no power of two, and becomes slower with each mapping, of 2 MiB (seen).
    """
    from virtiofs.cli.sizes import parse_size

    if text is None:
        return 0
    size = parse_size(text)
    if not MIN_WINDOW <= size <= MAX_WINDOW or size & (size - 1):
        raise ValueError(f"--dax-window takes a power of two from 2M to 512M, not {text}")
    return size


def in_turn(looks: list[Callable[[], None]]) -> Callable[[], None]:
    """What calls each of `looks`, of which there may be more later."""

    def tick() -> None:
        for look in looks:
            look()

    return tick


def replacing(again: pythonshare.Again, port: Port, ports: list[Port]) -> Callable[[], None]:
    """What serves another file system at a port, as soon as there is one and as long as it is in `ports`."""

    def look() -> None:
        python = again() if port in ports else None
        if python is not None:
            port.replace(shares.python_share(port.tag, port.share.where, python, True))

    return look


def single_port(options: argparse.Namespace, share: Share, log: Log) -> Port:
    """The port of the only share."""
    from virtiofs.daemon.port import Port
    from virtiofs.vhostuser.transport import adopt, listen

    if options.socket is not None:
        return Port(share, options.queues, log, listen(options.socket), path=os.path.abspath(options.socket))
    sock, listening = adopt(options.fd)
    return Port(share, options.queues, log, *((sock, None) if listening else (None, sock)))


def port_maker(
    options: argparse.Namespace,
    settings: dict[str, Any],
    walls: Walls,
    log: Log,
    ports: list[Port],
    again: list[Callable[[], None]],
    window: int = 0,
) -> Callable[[str], Port]:
    """What makes a port that listens in the socket directory from a share as `parse_share` reads it.

    `ports` are those there are; what looks for changes of a class is added to `again`.
    """
    from virtiofs.daemon.port import Port
    from virtiofs.vhostuser.transport import listen

    directory = os.path.abspath(options.socket_dir)
    quota_of_all = shares.common_quota(options)
    known: dict[str, Any] = {}  # policies by what names them: shares of one file change together

    def make(text: str) -> Port:
        tag, path, read_only, quota, policy = shares.parse_share(text)
        reloading: pythonshare.Again | None = None
        if any(port.tag == tag for port in ports):
            raise ValueError(f"there is a share {tag} already; choose another tag, or remove that one first")
        if pythonshare.is_class(path):
            if quota:
                raise ValueError(f"a quota is about directories; {path} decides that itself")
            if policy:
                raise ValueError(f"a policy is about directories; {path} decides that itself")
            words = [word.removeprefix(f"{tag}.") for word in options.option if word.startswith(f"{tag}.")]
            about = log.about(f"share {tag}")
            if options.reload:
                reloading = pythonshare.Again(options, about, path, words, read_only)
                python = reloading.first
            else:
                python = pythonshare.load(options, about, path, words, read_only)
            share = shares.python_share(tag, path, python, options.reload)
        else:
            its, around = settings, walls
            if policy:
                its = {**settings, "policy": known.get(policy) or shares.load_policy(policy)}
                around = shares.make_walls(options, log, its["policy"])
                known[policy] = its["policy"]
            share = shares.make_share(
                tag,
                shares.check_path(path),
                read_only or options.readonly,
                its,
                around,
                path,
                quota or quota_of_all,
                window,
                options.metadata_table,
            )
        socket = os.path.join(directory, f"{tag}.sock")
        port = Port(
            share,
            options.queues,
            log.about(f"share {tag}"),
            listen(socket),
            path=socket,
            patience=PATIENCE_SECONDS,
        )
        if reloading is not None:
            again.append(replacing(reloading, port, ports))
        return port

    return make


def open_control(supervisor: Shares, path: str, log: Log) -> None:
    """Let `virtiofs ctl`, `top` and `trace` speak to the daemon."""
    from virtiofs.daemon.control import Control
    from virtiofs.vhostuser.transport import listen

    supervisor.control = Control(listen(path), os.path.abspath(path), supervisor, log)


def check_descriptor(fd: int) -> None:
    """Raises `ValueError` if `fd` is not open."""
    try:
        os.fstat(fd)
    except (OSError, OverflowError):
        raise ValueError(f"--ready-fd {fd} is not an open descriptor; have the launcher pass it") from None

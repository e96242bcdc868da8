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
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Any

from virtiofs.cli import ownership, pythonshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.audit import Auditor
    from virtiofs.daemon.log import Log
    from virtiofs.daemon.observed import Shares
    from virtiofs.daemon.port import Port, Share
    from virtiofs.fs.passthrough.share import Passthrough
    from virtiofs.fs.policy.rules import Policy
    from virtiofs.fs.python.serving import Servable
    from virtiofs.sandbox.walls import Place, Walls

MAX_QUEUES = 64
# A queue that no front end starts costs nothing; a thread runs for each that is started.
DEFAULT_QUEUES = min(len(os.sched_getaffinity(0)), 8)
MIN_DESCRIPTORS = 1400
MAX_POOL_THREADS = 64
MAX_LOCK_WAIT = 30 * 86400
MIN_WINDOW, MAX_WINDOW = 2 << 20, 512 << 20
DAX_FROM = {"never": 0, "inode": 32 << 10, "always": 1}  # the least size of a file
MAX_LONGEST = 86400
DEFAULT_LONGEST = 60.0  # seconds that --cache adaptive lets a guest trust what it knows
DEFAULT_TAG = "virtiofs"
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
        metavar="TAG=DIR[:ro][:quota=SIZE]",
        action="append",
        default=[],
        help="share a directory, a file, a module:Class or a URL under a tag; may be repeated",
    )
    parser.add_argument(
        "--control",
        metavar="PATH",
        help="make a socket here for `virtiofs ctl`, `top` and `trace`, for this user and root",
    )
    parser.add_argument(
        "--tag",
        help=f"the name the guest mounts, for VMMs that ask the device for it ({DEFAULT_TAG}); QEMU's"
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
    add_share_arguments(parser)


def add_share_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments about what is shared and how safely, whoever it is shared with."""
    parser.add_argument("--readonly", action="store_true", help="refuse every change")
    parser.add_argument(
        "--policy",
        metavar="FILE",
        help="hide, deny and protect files by the patterns of a TOML file, or of a class as module:Class"
        " (docs/policy.md)",
    )
    parser.add_argument(
        "--audit",
        metavar="FILE",
        help="append what the guest does to this file, as hash-chained JSON lines (docs/audit.md); with --socket-dir, a"
        " directory, which gets TAG.jsonl for each share",
    )
    parser.add_argument(
        "--audit-operations",
        metavar="LIST",
        default="changes,opens,refusals",
        help="what is recorded: changes, opens, refusals, all, or names of operations (%(default)s)",
    )
    parser.add_argument(
        "--audit-full",
        choices=["wait", "note"],
        default="wait",
        help="what a request does whose record finds no room: wait for it, or go on and have the loss noted"
        " (%(default)s)",
    )
    parser.add_argument(
        "--cache",
        metavar="MODE",
        choices=["never", "metadata", "auto", "always", "adaptive"],
        default="auto",
        help="what the guest may keep: never anything; metadata, for a day; auto, all for a second; always, all for a"
        " day; adaptive, all for a tenth of the time since it last changed (%(default)s)",
    )
    parser.add_argument(
        "--adaptive-max",
        metavar="S",
        type=float,
        help=f"with --cache adaptive: never longer than so many seconds ({DEFAULT_LONGEST:.0f})",
    )
    parser.add_argument(
        "--metadata-table",
        action="store_true",
        help="share what changes with the other daemons of this directory on this host (docs/metadata-table.md, which"
        " has a note on US patent 11,237,963)",
    )
    parser.add_argument(
        "--writeback",
        action="store_true",
        help="let the guest keep what it writes for a while; nobody else may change the files then",
    )
    parser.add_argument(
        "--allow-direct-io", action="store_true", help="O_DIRECT in the guest is O_DIRECT on the host"
    )
    parser.add_argument(
        "--allow-mmap",
        action="store_true",
        help="shared mappings also where the guest keeps no data (--cache never and metadata)",
    )
    parser.add_argument(
        "--no-readdirplus",
        action="store_true",
        help="send names without attributes when directories are read",
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
        help="whether the guest's file locks are taken on the host, where other guests and programs see them, or stay"
        " the guest's own (default: shared; local with --readonly --cache always, whose files need not be opened then)",
    )
    parser.add_argument(
        "--lock-wait",
        metavar="S",
        type=float,
        default=600.0,
        help="seconds a guest's program may wait for a lock before it gets ENOLCK (%(default).0f)",
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
        help="write a line to this descriptor and close it when it is ready; systemd is told by itself",
    )
    ownership.add_arguments(parser)
    pythonshare.add_arguments(parser)


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
    if not options.share and not options.control:
        error("nothing to share: give --share TAG=DIR, or --control to add shares later")


def main(options: argparse.Namespace) -> int:
    """Serve until told to end."""
    from virtiofs.daemon.channel import WorkerError
    from virtiofs.daemon.log import Log
    from virtiofs.daemon.supervisor import Supervisor, announce
    from virtiofs.vhostuser.transport import TransportError

    check_forms(options)
    check_cache(options)
    log = Log(options.log_level)
    ports: list[Port] = []
    try:
        check_numbers(options)
        settings = passthrough_settings(options, log)
        window = window_size(options.dax_window)
        if window:
            settings["dax_from"] = DAX_FROM[options.dax or "inode"]
            # What waits for the front end can be left in the ring by a queue's thread, and by no other.
            settings["pool_threads"] = 0
        if window and options.readonly:
            raise ValueError(
                "--readonly leaves nothing to --dax-window: front ends map every page writable; use one of the two"
            )
        add_port = again = None
        if options.workspace is not None:
            from virtiofs.cli.workspace import mount

            workspace = mount(options.workspace, options.directory)  # locked as long as we have it
            options.directory = workspace.merged
        if pythonshare.is_class(options.directory):
            tag = DEFAULT_TAG if options.tag is None else options.tag
            if options.reload:
                again = pythonshare.Again(options, log, options.directory, options.option, False)
                python = again.first
            else:
                python = pythonshare.load(options, log, options.directory, options.option)
            ports.append(single_port(options, python_share(tag, options.directory, python), log))
            walls = python.walls
        elif options.socket_dir is None:
            walls = make_walls(options, log, settings)
            ports.append(single_port(options, directory_share(options, settings, walls, window), log))
        else:
            walls = make_walls(options, log, settings)
            add_port = port_maker(options, settings, walls, log, ports, window)
            for text in options.share:
                ports.append(add_port(text))
        supervisor = Supervisor(ports, log, walls.leave, add_port)
        if again is not None:
            supervisor.tick = replacing(again, ports[0])
        if options.control is not None:
            open_control(supervisor, options.control, log)
    except (ValueError, OSError, TransportError) as error:
        for port in ports:
            port.begin_end()
        print(f"virtiofs serve: {describe(error)}", file=sys.stderr)
        return 1
    try:
        return supervisor.run(lambda: announce(options.ready_fd))
    except WorkerError as error:
        print(f"virtiofs serve: {error}", file=sys.stderr)
        return 1


def check_cache(options: argparse.Namespace) -> None:
    """End with a usage error where --cache adaptive and its companions do not fit together."""
    error = options.parser.error
    if options.cache == "adaptive" and not options.metadata_table:
        error("--cache adaptive needs --metadata-table, which says what changed when")
    if options.adaptive_max is not None and options.cache != "adaptive":
        error("--adaptive-max goes with --cache adaptive")
    if options.adaptive_max is not None and not 0 <= options.adaptive_max <= MAX_LONGEST:
        error(f"--adaptive-max takes 0 to {MAX_LONGEST} seconds, not {options.adaptive_max:g}")


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


def make_walls(options: argparse.Namespace, log: Log, settings: dict[str, Any]) -> Walls:
    """The walls around each worker.  Raises `ValueError` and `OSError`."""
    from virtiofs.sandbox.walls import Walls

    return Walls(
        "/",
        options.sandbox,
        options.seccomp,
        options.modcaps,
        file_handles=options.inode_file_handles != "never",
        descriptors=options.rlimit_nofile,
        dax=options.metadata_table or getattr(options, "dax_window", None) is not None,
        watcher=options.metadata_table,
        warn=log.warning,
        features=("python",) if settings["policy"] is not None and settings["policy"].ask_about else (),
        **ownership.id_maps(options),
    )


def passthrough_settings(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """What the options say of every share, as arguments of `Passthrough`.  Raises `ValueError`."""
    return {
        "max_open": options.max_open,
        "file_handles": options.inode_file_handles,
        "cache": options.cache,
        "longest": DEFAULT_LONGEST if options.adaptive_max is None else options.adaptive_max,
        "readdirplus": False if options.no_readdirplus else None,
        "writeback": options.writeback,
        "direct_io": options.allow_direct_io,
        "mmap": options.allow_mmap,
        "shared_locks": None if options.locks is None else options.locks == "shared",
        "wait_limit": options.lock_wait,
        "pool_threads": options.thread_pool_size,
        "announce_submounts": not options.no_announce_submounts,
        "policy": load_policy(options.policy),
        "log": log.error,
        "audit": audit_settings(options),
        **ownership.share_options(options),
    }


def audit_settings(options: argparse.Namespace) -> Callable[[str, str], Auditor] | None:
    """What begins the audit of a share, by its tag and directory.  Raises `ValueError`, as that does."""
    if options.audit is None:
        return None
    from virtiofs.daemon.audit import Auditor, operations
    from virtiofs.daemon.log import Log

    many = getattr(options, "socket_dir", None) is not None
    wanted = operations(options.audit_operations)
    if getattr(options, "dax_window", None) is not None:
        raise ValueError(
            "a share has an audit or a DAX window: what is stored through a mapping is not seen; use one of the two"
        )
    if many and not os.path.isdir(options.audit):
        raise ValueError(f"with --socket-dir, --audit names a directory, not {options.audit}")

    def begin(tag: str, directory: str) -> Auditor:
        path = os.path.join(options.audit, f"{tag}.jsonl") if many else options.audit
        refuse_inside((path,), directory)
        return Auditor(path, tag, wanted, options.audit_full == "note", Log(options.log_level).error)

    return begin


def load_policy(text: str | None) -> Policy | None:
    """The policy that an option names, and all that it may need behind the walls.  Raises `ValueError`."""
    if text is None:
        return None
    from virtiofs.fs.policy import rules
    from virtiofs.fs.python.loading import preload

    policy = rules.load(text)
    if policy.ask_about:
        preload()
    return policy


def python_share(tag: str, what: str, python: Servable) -> Share:
    """The share of a file system in Python.  Raises `ValueError`."""
    from virtiofs.daemon.device import check_tag
    from virtiofs.daemon.port import Share

    patience = python.filesystem.patience
    return Share(
        check_tag(tag), what, python.make, python.walls, python.read_only, keep=python.keep, patience=patience
    )


def replacing(again: pythonshare.Again, port: Port) -> Callable[[], None]:
    """What serves another file system at a port as soon as there is one."""

    def tick() -> None:
        python = again()
        if python is not None:
            port.replace(python_share(port.tag, port.share.where, python))

    return tick


def directory_share(
    options: argparse.Namespace, settings: dict[str, Any], walls: Walls, window: int = 0
) -> Share:
    """The share of the form with one DIR.  Raises `ValueError`."""
    return make_share(
        DEFAULT_TAG if options.tag is None else options.tag,
        check_directory(options.directory),
        options.readonly,
        settings,
        walls,
        options.directory,
        common_quota(options),
        window,
        options.metadata_table,
    )


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
    window: int = 0,
) -> Callable[[str], Port]:
    """What makes a port that listens in the socket directory from a share as `parse_share` reads it.

    `ports` are those there are.
    """
    from virtiofs.daemon.port import Port
    from virtiofs.vhostuser.transport import listen

    directory = os.path.abspath(options.socket_dir)
    quota_of_all = common_quota(options)

    def make(text: str) -> Port:
        tag, path, read_only, quota = parse_share(text)
        if any(port.tag == tag for port in ports):
            raise ValueError(f"there is a share {tag} already; choose another tag, or remove that one first")
        if pythonshare.is_class(path):
            if quota:
                raise ValueError(f"a quota is about directories; {path} decides that itself")
            words = [word.removeprefix(f"{tag}.") for word in options.option if word.startswith(f"{tag}.")]
            python = pythonshare.load(options, log.about(f"share {tag}"), path, words, read_only)
            share = python_share(tag, path, python)
        else:
            share = make_share(
                tag,
                check_path(path),
                read_only or options.readonly,
                settings,
                walls,
                path,
                quota or quota_of_all,
                window,
                options.metadata_table,
            )
        socket = os.path.join(directory, f"{tag}.sock")
        return Port(
            share,
            options.queues,
            log.about(f"share {tag}"),
            listen(socket),
            path=socket,
            patience=PATIENCE_SECONDS,
        )

    return make


def open_control(supervisor: Shares, path: str, log: Log) -> None:
    """Let `virtiofs ctl`, `top` and `trace` speak to the daemon."""
    from virtiofs.daemon.control import Control
    from virtiofs.vhostuser.transport import listen

    supervisor.control = Control(listen(path), os.path.abspath(path), supervisor, log)


def common_quota(options: argparse.Namespace) -> int:
    """The bytes of --quota; 0 for none.  Raises `ValueError`."""
    return 0 if options.quota is None else quota_of(options.quota, "--quota")


def quota_of(text: str, option: str) -> int:
    """The bytes of a quota.  Raises `ValueError`."""
    from virtiofs.cli.sizes import parse_size
    from virtiofs.fs.passthrough.account import LEAST, MOST

    size = parse_size(text)
    if not LEAST <= size <= MOST:
        raise ValueError(f"{option} takes 1M or more, not {text}")
    return size


def parse_share(text: str) -> tuple[str, str, bool, int]:
    """Tag, path, whether it is read-only, and its quota (0: none), from "TAG=PATH[:ro][:quota=SIZE]".

    The two may be in either order.  A path that itself ends in ":ro" is written with ":rw" behind it.  Raises
    `ValueError`.
    """
    tag, equals, path = text.partition("=")
    mode, quota = "", 0
    while True:
        before, colon, word = path.rpartition(":")
        if colon and word in ("ro", "rw") and not mode:
            mode = word
        elif colon and word.startswith("quota=") and not quota:
            quota = quota_of(word.removeprefix("quota="), ":quota=")
        else:
            break
        path = before
    read_only = mode == "ro"
    if not equals or not path:
        raise ValueError(f"a share is given as TAG=DIR, TAG=DIR:ro or TAG=DIR:quota=SIZE, not {text!r}")
    if read_only and quota:
        raise ValueError(f"nothing can be added to a read-only share, so it has no quota: {text!r}")
    if "/" in tag or tag in (".", ".."):
        raise ValueError(f"the tag names the share's socket, so it has no slash: {tag!r}")
    return tag, path, read_only, quota


def make_share(
    tag: str,
    path: str,
    read_only: bool,
    settings: dict[str, Any],
    walls: Walls,
    where: str,
    limit: int = 0,
    window: int = 0,
    metadata_table: bool = False,
) -> Share:
    """The share of a directory, or of a single file; `path` is absolute.  `limit`: of a quota, 0 for none.

    `window`: bytes of its DAX window; a read-only share has none.  The walls around a single file are those around
    its directory.  `metadata_table`: attach to that of the directory.  Raises `ValueError`, and `MetadataError`.
    """
    from virtiofs.daemon.device import check_tag
    from virtiofs.daemon.port import Share
    from virtiofs.fs.passthrough.share import Passthrough

    directory, only = path, ""
    if not os.path.isdir(path):
        directory, only = os.path.split(path)

    policy = settings.get("policy")
    settings = dict(settings)
    begin_audit = settings.pop("audit", None)
    if policy is not None:
        refuse_inside(policy.sources, directory)
    quota = None
    if limit and window:
        raise ValueError(
            "a share has a quota or a DAX window: what is stored through a mapping is not counted; use one of the two"
        )
    if limit and not read_only:
        from virtiofs.fs.passthrough.account import Quota

        quota = Quota(limit)

    seats = None
    checked = check_tag(tag)
    if metadata_table:
        from virtiofs.daemon.seats import Seats

        seats = Seats(directory)
    audit = begin_audit(tag, directory) if begin_audit is not None else None
    keep = (() if policy is None else policy.descriptors, () if audit is None else audit.descriptors)

    def make(place: Place) -> Passthrough:
        return Passthrough(
            place.directory,
            read_only,
            only=only,
            proc=place.proc,
            quota=quota,
            metadata=None if seats is None else seats.sit(),
            audit=None if audit is None else audit.make(),
            **settings,
        )

    return Share(
        checked,
        where,
        make,
        walls.around(directory, read_only),
        read_only,
        quota,
        0 if read_only else window,
        seats=seats,
        only=only,
        keep=(*keep[0], *keep[1]),
        audit=audit,
    )


def refuse_inside(sources: Sequence[str], directory: str) -> None:
    """Raises `ValueError` for a policy, or an audit, that the guest could write."""
    place = os.path.realpath(directory)
    for source in sources:
        if os.path.commonpath((place, os.path.realpath(source))) == place:
            raise ValueError(f"{source} lies in {directory}, which it is about; keep it outside")


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


def check_path(path: str) -> str:
    """The absolute path of a directory, or of a regular file, that can be shared.  Raises `ValueError`."""
    absolute = os.path.abspath(path)
    try:
        mode = os.lstat(absolute).st_mode
    except OSError:
        mode = 0
    if stat.S_ISREG(mode):
        check_directory(os.path.dirname(absolute))
        return absolute
    if stat.S_ISLNK(mode) and not os.path.isdir(absolute):
        raise ValueError(f"{path} is a symbolic link; share the file it leads to")
    return check_directory(path)


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

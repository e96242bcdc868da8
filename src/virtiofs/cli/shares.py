# SPDX-License-Identifier: Apache-2.0
"""What is shared and how safely, from a command line: options, the walls, the settings of the file system, shares.

`serve.py` and `mount.py` have these options in common; `dropin.py` makes its one share here.
"""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from virtiofs.cli import ownership, pythonshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.audit import Auditor
    from virtiofs.daemon.log import Log
    from virtiofs.daemon.port import Share
    from virtiofs.fs.passthrough.share import Passthrough
    from virtiofs.fs.policy.reloading import PolicyFile
    from virtiofs.fs.python.serving import Servable
    from virtiofs.sandbox.walls import Place, Walls

MAX_LONGEST = 86400
DEFAULT_LONGEST = 60.0  # seconds that --cache adaptive lets a guest trust what it knows
DEFAULT_TAG = "virtiofs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def check_cache(options: argparse.Namespace) -> None:
    """End with a usage error where --cache adaptive and its companions do not fit together."""
    error = options.parser.error
    if options.cache == "adaptive" and not options.metadata_table:
        error("--cache adaptive needs --metadata-table, which says what changed when")
    if options.adaptive_max is not None and options.cache != "adaptive":
        error("--adaptive-max goes with --cache adaptive")
    if options.adaptive_max is not None and not 0 <= options.adaptive_max <= MAX_LONGEST:
        error(f"--adaptive-max takes 0 to {MAX_LONGEST} seconds, not {options.adaptive_max:g}")


def make_walls(options: argparse.Namespace, log: Log, policy: PolicyFile | None = None) -> Walls:
    """The walls around the workers of shares with this policy.  Raises `ValueError` and `OSError`."""
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
        features=("python",) if policy is not None and policy.asks else (),
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


def load_policy(text: str | None) -> PolicyFile | None:
    """The policy that an option names, and all that it may need behind the walls.  Raises `ValueError`."""
    if text is None:
        return None
    from virtiofs.fs.policy.reloading import PolicyFile
    from virtiofs.fs.python.loading import preload

    policy = PolicyFile(text)
    if policy.asks:
        preload()
    return policy


def python_share(tag: str, what: str, python: Servable, replaceable: bool = False) -> Share:
    """The share of a file system in Python; `replaceable`: another one may follow.  Raises `ValueError`."""
    from virtiofs.daemon.device import check_tag
    from virtiofs.daemon.port import Share

    patience = python.filesystem.patience
    return Share(
        check_tag(tag),
        what,
        python.make,
        python.walls,
        python.read_only,
        keep=python.keep,
        patience=patience,
        replaceable=replaceable,
    )


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


class Wanted(NamedTuple):
    """A share as --share names it.  `quota`: bytes, 0 for none.  `policy`: what --policy takes, "" for none."""

    tag: str
    path: str
    read_only: bool
    quota: int
    policy: str = ""


def parse_share(text: str) -> Wanted:
    """What "TAG=PATH[:ro][:quota=SIZE][:policy=FILE]" asks for.

    What follows the path may be in any order.  A path that itself ends in ":ro" is written with ":rw" behind it.
    Raises `ValueError`.
    """
    tag, equals, path = text.partition("=")
    mode, quota, policy = "", 0, ""
    while True:
        before, colon, word = path.rpartition(":")
        if colon and word in ("ro", "rw") and not mode:
            mode = word
        elif colon and word.startswith("quota=") and not quota:
            quota = quota_of(word.removeprefix("quota="), ":quota=")
        elif ":policy=" in path and not policy:
            before, _, policy = path.rpartition(":policy=")
        else:
            break
        path = before
    read_only = mode == "ro"
    if not equals or not path:
        raise ValueError(
            f"a share is given as TAG=DIR, TAG=DIR:ro, TAG=DIR:quota=SIZE or TAG=DIR:policy=FILE, not {text!r}"
        )
    if read_only and quota:
        raise ValueError(f"nothing can be added to a read-only share, so it has no quota: {text!r}")
    if "/" in tag or tag in (".", ".."):
        raise ValueError(f"the tag names the share's socket, so it has no slash: {tag!r}")
    return Wanted(tag, path, read_only, quota, policy)


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

    settings = dict(settings)
    policy: PolicyFile | None = settings.pop("policy", None)
    begin_audit = settings.pop("audit", None)
    if policy is not None:
        refuse_inside(policy.policy.sources, directory)
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
    keep = (() if policy is None else policy.policy.descriptors, () if audit is None else audit.descriptors)

    def make(place: Place) -> Passthrough:
        return Passthrough(
            place.directory,
            read_only,
            only=only,
            proc=place.proc,
            quota=quota,
            metadata=None if seats is None else seats.sit(),
            audit=None if audit is None else audit.make(),
            policy=None if policy is None else policy.policy,
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
        policy=policy,
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


def describe(error: Exception) -> str:
    """An error as one line for a person."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)

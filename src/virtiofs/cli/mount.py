# SPDX-License-Identifier: Apache-2.0
"""Mount a directory on this host, as a guest would see it, without a VM.

The same worker behind the same walls as in `virtiofs serve` answers this host's own kernel, over /dev/fuse:

    virtiofs mount /srv/data /mnt                       # until Ctrl-C, or `umount /mnt`
    virtiofs mount --background --readonly /srv/data /mnt
    virtiofs mount --ownership mapped --translate-uid map:1000:100000:1 /srv/data /mnt

A file system in Python (docs/writing-a-file-system.md) is mounted in the same way, which is how to develop one:

    virtiofs mount examples/memory.py:MemoryFilesystem /mnt

A running device of any virtio-fs daemon, which would otherwise serve a VM, is mounted by its socket:

    virtiofs mount --socket /run/data.sock /mnt

Root may mount anywhere; an ordinary user mounts at a directory of its own, by fusermount3 (Debian's fuse3).  Where the
options below speak of the guest, it is this host's programs.  However the command ends, SIGKILL included, the
directory is unmounted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from virtiofs.cli import mountdevice, pythonshare, serve, shares

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.log import Log
    from virtiofs.daemon.port import Share
    from virtiofs.fs.python.serving import Servable

MAX_THREADS = 64
# What is not about the share: where a device is mounted its own daemon has settled that.
FOR_DEVICES = (
    *(
        "socket",
        "most_queues",
        "mountpoint",
        "readonly",
        "allow_other",
        "background",
        "ready_fd",
        "log_level",
    ),
    *("command", "directory"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs mount`."""
    directory = parser.add_argument(
        "directory",
        metavar="DIR",
        help="the directory, or the single file, to share, or module:Class, or an fsspec URL; not with --socket",
    )
    mountpoint = parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="the directory to mount at")

    class Socket(argparse.Action):
        """Takes DIR away: the only place left is MOUNTPOINT, which may have been given before."""

        def __call__(
            self, parser: argparse.ArgumentParser, found: argparse.Namespace, value: object, _: object = None
        ) -> None:
            found.socket = value
            directory.nargs, directory.required = argparse.SUPPRESS, False
            if getattr(found, "directory", None) and not getattr(found, "mountpoint", None):
                found.mountpoint, found.directory = found.directory, None
                mountpoint.nargs, mountpoint.required = argparse.SUPPRESS, False

    parser.add_argument(
        "--socket",
        metavar="PATH",
        action=Socket,
        help="mount the device that listens here, of whatever daemon",
    )
    parser.add_argument(
        "--queues",
        metavar="N",
        type=int,
        dest="most_queues",
        help="with --socket: request queues to use at most (default: the device's, one for each processor)",
    )
    parser.add_argument(
        "--allow-other",
        action=argparse.BooleanOptionalAction,
        help="let other users in (root: on; others: off, and it takes user_allow_other in /etc/fuse.conf)",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=int,
        help="requests served at a time, 1 to 64: one is the quickest for each request; more do not wait for each"
        " other's slow disk (1, or what a class in Python says)",
    )
    parser.add_argument(
        "--background",
        action="store_true",
        help="return once it is mounted; what there is to say goes to the system's log",
    )
    parser.add_argument(
        "--control",
        metavar="PATH",
        help="make a socket here for `virtiofs ctl`, `top` and `trace`, for this user and root",
    )
    shares.add_arguments(parser)
    # A wait for a lock can be interrupted here, so it needs no end.  Mounts below DIR look like directories.
    parser.set_defaults(
        parser=parser,
        queues=1,
        lock_wait=serve.MAX_LOCK_WAIT,
        thread_pool_size=0,
        no_announce_submounts=True,
    )


def main(options: argparse.Namespace) -> int:
    """Mount, and serve until unmounted."""
    from virtiofs.daemon.log import Log

    serve_it = mount
    pythonshare.check_options(options)
    shares.check_cache(options)
    if options.socket is not None:
        refuse_share_options(options)
        serve_it = mountdevice.mount
    if options.background:
        tell = go_into_background()
        return serve_it(options, system_log(options.log_level), tell)
    return serve_it(options, Log(options.log_level), complain)


def refuse_share_options(options: argparse.Namespace) -> None:
    """End with a usage error if an option about the share was given with --socket."""
    parser = options.parser
    for name, value in vars(options).items():
        if name not in FOR_DEVICES and value != parser.get_default(name):
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} is for the daemon that serves {options.socket}; give it to that one")
    if options.most_queues is not None and not 1 <= options.most_queues <= MAX_THREADS:
        parser.error(f"--queues takes 1 to {MAX_THREADS}, not {options.most_queues}")


def mount(options: argparse.Namespace, log: Log, tell: Callable[[str], None]) -> int:
    """Mount, and serve until unmounted: the exit status.  `tell` hears why it failed, or "" when it is mounted."""
    from virtiofs.daemon import notify
    from virtiofs.daemon.channel import WorkerError
    from virtiofs.daemon.hostmount import HostMount
    from virtiofs.fuse.mountpoint import Mountpoint
    from virtiofs.vhostuser.transport import TransportError

    def ready() -> None:
        notify.service_manager(f"READY=1\nSTATUS=mounted at {mountpoint.path}")
        if options.ready_fd is not None:
            notify.descriptor(options.ready_fd)
        tell("")

    try:
        serve.check_numbers(options)
        if options.control is not None:
            check_control(options.control, options.mountpoint)
        threads = 1 if options.threads is None else options.threads
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"--threads takes 1 to {MAX_THREADS}, not {threads}")
        share: Share | Servable
        again: pythonshare.Again | None = None
        if pythonshare.is_class(options.directory):
            if options.reload:
                again = pythonshare.Again(options, log, options.directory, options.option)
            share = (
                pythonshare.load(options, log, options.directory, options.option)
                if again is None
                else again.first
            )
            name = options.directory
            if options.threads is None:
                threads = max(1, share.filesystem.threads)
        else:
            share, name = directory_share(options, log)
        mountpoint = Mountpoint(
            options.mountpoint,
            name=name,
            read_only=options.readonly,
            allow_other=os.geteuid() == 0 if options.allow_other is None else options.allow_other,
        )
    except (ValueError, OSError) as error:
        tell(shares.describe(error))
        return 1
    hosted = HostMount(
        mountpoint,
        share.make,
        share.walls,
        threads,
        log,
        share.keep,
        options.directory,
        options.readonly,
        getattr(share, "seats", None),
        again,
        getattr(share, "policy", None),
    )
    try:
        if options.control is not None:
            serve.open_control(hosted, options.control, log)
    except (ValueError, OSError, TransportError) as error:
        mountpoint.unmount()
        mountpoint.release()
        tell(shares.describe(error))
        return 1
    try:
        return hosted.run(ready)
    except WorkerError as error:
        tell(f"cannot share {options.directory}: {error}")
        return 1
    finally:
        audit = getattr(share, "audit", None)
        if audit is not None:
            audit.close()


def directory_share(options: argparse.Namespace, log: Log) -> tuple[Share, str]:
    """The share of a directory or a file, and its absolute path.  Raises `ValueError` and `OSError`."""
    settings = shares.passthrough_settings(options, log)
    if options.metadata_table:
        if options.writeback:
            raise ValueError(
                "--metadata-table is for trees that others change, --writeback for those that nobody does"
            )
        if options.cache == "auto":
            settings["cache"] = "always"  # all may be kept, as the kernel is told when to forget it
    path = shares.check_path(options.directory)
    check_apart(path, options.directory, options.mountpoint)
    walls = shares.make_walls(options, log, settings["policy"])
    return (
        shares.make_share(
            shares.DEFAULT_TAG,
            path,
            options.readonly,
            settings,
            walls,
            options.directory,
            metadata_table=options.metadata_table,
        ),
        path,
    )


def check_apart(path: str, directory: str, mountpoint: str) -> None:
    """Raises `ValueError` if one of the two holds the other: the worker would wait for itself."""
    share, place = os.path.realpath(path), os.path.realpath(mountpoint)
    advice = "mount at a directory outside of it"
    if share == place:
        raise ValueError(f"{directory} cannot be mounted on itself; {advice}")
    if place.startswith(share.rstrip("/") + "/"):
        raise ValueError(f"{mountpoint} lies inside {directory}, which would hold itself; {advice}")
    if share.startswith(place.rstrip("/") + "/"):
        raise ValueError(f"{mountpoint} holds {directory}, which would be hidden; {advice}")


def check_control(path: str, mountpoint: str) -> None:
    """Raises `ValueError` for a socket that would be made in what is mounted: we would wait for ourselves."""
    place = os.path.realpath(mountpoint)
    directory = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    if directory == place or directory.startswith(place.rstrip("/") + "/"):
        raise ValueError(
            f"--control {path} lies in {mountpoint}, and would be hidden; choose a place outside of it"
        )


def complain(text: str) -> None:
    if text:
        print(f"virtiofs mount: {text}", file=sys.stderr)


def system_log(level: str) -> Log:
    """The system's log; where there is none, nobody hears."""
    from virtiofs.daemon.log import Log, SystemLog

    try:
        return Log(level, SystemLog("virtiofs"))
    except OSError:
        return Log(level)


def go_into_background() -> Callable[[str], None]:
    """Go on in a child of its own session, with nothing to read from or write to.

    The command ends when the child first calls what this returns: with status 0 for "", else with the text and
    status 1.
    """
    heard, told = os.pipe()
    if os.fork():
        os.close(told)
        with open(heard, encoding=sys.getfilesystemencoding(), errors="surrogateescape") as pipe:
            text = pipe.read()
        complain(text[1:] if text else "it ended while it started")
        os._exit(0 if text == "=" else 1)
    os.close(heard)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    os.close(nowhere)
    waiting = [told]

    def tell(text: str) -> None:
        while waiting:
            fd = waiting.pop()
            os.write(fd, b"=" + os.fsencode(text))
            os.close(fd)

    return tell

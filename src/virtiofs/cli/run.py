# SPDX-License-Identifier: Apache-2.0
"""`virtiofs run`: try a directory in a throw-away guest.

    virtiofs run --share . -- ls /mnt
    virtiofs run --share src:/src:ro --share out:/out -- sh -c 'cp -r /src/. /out/'
    virtiofs run --share out:/out --quota 1G -- sh -c 'cp -r /usr /out'
    virtiofs run --rootfs /srv/alpine -- /bin/cat /etc/os-release
    virtiofs run --rootfs /srv/debian --init -- systemctl status
    virtiofs run --share examples/hello.py:Hello -- cat /mnt/hello

One daemon per share, one guest, one command.  What the command writes comes out here byte for byte, and its
exit status is ours.  Other statuses: 124 the time was up, 125 the guest or a daemon could not be started or
was lost, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from virtiofs.cli.pythonshare import is_class
from virtiofs.cli.sizes import parse_size
from virtiofs.fs.adapters.foreign import is_url
from virtiofs.vm import process
from virtiofs.vm.guest import Guest, GuestError, GuestTimeout, PoweredOff, Share

__all__ = ["add_arguments", "main"]

DAX_WINDOW = "256M"
TIMED_OUT = 124  # as timeout(1)
FAILED = 125  # as env(1) and chroot(1), when they themselves fail
BROKEN_PIPE = 128 + signal.SIGPIPE

_DAEMON_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 0.01  # at the socket of a daemon that knows nothing of ready descriptors
_DETAIL_LINES = 12


class Mount(NamedTuple):
    """A --share or --rootfs as the user gave it, `mountpoint` None where it is for us to choose."""

    directory: Path | str  # or what names a file system in Python
    mountpoint: str | None
    read_only: bool
    quota: str = ""
    options: tuple[str, ...] | None = None  # of that
    workspace: str = ""
    policy: str = ""


class Status:
    """One line on a terminal: what is being waited for, and for how long already.  Elsewhere nothing."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._started = time.monotonic()
        self._drawn = False

    def show(self, stage: str) -> None:
        if self._shown:
            line = f"virtiofs: {stage} ... {time.monotonic() - self._started:.1f} s"
            columns = shutil.get_terminal_size().columns
            sys.stderr.write(f"\r\x1b[K{line[: columns - 1]}")
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


class Ended(BaseException):
    """A signal told us to end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `virtiofs run`."""
    add = parser.add_argument
    add(
        "--share",
        action="append",
        default=[],
        metavar="DIR[:MOUNTPOINT][:ro][:quota=SIZE][:policy=FILE]",
        help="share DIR, or a file system in Python as module:Class or an fsspec URL; the first is mounted at /mnt, the"
        " next at /mnt1 and so on if no MOUNTPOINT is given",
    )
    add(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the class or the source that a --share names; may be repeated",
    )
    add(
        "--needs",
        action="append",
        default=[],
        metavar="WHAT",
        help="what the walls leave open for that class: network, files, or a directory; may be repeated",
    )
    add(
        "--policy",
        metavar="FILE",
        help="apply this policy to each directory that is shared (docs/policy.md); to one of them: --share"
        " DIR:policy=FILE",
    )
    add(
        "--audit",
        metavar="FILE",
        help="append what the guest does to this file, as hash-chained JSON lines (docs/audit.md); with several shares,"
        " a directory, which gets share0.jsonl, share1.jsonl and so on",
    )
    add(
        "--audit-operations",
        metavar="LIST",
        help="what is recorded: changes, opens, refusals, all, or names of operations (changes,opens,refusals)",
    )
    add("--rootfs", metavar="DIR[:ro]", help="boot with DIR as the guest's root file system")
    add(
        "--init",
        nargs="?",
        const="/sbin/init",
        metavar="PROGRAM",
        help="let that system boot by itself: its own init (default: /sbin/init) is process 1, COMMAND runs when its"
        " services are up, and then it powers off; without COMMAND or a terminal it runs until it powers itself off"
        " (docs/rootfs.md)",
    )
    add(
        "--workspace",
        metavar="DIRECTORY",
        help="leave the directory of --rootfs, or of the only --share, as it is, and keep what the guest changes there"
        " (docs/workspace.md); for root",
    )
    add(
        "--quota",
        metavar="SIZE",
        help="let the guest add this much to the host's disk in each share, as in 10G (docs/quota.md); in one of them:"
        " --share DIR:quota=SIZE",
    )
    add(
        "--cache",
        choices=("never", "metadata", "auto", "always", "adaptive"),
        help="what the guest may keep of each share (docs/caching.md)",
    )
    add(
        "--metadata-table",
        action="store_true",
        help="share what changes with the other daemons of each directory on this host (docs/metadata-table.md, which"
        " has a note on US patent 11,237,963)",
    )
    add(
        "--kernel",
        metavar="FILE",
        help="kernel image (default: $VIRTIOFS_KERNEL, the testbed's, or one in /boot)",
    )
    add("--memory", default="512M", metavar="M", help="memory of the guest (default: 512M)")
    add("--cpus", type=_positive, default=1, metavar="N", help="CPUs of the guest (default: 1)")
    add("--queues", type=_positive, default=1, metavar="N", help="request queues of each share (default: 1)")
    add(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="default: KVM where it really works, else TCG",
    )
    add("--timeout", type=_seconds, default=300.0, metavar="S", help="seconds for everything (default: 300)")
    add(
        "--dax",
        action="store_true",
        help="map the files into the guest's memory (docs/dax.md); needs QEMU 11.1, the machine's or the testbed's",
    )
    add(
        "--daemon",
        metavar="CMD",
        help="another daemon's command line, with {socket}, {dir} and {tag} (default: virtiofs serve)",
    )
    add("--append", default="", metavar="ARGS", help="more words for the guest kernel's command line")
    add(
        "--stdin",
        action="store_true",
        help="give our standard input to the command (default: it reads /dev/null)",
    )
    add("-v", "--verbose", action="store_true", help="show the guest kernel's log and the daemons' messages")
    add(
        "command",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND",
        help="what to run in the guest; without it, on a terminal, an interactive shell",
    )


def main(args: argparse.Namespace) -> int:
    """Do what `virtiofs run` was told to.  Returns its exit status; errors are one line on standard error."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    interactive = not command and sys.stdin.isatty() and sys.stdout.isatty()
    status = Status(sys.stderr.isatty() and not args.verbose)
    # A socket's path has 107 bytes at most (unix(7)).
    base = tempfile.gettempdir()
    directory = Path(
        tempfile.mkdtemp(prefix="virtiofs-run-", dir=base if len(os.fsencode(base)) <= 64 else "/tmp")
    )
    daemons: list[Daemon] = []
    previous = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if not command and not interactive and not args.init:
            raise GuestError(
                "no command to run in the guest: add `-- COMMAND` (or run it on a terminal for a shell)"
            )
        deadline = time.monotonic() + args.timeout
        mounts = _mounts(args)
        guest = _guest(args, mounts, directory, status, interactive)
        for mount, share in zip(mounts, guest.shares, strict=True):
            status.show("starting daemon")
            daemons.append(Daemon(mount, share, args, directory))
        for daemon in daemons:
            daemon.wait_until_ready(min(deadline, time.monotonic() + _DAEMON_SECONDS))
            guest.watch(daemon.pidfd, daemon.story)
        try:
            guest.start(deadline - time.monotonic())
            status.clear()
            return _run(guest, command, interactive, args.stdin, deadline)
        finally:
            guest.close()
    except GuestTimeout as error:
        return _complain(status, f"{error} (--timeout {args.timeout:g})", error.details, TIMED_OUT)
    except GuestError as error:
        return _complain(status, str(error), error.details, FAILED)
    except ValueError as error:
        return _complain(status, str(error), "", FAILED)
    except BrokenPipeError:
        # Whoever read our output has enough; what Python would still flush at exit has nowhere to go.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except OSError as error:
        return _complain(status, str(error), "", FAILED)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Ended as end:
        return 128 + int(end.args[0])
    finally:
        status.clear()
        for daemon in daemons:
            daemon.close()
        shutil.rmtree(directory, ignore_errors=True)
        for number, handler in previous.items():
            signal.signal(number, handler)


class Daemon:
    """The process that serves one share."""

    def __init__(self, mount: Mount, share: Share, args: argparse.Namespace, directory: Path) -> None:
        """Start it.  Raises GuestError if its program cannot be started."""
        self.pidfd = -1
        self._share = share
        self._directory = mount.directory
        self._log = directory / f"{share.tag}.log"
        self._ready, theirs = os.pipe()
        self._told_when_ready = args.daemon is None
        command = (
            _serve_command(mount, share, args.queues, theirs)
            + _dax_options(mount, args.dax)
            + _cache_options(mount, args)
            + _audit_options(mount, share, args)
            if args.daemon is None
            else _other_command(args.daemon, mount, share)
        )
        self._name = "virtiofs serve" if args.daemon is None else command[0]
        try:
            with open(self._log, "wb") as log:
                self._process = process.start(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=2 if args.verbose else log,
                    stderr=2 if args.verbose else log,
                    pass_fds=[theirs],
                )
        except OSError as error:
            os.close(self._ready)
            raise GuestError(f"cannot start the daemon {command[0]}: {error.strerror}") from None
        finally:
            os.close(theirs)
        self.pidfd = os.pidfd_open(self._process.pid)

    def wait_until_ready(self, deadline: float) -> None:
        """Wait until the device can be connected to.  Raises GuestError if the daemon ends or is too late."""
        started = time.monotonic()
        watched = [self._ready, self.pidfd] if self._told_when_ready else [self.pidfd]
        while True:
            left = deadline - time.monotonic()
            wait = max(0.0, left if self._told_when_ready else min(left, _LOOK_AGAIN_SECONDS))
            ready = select.select(watched, [], [], wait)[0]
            if self._told_when_ready and self._ready in ready:
                if os.read(self._ready, 64):
                    return
                process.wait_for_end(self._process, 1.0)
                raise GuestError(self.story())
            if self.pidfd in ready:
                raise GuestError(self.story())
            if not self._told_when_ready and _listens(self._share.socket_path, time.monotonic() - started):
                return
            if left <= 0:
                raise GuestError(
                    f"the daemon of {self._directory} was not ready in time: {self._last_words()}"
                )

    def story(self) -> str:
        """One sentence on its end."""
        return f"the daemon of {self._directory} ({self._name}) ended: {self._last_words()}"

    def close(self) -> None:
        process.end(self._process)
        os.close(self.pidfd)
        os.close(self._ready)

    def _last_words(self) -> str:
        try:
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"


def _listens(path: str, waited: float) -> bool:
    """Whether a socket with this path listens.  Seen without connecting: some daemons serve one connection only.

    The path appears with bind(), before listen(); /proc/net/unix tells both (flag __SO_ACCEPTCON, 0x10000).  A daemon
    that binds by another name is not found there, so after a second the path is enough.
    """
    if not os.path.exists(path):
        return False
    with open("/proc/net/unix", "rb") as table:
        for line in table:
            words = line.split(maxsplit=7)  # address, references, protocol, flags, type, state, inode, path
            if len(words) == 8 and words[3] == b"00010000" and words[7].rstrip(b"\n") == os.fsencode(path):
                return True
    return waited > 1.0


def _serve_command(mount: Mount, share: Share, queues: int, ready: int) -> list[str]:
    command = [sys.executable, "-m", "virtiofs", "serve", str(mount.directory), "--socket", share.socket_path]
    command += ["--tag", share.tag, "--queues", str(queues), "--ready-fd", str(ready)]
    if mount.quota:
        command += ["--quota", mount.quota]
    if mount.workspace:
        command += ["--workspace", mount.workspace]
    if mount.policy:
        command += ["--policy", mount.policy]
    command += mount.options or ()
    return command + (["--readonly"] if mount.read_only else [])


def _dax_options(mount: Mount, dax: bool) -> list[str]:
    """A read-only share has no window (docs/dax.md)."""
    return ["--dax-window", DAX_WINDOW, "--dax", "always"] if dax and not mount.read_only else []


def _cache_options(mount: Mount, args: argparse.Namespace) -> list[str]:
    """A class in Python decides that itself."""
    if mount.options is not None:
        return []
    return (["--cache", args.cache] if args.cache else []) + (
        ["--metadata-table"] if args.metadata_table else []
    )


def _audit_options(mount: Mount, share: Share, args: argparse.Namespace) -> list[str]:
    """Classes in Python have no audit."""
    if args.audit is None or mount.options is not None:
        return []
    path = os.path.join(args.audit, f"{share.tag}.jsonl") if os.path.isdir(args.audit) else args.audit
    operations = ["--audit-operations", args.audit_operations] if args.audit_operations else []
    return ["--audit", path, *operations]


def _other_command(template: str, mount: Mount, share: Share) -> list[str]:
    words = shlex.split(template)
    if not any("{socket}" in word for word in words):
        raise GuestError("--daemon needs {socket} in its command, where the socket's path is to stand")
    values = {"{socket}": share.socket_path, "{dir}": str(mount.directory), "{tag}": share.tag}
    for name, value in values.items():
        words = [word.replace(name, value) for word in words]
    return words


def _guest(
    args: argparse.Namespace, mounts: list[Mount], directory: Path, status: Status, interactive: bool
) -> Guest:
    shares = []
    for index, mount in enumerate(mounts):
        is_root = bool(args.rootfs) and index == 0
        number = index - bool(args.rootfs)
        default = "/" if is_root else f"/mnt{number or ''}"
        tag = "rootfs" if is_root else f"share{number}"
        shares.append(
            Share(tag, str(directory / f"{tag}.sock"), mount.mountpoint or default, mount.read_only)
        )
    return Guest(
        shares,
        kernel=args.kernel,
        memory=args.memory,
        cpus=args.cpus,
        queues=args.queues,
        rootfs=bool(args.rootfs),
        init=args.init or "",
        append=args.append,
        accelerator=args.accel,
        verbose=args.verbose,
        terminal=interactive,
        progress=status.show,
        dax=args.dax,
    )


def _run(guest: Guest, command: list[str], interactive: bool, with_stdin: bool, deadline: float) -> int:
    left = deadline - time.monotonic()
    if interactive:
        return _interact(guest, left)
    if not command:
        guest.wait_for_power_off(left)
        return 0
    result = guest.run(
        [os.fsencode(word) for word in command],
        left,
        stdin=0 if with_stdin else None,
        stdout=lambda data: _write(1, data),
        stderr=lambda data: _write(2, data),
    )
    return result.status


def _interact(guest: Guest, seconds: float) -> int:
    import termios
    import tty

    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        return guest.interact(["/bin/sh"], 0, lambda data: _write(1, data), seconds)
    except PoweredOff:
        return 0
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _mounts(args: argparse.Namespace) -> list[Mount]:
    mounts = [_parse_mount(text, "--share") for text in args.share]
    if args.rootfs:
        root = _parse_mount(args.rootfs, "--rootfs")
        if root.mountpoint is not None:
            raise GuestError("--rootfs takes DIR or DIR:ro; its mount point is /")
        mounts.insert(0, root)
    elif args.init:
        raise GuestError("--init is a program of the root file system: add --rootfs DIR")
    if args.quota is not None:
        _check_quota(args.quota, "--quota")
        mounts = [
            mount
            if mount.quota or mount.read_only or mount.options is not None
            else mount._replace(quota=args.quota)
            for mount in mounts
        ]
    if args.daemon is not None and (args.cache or args.metadata_table):
        raise GuestError("--daemon names another daemon; give it its cache options in its command")
    if args.cache == "adaptive" and not args.metadata_table:
        raise GuestError("--cache adaptive needs --metadata-table, which says what changed when")
    if args.daemon is not None and any(mount.quota for mount in mounts):
        raise GuestError("--daemon names another daemon; the quota is for it to keep")
    if args.policy is not None or any(mount.policy for mount in mounts):
        if args.daemon is not None:
            raise GuestError("--daemon names another daemon; the policy is for it to keep")
        mounts = [
            mount if mount.options is not None or mount.policy else mount._replace(policy=args.policy)
            for mount in mounts
        ]
    _check_audit(args, [mount for mount in mounts if mount.options is None])
    classes = [mount for mount in mounts if mount.options is not None]
    if args.option or args.needs:
        named = [mount for mount in classes if not is_url(str(mount.directory))] or classes
        if len(named) != 1:
            raise GuestError(
                "--option and --needs go with one --share of a class in Python, given as module:Class"
            )
        words = [word for option in args.option for word in ("--option", option)]
        words += [word for name in args.needs for word in ("--needs", name)]
        mounts[mounts.index(named[0])] = named[0]._replace(options=tuple(words))
    if args.daemon is not None and classes:
        raise GuestError("--daemon names another daemon, which serves no class in Python")
    if not mounts:
        raise GuestError("nothing to share: add --share DIR or --rootfs DIR")
    if args.workspace is not None:
        mounts[0] = _with_workspace(args, mounts)
    return mounts


def _check_audit(args: argparse.Namespace, audited: list[Mount]) -> None:
    """Raises GuestError where --audit and its companion make no sense."""
    if args.audit is None:
        if args.audit_operations is not None:
            raise GuestError("--audit-operations goes with --audit FILE")
        return
    if args.daemon is not None:
        raise GuestError("--daemon names another daemon, which has no audit")
    if not audited:
        raise GuestError("--audit is about directories; a class in Python writes down what it likes itself")
    if args.dax:
        raise GuestError(
            "an audit does not see what is stored through a mapping: use --audit or --dax, not both"
        )
    if len(audited) > 1 and not os.path.isdir(args.audit):
        raise GuestError(f"with several shares --audit names a directory, not {args.audit}")


def _with_workspace(args: argparse.Namespace, mounts: list[Mount]) -> Mount:
    """The first mount, whose changes go to the workspace."""
    if not args.rootfs and len(mounts) > 1:
        raise GuestError("--workspace goes with --rootfs, or with one --share")
    if mounts[0].read_only or mounts[0].options is not None:
        raise GuestError("--workspace keeps changes; there are none of a read-only share, nor of a class")
    if args.daemon is not None:
        raise GuestError("--daemon names another daemon, which has no workspace")
    return mounts[0]._replace(workspace=args.workspace)


def _parse_mount(text: str, option: str) -> Mount:
    """DIR[:MOUNTPOINT][:ro][:quota=SIZE][:policy=FILE].  A directory whose own name looks so is taken as it is."""
    rest = text
    found: dict[str, str] = {}
    while not os.path.isdir(rest):
        before, colon, last = rest.rpartition(":")
        if colon and last in ("ro", "rw"):
            kind = "mode"
        elif colon and last.startswith("quota="):
            kind, last = "quota", last.removeprefix("quota=")
        elif colon and last.startswith("/") and not last.startswith("//"):
            kind = "mountpoint"
        elif ":policy=" in rest:  # which may hold a colon itself
            kind = "policy"
            before, _, last = rest.rpartition(":policy=")
        else:
            break
        if kind in found:
            break
        found[kind], rest = last, before
    quota, policy = found.get("quota", ""), found.get("policy", "")
    mountpoint, read_only = found.get("mountpoint"), found.get("mode") == "ro"
    if "quota" in found:
        _check_quota(quota, f"{option} {text}")
        if read_only:
            raise GuestError(f"{option} {text}: nothing can be added to a read-only share")
    if is_class(rest):
        if policy:
            raise GuestError(f"{option} {text}: a policy is about directories")
        return Mount(rest, mountpoint, read_only, quota, ())
    directory = Path(rest)
    if not rest or not directory.exists():
        raise GuestError(f"{option} {text}: there is no directory {rest or text}")
    if not directory.is_dir():
        advice = f"; a class in it is {rest}:CLASS" if rest.endswith(".py") else ""
        raise GuestError(f"{option} {text}: {rest} is not a directory{advice}")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise GuestError(f"{option} {text}: {rest} may not be read by this user")
    return Mount(directory.resolve(), mountpoint, read_only, quota, policy=policy)


def _check_quota(text: str, option: str) -> None:
    try:
        parse_size(text)
    except ValueError as error:
        raise GuestError(f"{option}: {error}") from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text}")
    return seconds


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _complain(status: Status, message: str, details: str, code: int) -> int:
    status.clear()
    lines = [line for line in details.splitlines() if line.strip()][-_DETAIL_LINES:]
    if lines:
        print("\n".join(f"  | {line}" for line in lines), file=sys.stderr)
    print(f"virtiofs run: {message}", file=sys.stderr)
    return code


def _end(number: int, _frame: FrameType | None) -> None:
    raise Ended(number)

# SPDX-License-Identifier: Apache-2.0
"""`virtiofs kata-sim`: start a guest the way Kata Containers does, with containers' root file systems on the share.

    virtiofs kata-sim
    virtiofs kata-sim --rootfs /srv/debian -- /bin/cat /etc/os-release
    virtiofs kata-sim --runtime rust --daemon /usr/libexec/virtiofsd --json times.json

It takes the runtime's place: makes the directories of a sandbox, starts the daemon with the runtime's command line,
boots a guest, mounts a container's root file system into the share while the guest runs, and starts the container
in it (crun or runc, as the agent would).  Then it adds a second, read-only one, takes the first away, and shuts down
as the runtime does.  What the containers write comes out here; the times, from the start of it all, are told on
standard error.

Exit status: the first container's that is not 0; 1 if a step failed, 124 if the time was up, 125 if the guest or the
daemon could not be started or was lost.  Needs root, QEMU, and crun or runc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from virtiofs.cli.run import FAILED, TIMED_OUT, Ended, Status
from virtiofs.sandbox import namespaces
from virtiofs.vm.guest import GuestError, GuestTimeout
from virtiofs.vm.kata import BASE, RUNTIMES, Sandbox, Volume
from virtiofs.vm.ramdisk import find_busybox

__all__ = ["add_arguments", "main"]

STEP_FAILED = 1
COMMAND = ("/bin/sh", "-c", 'echo "$HOSTNAME: $(. /etc/os-release; echo $PRETTY_NAME), $(uname -sr)"; ls /')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `virtiofs kata-sim`."""
    add = parser.add_argument
    add(
        "--runtime",
        choices=[*RUNTIMES],
        default="go",
        help="whose part to take: the shim in Go (default) or in Rust",
    )
    add(
        "--daemon",
        metavar="CMD",
        help="the daemon and options of its own (default: this project's virtiofsd)",
    )
    add(
        "--cache", default="auto", metavar="MODE", help="virtio_fs_cache of the configuration (default: auto)"
    )
    add(
        "--extra-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="a word of virtio_fs_extra_args, behind those of the runtime; may be repeated",
    )
    add(
        "--rootfs", metavar="DIR", help="the containers' root file system (default: a small one with busybox)"
    )
    add(
        "--volume",
        action="append",
        default=[],
        metavar="DIR:PLACE",
        help="a directory for the first container",
    )
    add("--engine", choices=("crun", "runc"), default="crun", help="what starts containers (default: crun)")
    add("--base", type=Path, default=BASE, metavar="DIR", help=f"where sandboxes are made (default: {BASE})")
    add("--kernel", metavar="FILE", help="kernel image (default: as `virtiofs run`)")
    add("--memory", default="512M", metavar="M", help="memory of the guest (default: 512M)")
    add(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="default: KVM where it works, else TCG",
    )
    add("--timeout", type=float, default=300.0, metavar="S", help="seconds for each step (default: 300)")
    add("--json", metavar="FILE", help="write the times there, too (- is standard output)")
    add("-v", "--verbose", action="store_true", help="show the guest kernel's log and the daemon's messages")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what the containers run")


def main(args: argparse.Namespace) -> int:
    """Do what `virtiofs kata-sim` was told to.  Returns its exit status; errors are one line on standard error."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    status = Status(sys.stderr.isatty() and not args.verbose)
    signal.signal(signal.SIGTERM, _end)
    try:
        if os.geteuid() != 0:
            raise GuestError("only root can mount containers' root file systems; Kata's runtime is root, too")
        volumes = [_volume(text) for text in args.volume]
        namespaces.new_mounts()
        with _root_file_system(args.rootfs) as rootfs:
            sandbox = Sandbox(
                args.runtime,
                shlex.split(args.daemon) if args.daemon else [sys.executable, "-m", "virtiofs.cli.virtiofsd"],
                cache=args.cache,
                extra=args.extra_arg,
                base=args.base,
                engine=args.engine,
                kernel=args.kernel,
                memory=args.memory,
                accelerator=args.accel,
                verbose=args.verbose,
                progress=status.show,
            )
            return _play(sandbox, rootfs, command or list(COMMAND), volumes, args, status)
    except GuestTimeout as error:
        return _complain(status, f"{error} (--timeout {args.timeout:g})", TIMED_OUT)
    except (GuestError, ValueError, OSError) as error:
        return _complain(status, str(error), FAILED)
    except Ended as end:
        return 128 + int(end.args[0])
    finally:
        status.clear()


def _play(
    sandbox: Sandbox,
    rootfs: str,
    command: list[str],
    volumes: list[Volume],
    args: argparse.Namespace,
    status: Status,
) -> int:
    """The life of a pod.  Returns the exit status."""
    times: dict[str, float] = {}
    failed: list[str] = []
    results = []
    started = time.monotonic()
    sandbox.start()
    try:
        for name, read_only, mounts in (("one", False, volumes), ("two", True, [])):
            added = time.monotonic()
            sandbox.add(name, rootfs, read_only=read_only, volumes=mounts)
            status.clear()
            result = sandbox.run(name, command, stdout=_write_out, stderr=_write_error, timeout=args.timeout)
            results.append(result.status)
            if name in sandbox.times:
                times[f"container {name}: from being added to its first output"] = (
                    sandbox.times[name] + started - added
                )
        removed = time.monotonic()
        sandbox.remove("one")
        # What the agent does so that the guest lets go of it (RemoveStaleVirtiofsShareMounts).
        while sandbox.guest.run(["stat", f"{sandbox.in_guest}/one/rootfs"]).status == 0:
            if time.monotonic() - removed > args.timeout:
                failed.append("the guest still sees a container that was removed")
                break
        times["container one: from being removed until the guest sees that"] = time.monotonic() - removed
    finally:
        ended = time.monotonic()
        daemon_status = sandbox.close()
    times["shut down"] = time.monotonic() - ended
    if daemon_status != 0:
        failed.append(
            "the daemon did not end with the connection"
            if daemon_status is None
            else f"the daemon ended with status {daemon_status}"
        )
    whole = {
        "daemon ready": sandbox.times["daemon"],
        "guest up": sandbox.times["guest"],
        **({"first output of the first container": sandbox.times["one"]} if "one" in sandbox.times else {}),
        **times,
    }
    _report(whole, failed, args)
    for reason in failed:
        print(f"virtiofs kata-sim: {reason}", file=sys.stderr)
    return next((result for result in results if result), STEP_FAILED if failed else 0)


def _report(times: dict[str, float], failed: list[str], args: argparse.Namespace) -> None:
    width = max(map(len, times))
    for what, seconds in times.items():
        print(f"{what:<{width}}  {seconds:7.3f} s", file=sys.stderr)
    if args.json:
        document = {"runtime": args.runtime, "engine": args.engine, "seconds": times, "failed": failed}
        text = json.dumps(document, indent=2) + "\n"
        if args.json == "-":
            sys.stdout.write(text)
        else:
            Path(args.json).write_text(text)


@contextlib.contextmanager
def _root_file_system(named: str | None) -> Iterator[str]:
    """The directory that was named, or one with busybox that goes away afterwards."""
    if named is not None:
        if not os.path.isdir(named):
            raise GuestError(f"--rootfs {named}: there is no such directory")
        yield os.path.realpath(named)
        return
    with tempfile.TemporaryDirectory(prefix="virtiofs-rootfs-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            (root / name).mkdir()
        shutil.copy2(find_busybox(), root / "bin" / "busybox")
        for applet in (
            "sh",
            "ls",
            "cat",
            "uname",
            "id",
            "mount",
            "stat",
            "touch",
            "sha256sum",
            "grep",
            "sleep",
        ):
            (root / "bin" / applet).symlink_to("busybox")
        (root / "etc" / "os-release").write_text('PRETTY_NAME="busybox on the share"\n')
        yield directory


def _volume(text: str) -> Volume:
    source, colon, place = text.rpartition(":")
    if not colon or not place.startswith("/") or not os.path.exists(source):
        raise GuestError(f"--volume {text}: it takes DIR:PLACE, a directory here and a path in the container")
    return Volume(os.path.realpath(source), place)


def _write_out(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _write_error(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.flush()


def _complain(status: Status, message: str, code: int) -> int:
    status.clear()
    print(f"virtiofs kata-sim: {message}", file=sys.stderr)
    return code


def _end(number: int, _frame: object) -> None:
    raise Ended(number)

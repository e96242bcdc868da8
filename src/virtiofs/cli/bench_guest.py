# SPDX-License-Identifier: Apache-2.0
"""Compare what a guest can have its files by: virtio-fs of several daemons, 9p, NFS, a disk image.

    virtiofs bench-guest --quick
    virtiofs bench-guest --target virtiofs --target 9p-mmap --work 'find' --rounds 3
    virtiofs bench-guest --markdown benchmarks/guest.md --html benchmarks/guest.html

One guest is booted, which has all of them; it mounts one after the other and does the same work on each, in several
rounds, each of which begins with another.  So a ratio holds within one boot; seconds of different machines, or
with and without KVM, do not compare.  Targets that cannot be had here are named with the reason.

The guest's programs are this machine's own (its root is shared read-only): tar, find, git, fio, python3.  The kernel
needs 9p: `tools/trixie kernel-amd64` unpacks that of Debian 13's backports, which is taken if it is there, and
`tools/testbed --flavour amd64` this Debian's.  Needs root.  Exit status: 1 if any work failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from virtiofs.cli.run import Status
from virtiofs.vm import process, work
from virtiofs.vm.guest import Guest, GuestError, Share
from virtiofs.vm.kernel import Kernel, cache_directory, open_kernel

__all__ = ["add_arguments", "main"]

EXTENTS = {  # rounds, files, files of the mix, MiB of the large file, random requests, files of the tree
    "quick": (1, 100, 20, 8, 400, 150),
    "": (3, 600, 120, 64, 2000, 900),
}
OURS = {  # what the guest may keep, from the default to everything
    "virtiofs": (),
    "virtiofs-writeback": ("--writeback",),
    "virtiofs-never": ("--cache", "never", "--allow-mmap"),
    "virtiofs-always": ("--cache", "always"),
}
POINT = "/dev/shm/point"
SUPPLY = "/dev/shm/supply"
MODULES = ("9p", "9pnet_virtio", "virtio_blk", "ext4", "virtio_net", "nfsv4")
CHECKSUM = "crc32c_generic"  # of ext4, where a kernel has it as a module of its own: ext4 does not name it
GUEST_ADDRESS, HOST_ADDRESS = "10.0.2.15", "10.0.2.2"  # of QEMU's user network
START_SECONDS = 20.0
WORK_SECONDS = 3600.0
MEMORY = "2G"
PACKAGES = ("email", "json", "http", "logging", "unittest")  # of the standard library, to compile


class Target(NamedTuple):
    """One way to have files: how the guest mounts it, the words for QEMU, the host's process if it takes one.

    `beside`: which of ours lets the guest keep as much, so that it is what this one compares with; itself for ours.
    """

    name: str
    kind: str
    source: str
    options: str
    beside: str
    devices: Callable[[Path, Path], list[str]]  # (directory, socket)
    daemon: Callable[[Path, Path], list[str]] | None = None  # the same


class Absent(Exception):
    """A target that cannot be had; the text says why."""


def _vhost(tag: str) -> Callable[[Path, Path], list[str]]:
    def words(directory: Path, where: Path) -> list[str]:
        device = f"vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"
        return ["-chardev", f"socket,id={tag},path={where}", "-device", device]

    return words


def _virtio_fs(name: str, beside: str, daemon: Callable[[Path, Path], list[str]]) -> Target:
    return Target(name, "virtiofs", name, "", beside, _vhost(name), daemon)


def _9p(cache: str, beside: str) -> Target:
    name = f"9p-{cache}"

    def words(directory: Path, where: Path) -> list[str]:
        backend = f"local,id=fs-{name},path={directory},security_model=passthrough,multidevs=remap"
        return ["-fsdev", backend, "-device", f"virtio-9p-pci,fsdev=fs-{name},mount_tag={name}"]

    options = f"trans=virtio,version=9p2000.L,msize=512000,cache={cache}"
    return Target(name, "9p", name, options, beside, words)


def _disk(directory: Path, where: Path) -> list[str]:
    drive = f"file={directory}.img,if=none,id=disk,format=raw"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=disk"]


def _network(directory: Path, where: Path) -> list[str]:
    return ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]


def targets(port: int) -> tuple[list[Target], list[str]]:
    """What can be compared here, ours first, and why the others can not.  `port`: for the NFS server."""
    from virtiofs.client import peers

    found, missing = peers.find(cache_directory())
    commands = {peer.name: peer.command for peer in found}

    def started(name: str, *more: str) -> Callable[[Path, Path], list[str]]:
        def words(directory: Path, where: Path) -> list[str]:
            places = {"{socket}": str(where), "{dir}": str(directory)}
            return [_replaced(word, places) for word in commands[name]] + [*more]

        return words

    here = [_virtio_fs(name, name, started("virtiofs", *more)) for name, more in OURS.items()]
    for name, more in (("virtiofsd-c", ("-o", "writeback")), ("virtiofsd-rust", ("--writeback",))):
        if name in commands:
            here.append(_virtio_fs(name, "virtiofs", started(name)))
            here.append(_virtio_fs(f"{name}-writeback", "virtiofs-writeback", started(name, *more)))
    here += [_9p("none", "virtiofs-never"), _9p("mmap", "virtiofs"), _9p("loose", "virtiofs-always")]
    if shutil.which("ganesha.nfsd"):
        options = f"vers=4.1,proto=tcp,port={port},addr={HOST_ADDRESS},clientaddr={GUEST_ADDRESS},sec=sys"
        here.append(
            Target(
                "nfs-4.1",
                "nfs4",
                f"{HOST_ADDRESS}:/work",
                options,
                "virtiofs",
                _network,
                lambda d, w: _ganesha(d, w, port),
            )
        )
    else:
        missing.append("nfs-4.1: no ganesha.nfsd: install nfs-ganesha and nfs-ganesha-vfs")
    if shutil.which("mkfs.ext4"):
        here.append(Target("ext4-image", "ext4", "/dev/vda", "", "virtiofs-always", _disk))
    else:
        missing.append("ext4-image: no mkfs.ext4: install e2fsprogs")
    return here, missing


def _replaced(word: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word


def _ganesha(directory: Path, where: Path, port: int) -> list[str]:
    """A server of NFS in user space, for one directory and this machine's loopback."""
    state = where.parent / "ganesha"
    state.mkdir()
    configuration = state / "conf"
    configuration.write_text(f"""
        NFS_CORE_PARAM {{ NFS_Port = {port}; Protocols = 4; Bind_addr = 127.0.0.1; Enable_NLM = false;
            Enable_RQUOTA = false; }}
        NFSV4 {{ Graceless = true; RecoveryRoot = {state}; Minor_Versions = 1; }}
        EXPORT {{ Export_Id = 1; Path = {directory}; Pseudo = /work; Access_Type = RW; Squash = No_root_squash;
            SecType = sys; Protocols = 4; Transports = TCP; FSAL {{ Name = VFS; }} }}
    """)
    return ["ganesha.nfsd", "-F", "-f", str(configuration), "-L", f"{state}/log", "-p", f"{state}/pid"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs bench-guest`."""
    add = parser.add_argument
    add("--target", action="append", default=[], metavar="NAME", help="only these; see --list")
    add(
        "--work",
        action="append",
        default=[],
        metavar="TEXT",
        help="only works whose name holds this; see --list",
    )
    add("--quick", action="store_true", help="a minute or two: few small files, one round")
    add("--rounds", type=int, metavar="N", help="how often each target does all of it (3)")
    add(
        "--kernel",
        metavar="FILE",
        help="a kernel with 9p (default: that of tools/trixie or tools/testbed)",
    )
    add(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="default: KVM where it works, else TCG",
    )
    add("--directory", metavar="DIR", help="make the files here instead of in a temporary directory")
    add("--list", action="store_true", help="name the targets and works there are, and end")
    add("--json", metavar="FILE", help="write everything measured here")
    add("--markdown", metavar="FILE", help="write the tables here")
    add("--html", metavar="FILE", help="write a page with plots here, one file")
    add("-v", "--verbose", action="store_true", help="show the guest kernel's log and what the daemons say")


def main(args: argparse.Namespace) -> int:
    """Run the comparison; the exit status."""
    from virtiofs.cli import bench_guest_report as report

    port = _free_port()
    here, missing = targets(port)
    chosen = [target for target in here if not args.target or target.name in args.target]
    works = [name for name in work.WORKS if not args.work or any(text in name for text in args.work)]
    if args.list:
        print("\n".join([*(target.name for target in here), *missing, "", *work.WORKS]))
        return 0
    unknown = set(args.target) - {target.name for target in here}
    if unknown or not works:
        what = f"no target {', '.join(sorted(unknown))}" if unknown else "no such work"
        print(f"virtiofs bench-guest: {what}; --list names them", file=sys.stderr)
        return 2
    for line in missing:
        print(line, file=sys.stderr)
    status = Status(sys.stderr.isatty() and not args.verbose)
    try:
        if os.geteuid() != 0:
            raise GuestError("only root can serve this machine's root to the guest, and keep owners in 9p")
        with tempfile.TemporaryDirectory(prefix="virtiofs-bench-", dir=args.directory) as place:
            results = _measure(chosen, works, Path(place), args, status)
    except (GuestError, Absent, OSError, ValueError, subprocess.CalledProcessError) as error:
        status.clear()
        print(f"virtiofs bench-guest: {error}", file=sys.stderr)
        return 1
    results["absent"] = missing
    print(report.terminal(results))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    if args.markdown:
        Path(args.markdown).write_text(report.markdown(results))
    if args.html:
        Path(args.html).write_text(report.page(results))
    return 1 if any("failed" in row for row in results["rows"]) else 0


def _measure(
    chosen: list[Target], works: list[str], place: Path, args: argparse.Namespace, status: Status
) -> dict[str, Any]:
    rounds, files, mix, mebibytes, requests, tree = EXTENTS["quick" if args.quick else ""]
    rounds = args.rounds or rounds
    place.chmod(0o755)
    kernel = _kernel(args.kernel)
    status.show("making files")
    (place / "supply").mkdir()
    _make_supply(place / "supply", tree)
    plan = {
        "targets": [_mounting(target) for target in chosen],
        "works": works,
        "rounds": rounds,
        "sizes": {"files": files, "mix": mix, "mebibytes": mebibytes, "random": requests},
        "supply": SUPPLY,
    }
    shutil.copy(work.__file__, place / "work.py")
    (place / "plan.json").write_text(json.dumps(plan))
    with contextlib.ExitStack() as stack:
        devices: list[str] = []
        for target in chosen:
            status.show(f"starting {target.name}")
            directory = place / target.name
            shutil.copytree(place / "supply" / "tree", directory / "tree")
            if target.kind == "ext4":
                _make_image(directory, mebibytes)
            where = place / f"{target.name}.sock"
            if target.daemon is not None:
                words = target.daemon(directory, where)
                stack.enter_context(
                    _running(target, words, where if target.kind == "virtiofs" else None, args)
                )
            devices += target.devices(directory, where)
        root = place / "root.sock"
        words = [
            sys.executable,
            "-m",
            "virtiofs",
            "serve",
            "/",
            "--readonly",
            "--cache",
            "always",
            "--socket",
            str(root),
        ]
        stack.enter_context(_running(None, words, root, args))
        guest = Guest(
            [Share("root", str(root), "/", True)],
            rootfs=True,
            kernel=kernel.path,
            memory=MEMORY,
            accelerator=args.accel,
            modules=[*MODULES, *([CHECKSUM] if kernel.modules and CHECKSUM in kernel.modules else [])],
            devices=devices,
            prealloc=True,  # or whoever is the first to use a page pays for it
            verbose=args.verbose,
            progress=status.show,
        )
        with guest:
            rows = _work(guest, place, len(chosen) * len(works) * rounds, status, args.verbose)
            machine = _machine(guest, kernel, plan)
    status.clear()
    return {
        "machine": machine,
        "targets": [target.name for target in chosen],
        "beside": {target.name: _beside(target, chosen) for target in chosen},
        "works": works,
        "rows": rows,
    }


def _beside(target: Target, chosen: list[Target]) -> str:
    """What a target compares with: of what is measured, the default if not its own."""
    names = [other.name for other in chosen]
    return next((name for name in (target.beside, next(iter(OURS))) if name in names), target.name)


def _work(guest: Guest, place: Path, total: int, status: Status, verbose: bool) -> list[dict[str, Any]]:
    """Let the guest do all of it: what it measured."""
    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    network = f"ip link set eth0 up; ip addr add {GUEST_ADDRESS}/24 dev eth0; ip link set lo up"
    # The guest's own memory holds what is copied from, so that only what is copied to is measured.
    # /tmp becomes its own, too; what it needs of the host's is read before.
    prepared = guest.run(
        f"set -e; mkdir {SUPPLY}; cp -r {place}/supply/archive.tar {place}/supply/repository {SUPPLY}/; "
        f"cp {place}/work.py {place}/plan.json /dev/shm; {_busybox(network)}; mount -t tmpfs tmpfs /tmp"
    )
    if prepared.status:
        raise GuestError(f"the guest has no room: {prepared.errors.decode(errors='replace')}")
    rows: list[dict[str, Any]] = []
    left = b""

    def take(data: bytes) -> None:
        nonlocal left
        *lines, left = (left + data).split(b"\n")
        for line in lines:
            rows.append(json.loads(line))
            row = rows[-1]
            status.show(f"{len(rows)} of {total}: {row['target']}, {row['work']}")
            if verbose:
                print(line.decode(), file=sys.stderr)

    script = f"exec {python} -u /dev/shm/work.py /dev/shm/plan.json"
    result = guest.run(script, WORK_SECONDS, stdout=take)
    if result.status:
        raise GuestError(
            f"the work ended with {result.status}: {result.errors.decode(errors='replace')[-500:]}"
        )
    return rows


def _busybox(script: str) -> str:
    """Commands of the static busybox that `make guests` installs; they may fail, where there is no such device."""
    return "; ".join(f"/bin/busybox {command.strip()} 2>/dev/null || true" for command in script.split(";"))


def _mounting(target: Target) -> dict[str, str]:
    return {
        "name": target.name,
        "type": target.kind,
        "source": target.source,
        "options": target.options,
        "mountpoint": POINT,
    }


@contextlib.contextmanager
def _running(
    target: Target | None, words: list[str], where: Path | None, args: argparse.Namespace
) -> Iterator[None]:
    """A daemon, as long as the guest needs it."""
    name = target.name if target else "the daemon of the guest's root"
    with tempfile.TemporaryFile() as log:
        try:
            running = process.start(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=2 if args.verbose else log
            )
        except OSError as error:
            raise Absent(f"{name}: cannot start {words[0]}: {error.strerror}") from None
        try:
            deadline = time.monotonic() + START_SECONDS
            while where is not None and not where.exists():
                if process.wait_for_end(running, 0.01) or time.monotonic() > deadline:
                    log.seek(0)
                    raise Absent(f"{name} does not start: {log.read().decode(errors='replace').strip()}")
            yield
        finally:
            process.end(running)


def _kernel(named: str | None) -> Kernel:
    places = [cache_directory() / name / "boot" for name in ("kernel-amd64", "kernel-trixie-amd64")]
    images = [image for place in places for image in sorted(place.glob("vmlinux-*"))]
    if named is None and not images:
        raise Absent("no kernel with 9p: run `tools/trixie kernel-amd64`, or name one with --kernel")
    kernel = open_kernel(named or images[-1])
    if kernel.modules is not None:
        lacking = [name for name in MODULES if name not in kernel.modules]
        if lacking:
            raise Absent(
                f"{kernel.path} has no {', no '.join(lacking)}: "
                "run `tools/trixie kernel-amd64`, or `tools/testbed --flavour amd64`"
            )
    return kernel


def _make_supply(place: Path, count: int) -> None:
    """The tree each target has, as an archive and as a repository, too: like a package of npm, and Python's own."""
    chance = random.Random(42)
    tree = place / "tree"
    for number in range(count):
        directory = tree / f"node_modules/p{number // 15}" / ("lib" if number % 3 else "")
        directory.mkdir(parents=True, exist_ok=True)
        size = int(chance.paretovariate(1.1) * 400) % 40000
        (directory / f"file{number}.js").write_bytes(chance.randbytes(size // 2).hex().encode())
    library = Path(os.__file__).parent
    for package in PACKAGES:
        shutil.copytree(
            library / package, tree / "package" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    subprocess.run(["tar", "cf", place / "archive.tar", "-C", tree, "."], check=True)
    repository = place / "repository"
    shutil.copytree(tree, repository)
    settings = ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"]
    for words in (["init", "-q"], ["add", "-A"], [*settings, "commit", "-q", "-m", "all"]):
        subprocess.run(
            ["git", *words],
            cwd=repository,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"},
        )


def _make_image(directory: Path, mebibytes: int) -> None:
    image = Path(f"{directory}.img")
    with image.open("wb") as file:
        file.truncate((1024 + 4 * mebibytes) << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", directory, image], check=True, stdout=subprocess.DEVNULL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _machine(guest: Guest, kernel: Kernel, plan: dict[str, Any]) -> dict[str, Any]:
    from virtiofs.client.figures import machine

    return {**machine(), "accelerator": guest.accelerator, "kernel": kernel.version, "sizes": plan["sizes"]}

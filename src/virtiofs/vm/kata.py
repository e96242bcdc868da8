# SPDX-License-Identifier: Apache-2.0
"""A Kata sandbox without Kata: the runtime's and the agent's part in it, with any virtio-fs daemon.

    with Sandbox("go", ["virtiofsd"]) as sandbox:
        sandbox.add("web", "/srv/rootfs")
        sandbox.run("web", ["cat", "/etc/os-release"]).text

What the runtimes do was read from Kata 4.1: virtcontainers/virtiofsd.go and fs_share_linux.go of the Go shim,
share_virtio_fs_standalone.rs of the Rust one; what their agent does, from src/agent/src/storage.  The order counts:
the daemon is started on a directory in which nothing is mounted yet; the root file systems of containers come later,
by mount propagation, under a top that stays read-only.

The guest is the throw-away guest of guest.py, with the engine of an OCI container in its RAM disk; its init does what
the agent would.  A Sandbox needs root and mounts below `base`: use it in a mount namespace of one's own,
so that nothing is left mounted however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from virtiofs.vm import process
from virtiofs.vm.container import Bind, configuration, engine_files
from virtiofs.vm.errors import GuestError
from virtiofs.vm.guest import Guest, Result, Share, Sink

__all__ = ["BASE", "RUNTIMES", "Runtime", "Sandbox", "Volume"]

BASE = Path("/run/kata-containers/shared/sandboxes")
TAG = "kataShared"
IN_GUEST = "/run/kata-containers/shared/containers"
READY = b"Waiting for vhost-user socket connection"

_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 0x1, 0x20, 0x1000
_MS_PRIVATE, _MS_SLAVE, _MS_SHARED = 1 << 18, 1 << 19, 1 << 20
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_DAEMON_SECONDS = 20.0
_END_SECONDS = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


class Runtime(NamedTuple):
    """What sets the two shims apart: names of directories, and the daemon's command line behind its program."""

    writable: str  # everything is bind-mounted below this directory of a sandbox
    shared: str  # a read-only slave of it: what the daemon serves
    containers: str  # below both: where containers' directories stand
    arguments: Callable[[str, str, str], list[str]]  # (cache, shared directory, socket or descriptor)
    listens: bool  # the shim listens itself and passes the descriptor


RUNTIMES = {
    "go": Runtime(
        "mounts",
        "shared",
        "",
        lambda cache, shared, fd: [
            *("--syslog", f"--cache={cache}", f"--shared-dir={shared}", f"--fd={fd}"),
            *("--thread-pool-size=1", "--announce-submounts"),
        ],
        listens=True,
    ),
    "rust": Runtime(
        "rw",
        "ro",
        "passthrough",
        lambda cache, shared, path: [
            *("--socket-path", path, "--shared-dir", shared, "--cache", cache),
            *("--thread-pool-size=1", "-o", "announce_submounts"),
        ],
        listens=False,
    ),
}


class Volume(NamedTuple):
    """A directory or file of the host that a container sees at `place`."""

    source: str
    place: str
    writable: bool = True


class _Container(NamedTuple):
    bundle: str
    directory: Path
    mounts: list[Path]  # in the order they were made
    read_only: bool
    binds: list[Bind]


class Sandbox:
    """One pod: a daemon, a guest, and containers that come and go.

    runtime     "go" or "rust": whose directories and command line (RUNTIMES)
    daemon      the program, and options of its own before those of the runtime
    extra       what an operator puts behind them (virtio_fs_extra_args)
    base        where the sandbox's directory is made
    engine      "crun" or "runc"
    progress    called with a word for what is being waited for
    times       seconds from the start of the sandbox to: "daemon" ready, "guest" up, the first output of a
                container by its name
    """

    def __init__(
        self,
        runtime: str = "go",
        daemon: Sequence[str] = ("virtiofsd",),
        *,
        cache: str = "auto",
        extra: Sequence[str] = (),
        base: Path = BASE,
        engine: str = "crun",
        kernel: str | None = None,
        memory: str = "512M",
        accelerator: str = "auto",
        verbose: bool = False,
        progress: Callable[[str], object] | None = None,
    ) -> None:
        """Nothing is made yet.  Raises KeyError for an unknown runtime, MissingPart without the engine."""
        self.runtime = RUNTIMES[runtime]
        self.engine = engine
        self.times: dict[str, float] = {}
        self.name = f"virtiofs-{secrets.token_hex(6)}"
        self.directory = base / self.name
        self._command = [*daemon]
        self._cache, self._extra = cache, [*extra]
        self._verbose, self._progress = verbose, progress
        self._own = Path(tempfile.gettempdir(), self.name)  # <jailer root>, /run/vc/vm/<id>
        self.socket_path = self._own / ("vhost-fs.sock" if self.runtime.listens else "virtiofsd.sock")
        self.guest = Guest(
            [Share(TAG, str(self.socket_path), IN_GUEST)],
            kernel=kernel,
            memory=memory,
            accelerator=accelerator,
            extra_files=engine_files(engine),
            verbose=verbose,
            progress=progress,
        )
        self._daemon: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._mounts: list[Path] = []
        self._made: list[Path] = []  # directories and empty files, for the end
        self._containers: dict[str, _Container] = {}
        self._started = 0.0

    # The runtime's part

    def start(self) -> None:
        """Make the sandbox's directories, start the daemon, boot the guest.

        Raises GuestError, and OSError where this user may not mount.  After an error all is cleaned up.
        """
        self._started = time.monotonic()
        try:
            self._make_directories()
            self._report("starting the daemon")
            self._start_daemon()
            self._mark("daemon")
            self.guest.watch(self._pidfd, lambda: f"the daemon ended: {self._last_words()}")
            self._boot()
            # The agent mounts what a container's engine needs; the share it has mounted while it started.
            self.guest.run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])
            self._mark("guest")
        except BaseException:
            self.close()
            raise

    def add(
        self,
        name: str,
        rootfs: str | os.PathLike[str],
        *,
        read_only: bool = False,
        volumes: Sequence[Volume] = (),
    ) -> None:
        """Give the running guest a container: its root file system is mounted into the share now.

        Raises GuestError if there is such a container, OSError for directories that cannot be mounted.
        """
        if name in self._containers:
            raise GuestError(f"there is a container {name} already")
        place = self.directory / self.runtime.writable / self.runtime.containers
        container = _Container(f"/run/bundle-{name}", place / name, [], read_only, [])
        self._containers[name] = container
        self._bind(container, rootfs, container.directory / "rootfs", read_only)
        for number, volume in enumerate(volumes):
            target = place / f"{name}-{number:016x}-{os.path.basename(volume.place)}"
            self._bind(container, volume.source, target, not volume.writable)
            container.binds.append((f"{self.in_guest}/{target.name}", volume.place, volume.writable))

    def remove(self, name: str) -> None:
        """Take a container away: unmount what it had in the share, and remove its directories.

        Raises OSError if something still holds them: EBUSY from rmdir(2) means that a mount stayed.
        """
        container = self._containers.pop(name)
        self.guest.run(["rm", "-rf", container.bundle])
        for place in reversed(container.mounts):
            _unmount(place)
            self._mounts.remove(place)
        for place in [*reversed(container.mounts), container.directory]:
            self._made.remove(place)
            place.rmdir() if place.is_dir() else place.unlink()

    def close(self) -> int | None:
        """End the guest, then the daemon as the shims do, and remove all that was made.

        Returns the exit status with which the daemon ended when its connection did, None if it had to be killed
        (the shims send SIGKILL in any case).
        """
        status = None
        try:
            self.guest.close()
        finally:
            if self._daemon is not None:
                status = self._end_daemon(self._daemon)
            for place in reversed(self._mounts):
                with contextlib.suppress(OSError):
                    _unmount(place)
            # What is mounted yet in spite of that is not touched: no tree is removed, only what was made here.
            for place in reversed(self._made):
                with contextlib.suppress(OSError):
                    place.rmdir() if place.is_dir() else place.unlink()
            shutil.rmtree(self._own, ignore_errors=True)
            self._mounts, self._made, self._containers = [], [], {}
        return status

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def daemon_pid(self) -> int:
        """The daemon's first process.  Raises GuestError if it was not started."""
        if self._daemon is None:
            raise GuestError("the daemon does not run")
        return self._daemon.pid

    # The agent's part

    @property
    def in_guest(self) -> str:
        """The guest's path of the directory in which containers' directories stand."""
        return os.path.join(IN_GUEST, self.runtime.containers).rstrip("/")

    def run(
        self,
        name: str,
        command: Sequence[str],
        *,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run `command` in the container, whose root file system is on the share, and wait for its end.

        Raises as Guest.run does.
        """
        container = self._containers[name]
        document = configuration(
            f"{self.in_guest}/{name}/rootfs",
            command,
            hostname=name,
            read_only=container.read_only,
            binds=container.binds,
        )
        # An engine cannot pivot_root away from a RAM disk; the agent has the same case with an initrd.
        script = (
            f"mkdir -p {shlex.quote(container.bundle)} && cd {shlex.quote(container.bundle)} && "
            f"printf %s {shlex.quote(document.decode())} >config.json && "
            f"exec {self.engine} {_ENGINE_OPTIONS[self.engine]} run --no-pivot {shlex.quote(name)}"
        )
        collected: list[bytes] = []

        def first_output(data: bytes) -> None:
            self._mark(name)
            (stdout or collected.append)(data)

        result = self.guest.run(script, timeout, stdout=first_output, stderr=stderr)
        return result._replace(output=b"".join(collected))

    # Inside

    def _make_directories(self) -> None:
        writable, shared = (self.directory / part for part in (self.runtime.writable, self.runtime.shared))
        self._own.mkdir(mode=0o700)
        for directory in (writable / self.runtime.containers, shared, self.directory / "private"):
            self._make(directory)
        # The sandbox's own propagation, whatever that of the file system is on which it stands.
        _mount(self.directory, self.directory, _MS_BIND)
        self._mounts.append(self.directory)
        _mount(None, self.directory, _MS_PRIVATE)
        _mount(None, self.directory, _MS_SHARED)
        _mount(writable, shared, _MS_BIND)
        self._mounts.append(shared)
        _mount(None, shared, _MS_SLAVE)
        _mount(None, shared, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)

    def _make(self, place: Path, file: bool = False) -> None:
        """Make a directory, or an empty file, and the directories above that are not there."""
        if not place.parent.exists():
            self._make(place.parent)
        if not place.exists():
            place.touch() if file else place.mkdir()
            self._made.append(place)

    def _bind(
        self, container: _Container, source: str | os.PathLike[str], target: Path, read_only: bool
    ) -> None:
        """Bind-mount `source` below the writable directory: from there it propagates to the one that is shared.

        Flags propagate with a new mount only.  So what is to be read-only is made so in private first, as the shims do.
        """
        file = not os.path.isdir(source)
        if read_only:
            private = self.directory / "private" / f"{len(self._made):x}-{target.name}"
            self._mount_at(container, source, private, file)
            _mount(None, private, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
            source = private
        self._mount_at(container, source, target, file)

    def _mount_at(
        self, container: _Container, source: str | os.PathLike[str], target: Path, file: bool
    ) -> None:
        self._make(target, file)
        _mount(source, target, _MS_BIND)
        self._mounts.append(target)
        container.mounts.append(target)

    def _start_daemon(self) -> None:
        shared = str(self.directory / self.runtime.shared)
        listener = None
        if self.runtime.listens:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.socket_path))
            listener.listen(1)
        where = str(listener.fileno()) if listener else str(self.socket_path)
        command = self._command + self.runtime.arguments(self._cache, shared, where) + self._extra
        try:
            with open(self._own / "virtiofsd.log", "wb") as log:
                self._daemon = process.start(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=2 if self._verbose and self.runtime.listens else log,
                    pass_fds=[listener.fileno()] if listener else [],
                )
        except OSError as error:
            raise GuestError(f"cannot start the daemon {command[0]}: {error.strerror}") from None
        finally:
            if listener:
                listener.close()
        self._pidfd = os.pidfd_open(self._daemon.pid)
        if not self.runtime.listens:
            self._await_sentence()

    def _await_sentence(self) -> None:
        """The Rust shim connects when a line on standard error says so, and would wait for ever for it."""
        assert self._daemon is not None
        deadline = time.monotonic() + _DAEMON_SECONDS
        while READY not in (self._own / "virtiofsd.log").read_bytes():
            if process.wait_for_end(self._daemon, 0.01):
                raise GuestError(f"the daemon ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise GuestError(f"the daemon never said {READY.decode()!r}: {self._last_words()}")

    def _boot(self) -> None:
        try:
            self.guest.start()
        except GuestError:
            if self._daemon is not None and process.wait_for_end(self._daemon, 0.0):
                raise GuestError(f"the daemon ended: {self._last_words()}") from None
            raise

    def _end_daemon(self, daemon: subprocess.Popen[bytes]) -> int | None:
        by_itself = process.wait_for_end(daemon, _END_SECONDS if "guest" in self.times else 0.0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGKILL)
        status = daemon.wait()
        self._daemon = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return status if by_itself else None

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._own / "virtiofsd.log").read_text(errors="replace").split("\n")
            return next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return "it said nothing"

    def _mark(self, what: str) -> None:
        self.times.setdefault(what, time.monotonic() - self._started)

    def _report(self, stage: str) -> None:
        if self._progress:
            self._progress(stage)


_ENGINE_OPTIONS = {"crun": "--cgroup-manager=cgroupfs", "runc": ""}


def _mount(source: str | os.PathLike[str] | None, target: Path, flags: int) -> None:
    named = None if source is None else os.fsencode(source)
    if _libc.mount(named, os.fsencode(target), None, ctypes.c_ulong(flags), None):
        error = ctypes.get_errno()
        raise OSError(error, f"cannot mount {os.fspath(source or target)}: {os.strerror(error)}")


def _unmount(target: Path) -> None:
    if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW):
        error = ctypes.get_errno()
        raise OSError(error, f"cannot unmount {target}: {os.strerror(error)}")

# SPDX-License-Identifier: Apache-2.0
"""The daemons a benchmark compares: which there are, starting them, and what they cost in time and memory."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.vhostuser.transport import Connection, TransportError, connect

START_SECONDS = 20.0
STOP_SECONDS = 10.0
PROBE_SECONDS = 0.0002  # between two attempts to connect to a daemon that starts

# Daemons that are looked for: name, where, what its --version says, and its command line.
KNOWN = (
    (
        "virtiofsd-c",
        ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"),
        "QEMU",
        "{program} --socket-path={socket} -o source={dir} -o sandbox=chroot -o cache=auto -o log_level=err",
    ),
    (
        "virtiofsd-rust",
        ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/bin/virtiofsd"),
        "virtiofsd 1.",
        "{program} --socket-path={socket} --shared-dir={dir} --sandbox=chroot --cache=auto --log-level=error",
    ),
)


class Peer(NamedTuple):
    """A daemon to measure.  `command` holds {socket} and {dir}."""

    name: str
    command: tuple[str, ...]
    version: str = ""


class StartUp(NamedTuple):
    """Seconds from starting the command: until a connection was accepted, until GETATTR was answered."""

    connected: float
    answered: float


class PeerError(Exception):
    """A daemon that does not start or dies; the text says which, and what it printed."""


def ours() -> Peer:
    """This package's own daemon."""
    from virtiofs import __version__

    program = (sys.executable, "-m", "virtiofs", "serve", "{dir}", "--socket", "{socket}")
    return Peer("virtiofs", program, f"virtiofs {__version__}")


def find() -> tuple[list[Peer], list[str]]:
    """Ours and the other daemons that are installed, and one line for each that was not found."""
    found, missing = [ours()], []
    for name, programs, sign, command in KNOWN:
        for program in programs:
            version = _version(program)
            if sign in version:
                words = (word.replace("{program}", program) for word in shlex.split(command))
                found.append(Peer(name, tuple(words), version.splitlines()[0]))
                break
        else:
            missing.append(f"{name}: not found ({' or '.join(programs)})")
    return found, missing


def parse(text: str) -> Peer:
    """A peer from NAME=COMMAND.  Raises `ValueError`."""
    name, _, command = text.partition("=")
    words = tuple(shlex.split(command))
    if not name or not words or not all(any(f in word for word in words) for f in ("{socket}", "{dir}")):
        raise ValueError(f"{text!r}: give NAME=COMMAND with {{socket}} and {{dir}} in the command")
    version = _version(words[0])
    return Peer(name, words, version.splitlines()[0] if version else "")


def _version(program: str) -> str:
    if shutil.which(program) is None:
        return ""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout or done.stderr).strip()


class RunningPeer:
    """A started daemon and the connection to it; a context manager that stops both.

    `cpus`: the processors the daemon may use.  Raises `PeerError`.
    """

    def __init__(self, peer: Peer, directory: Path, cpus: set[int] | None, queue_size: int, memory: int):
        self.peer = peer
        self._place = tempfile.TemporaryDirectory(prefix="virtiofs-bench-")
        place = Path(self._place.name)
        socket = str(place / "socket")
        self._log = place / "log"
        words = [word.replace("{socket}", socket).replace("{dir}", str(directory)) for word in peer.command]
        before = os.sched_getaffinity(0)
        try:
            with self._log.open("wb") as log:
                if cpus:
                    os.sched_setaffinity(0, cpus)  # the child inherits it, and all its threads
                begin = time.monotonic()
                try:
                    self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                except OSError as error:
                    raise PeerError(f"{peer.name}: cannot run {words[0]}: {error.strerror}") from None
                finally:
                    os.sched_setaffinity(0, before)
            connection = self._connect(socket, begin)
            connected = time.monotonic() - begin
            self.device = Device(connection, queue_size=queue_size, memory=memory)
            self.session = Session(self.device)
            self.session.getattr(1)
            self.start_up = StartUp(connected, time.monotonic() - begin)
        except BaseException:
            self.close()
            raise

    def _connect(self, socket: str, begin: float) -> Connection:
        while True:
            try:
                return connect(socket)
            except TransportError as error:
                if self.process.poll() is not None or time.monotonic() - begin > START_SECONDS:
                    log = self._log.read_text(errors="replace").strip()
                    raise PeerError(f"{self.peer.name} does not start: {error}\n{log}") from None
            time.sleep(PROBE_SECONDS)

    def __enter__(self) -> RunningPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and the daemon."""
        if hasattr(self, "device"):
            self.device.close()
        if hasattr(self, "process"):
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._place.cleanup()

    def processes(self) -> list[int]:
        """The daemon's process and all its descendants."""
        tree = [self.process.pid]
        for pid in tree:
            for task in _entries(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    tree += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        return tree

    def cpu_seconds(self) -> float:
        """Processor time the daemon used so far, user and system, all its processes and threads."""
        total = 0.0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                total += time.clock_gettime(_cpu_clock(pid))
        return total

    def private_bytes(self) -> int:
        """Memory that is the daemon's alone: private pages, clean and dirty, of all its processes."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith(("Private_Clean:", "Private_Dirty:")):
                        total += int(line.split()[1]) * 1024
        return total


def _entries(path: str) -> Sequence[str]:
    try:
        return os.listdir(path)
    except OSError:
        return ()


def _cpu_clock(pid: int) -> int:
    """The clock of a process's processor time, in ns and with ended threads (clock_getcpuclockid(3)).

    The number is built as the kernel's include/linux/posix-timers_types.h does: CPUCLOCK_SCHED of a process.
    """
    return (~pid << 3) | 2

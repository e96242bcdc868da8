# SPDX-License-Identifier: Apache-2.0
"""The daemons a benchmark compares: which there are, starting them, and what they cost in time and memory."""

from __future__ import annotations

import contextlib
import os
import platform
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

QUEUE_SIZE = 1024
MEMORY = 128 << 20  # of the guest
START_SECONDS = 20.0
STOP_SECONDS = 10.0
PROBE_SECONDS = 0.0002  # between two attempts to connect to a daemon that starts


class Peer(NamedTuple):
    """A daemon to measure.  `command` holds {socket} and {dir}; `queues` are the words that make it serve {queues}
    request queues, none if it always has one."""

    name: str
    command: tuple[str, ...]
    version: str = ""
    queues: tuple[str, ...] = ()


class Known(NamedTuple):
    """A daemon that is looked for: what its --version holds, where it may lie, and its words."""

    name: str
    sign: str
    programs: tuple[str, ...]
    command: str
    settings: tuple[
        tuple[str, str, str], ...
    ]  # a peer each: added to the name, behind and ahead of the command


KNOWN = (
    Known(
        "virtiofsd-c",
        "QEMU",
        ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"),
        "--socket-path={socket} -o source={dir} -o sandbox=chroot -o cache=auto -o xattr -o log_level=err",
        # With more threads than arenas, the allocator asks for the number of processors (sched_getaffinity), for which
        # this daemon's own seccomp filter kills it; with a limit it does not ask.
        (
            ("", "--thread-pool-size=0", ""),
            ("-pool", "--thread-pool-size=64", "/usr/bin/env MALLOC_ARENA_MAX=8"),
        ),
    ),
    Known(
        "virtiofsd-rust",
        "virtiofsd 1.",
        ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/bin/virtiofsd"),
        "--socket-path={socket} --shared-dir={dir} --sandbox=chroot --cache=auto --xattr --log-level=error",
        (("", "--thread-pool-size=0", ""), ("-pool", "--thread-pool-size=4", "")),
    ),
)
ROOT = "trixie"  # in the cache directory: where tools/trixie puts a Debian with the Rust daemon


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
    return Peer("virtiofs", program, f"virtiofs {__version__}", ("--queues", "{queues}"))


def find(cache: Path | None = None) -> tuple[list[Peer], list[str]]:
    """Ours and the other daemons that are installed or in `cache`, and one line for each that was not found."""
    found, missing = [ours()], []
    for known in KNOWN:
        candidates: list[tuple[str, ...]] = [(program,) for program in known.programs]
        if cache is not None:
            candidates += [_through_loader(cache / ROOT, program) for program in known.programs]
        for words in candidates:
            version = _version(words)
            if known.sign in version:
                for suffix, behind, ahead in known.settings:
                    command = (*shlex.split(ahead), *words, *shlex.split(known.command), *shlex.split(behind))
                    found.append(Peer(known.name + suffix, command, version.splitlines()[0]))
                break
        else:
            missing.append(
                f"{known.name}: not found ({' or '.join(known.programs)}"
                + (
                    f", also not in {cache / ROOT}; `make testbed-trixie` puts the Rust daemon there)"
                    if cache
                    else ")"
                )
            )
    return found, missing


def _through_loader(root: Path, program: str) -> tuple[str, ...]:
    """The words that run a program of another root file system with that one's libraries."""
    libraries = f"{root}/usr/lib/{platform.machine()}-linux-gnu"
    loader = next(iter(sorted(root.glob("lib64/ld-linux-*.so.*"))), root / "lib64" / "ld-linux.so")
    return str(loader), "--library-path", libraries, f"{root}{program}"


def parse(text: str) -> Peer:
    """A peer from NAME=COMMAND.  Raises `ValueError`."""
    name, _, command = text.partition("=")
    words = tuple(shlex.split(command))
    if not name or not words or not all(any(f in word for word in words) for f in ("{socket}", "{dir}")):
        raise ValueError(f"{text!r}: give NAME=COMMAND with {{socket}} and {{dir}} in the command")
    version = _version(words[:1])
    return Peer(name, words, version.splitlines()[0] if version else "")


def _version(words: tuple[str, ...]) -> str:
    if not all(os.path.exists(word) for word in words if word.startswith("/")) or not shutil.which(words[0]):
        return ""
    try:
        done = subprocess.run([*words, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout or done.stderr).strip()


class RunningPeer:
    """A started daemon and the connection to it; a context manager that stops both.

    `cpus`: the processors the daemon may use.  `queues`: request queues to use; more than one only where the peer
    has words for it.  `versions`: take the device's, if it has any.  Raises `PeerError`.
    """

    def __init__(
        self,
        peer: Peer,
        directory: Path,
        cpus: set[int] | None = None,
        queue_size: int = QUEUE_SIZE,
        memory: int = MEMORY,
        queues: int = 1,
        versions: bool = False,
    ):
        self.peer = peer
        self._place = tempfile.TemporaryDirectory(prefix="virtiofs-bench-")
        place = Path(self._place.name)
        socket = str(place / "socket")
        self._log = place / "log"
        places = {"{socket}": socket, "{dir}": str(directory), "{queues}": str(queues)}
        words = list(peer.command) + (list(peer.queues) if queues > 1 else [])
        for place_of, value in places.items():
            words = [word.replace(place_of, value) for word in words]
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
            self.device = Device(connection, queues, queue_size, memory, timeout=30.0, versions=versions)
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
        return processes(self.process.pid)

    def cpu_seconds(self) -> float:
        """Processor time the daemon used so far, user and system, all its processes and threads."""
        return cpu_seconds(self.process.pid)

    def descriptors(self) -> int:
        """Open descriptors of all its processes."""
        return sum(len(_entries(f"/proc/{pid}/fd")) for pid in self.processes())

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


def processes(pid: int) -> list[int]:
    """A process and all its descendants."""
    tree = [pid]
    for one in tree:
        for task in _entries(f"/proc/{one}/task"):
            with contextlib.suppress(OSError):
                tree += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return tree


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and its descendants used so far, user and system, all threads."""
    total = 0.0
    for one in processes(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime(_cpu_clock(one))
    return total


def _cpu_clock(pid: int) -> int:
    """The clock of a process's processor time, in ns and with ended threads (clock_getcpuclockid(3)).

    The number is built as the kernel's include/linux/posix-timers_types.h does: CPUCLOCK_SCHED of a process.
    """
    return (~pid << 3) | 2

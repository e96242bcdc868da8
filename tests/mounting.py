# SPDX-License-Identifier: Apache-2.0
"""Starts `virtiofs mount` on the real kernel, and says why that can not be tried here."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import devices
from virtiofs.fuse.mountpoint import mounts

SECONDS = 20.0
USER = 65534  # fusermount3 wants one that has a name


def unavailable(user: bool = False) -> str:
    """Empty if this user, or with `user` an ordinary one, can mount here; else why not."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if user and os.geteuid() != 0:
        return "needs root, to become another user"
    if (user or os.geteuid() != 0) and shutil.which("fusermount3") is None:
        return "fusermount3 is missing (Debian package fuse3)"
    return ""


class Mounted:
    """A running `virtiofs mount`: the shared directory, the place where it is seen, the process."""

    def __init__(self, share: Path, place: Path, process: subprocess.Popen[str]):
        self.share = share
        self.place = place
        self.process = process

    @property
    def processes(self) -> list[int]:
        """All processes of the command."""
        return descendants(self.process.pid)

    @property
    def guardian(self) -> int:
        """The process that waits to unmount."""
        return children(self.process.pid)[0]

    @property
    def worker(self) -> int:
        """The process that serves."""
        return next(pid for pid in reversed(self.processes) if has_open(pid, "/dev/fuse"))

    def requests(self) -> int:
        """Messages that the worker has read so far, and a few other reads: the difference of two looks counts."""
        text = Path(f"/proc/{self.worker}/io").read_text()
        return int(text.partition("syscr: ")[2].split()[0])

    def end(self, number: int) -> tuple[int, str]:
        """Send the command a signal: its exit status, and what it printed."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """The command's exit status once it has ended, and what it printed."""
        _, said = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, said


def has_open(pid: int, path: str) -> bool:
    """Whether a process has a descriptor of the file."""
    try:
        return any(os.readlink(fd.path) == path for fd in os.scandir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    return [pid] + [below for child in children(pid) for below in descendants(child)]


def command(*words: str | Path, user: int | None = None) -> list[str]:
    start = [sys.executable, "-m", "virtiofs"]
    if user is not None:
        start = [sys.executable, "-c", devices.AS_USER, str(user)]
    return [*start, "mount", *map(str, words)]


@contextlib.contextmanager
def mounted(
    base: Path,
    *options: str,
    user: int | None = None,
    socket: str | None = None,
    python: str | None = None,
    name: str = "place",
) -> Iterator[Mounted]:
    """`virtiofs mount` of base/share, of the device at `socket` or of the class `python`, at base/`name`.

    Both directories are made if need be.
    """
    share, place = base / "share", base / name
    for directory in (share, place):
        directory.mkdir(exist_ok=True)
        if user is not None:
            os.chown(directory, user, user)
    what = [python or share] if socket is None else ["--socket", socket]
    ready, ready_end = os.pipe()
    process = subprocess.Popen(
        command(*what, place, "--ready-fd", str(ready_end), "--log-level", "info", *options, user=user),
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[ready_end],
    )
    os.close(ready_end)
    try:
        if not select.select([ready], [], [], SECONDS)[0] or not os.read(ready, 64):
            process.kill()
            raise RuntimeError("it does not mount:\n" + process.communicate()[1])
        yield Mounted(share, place, process)
    finally:
        os.close(ready)
        if process.returncode is None:
            process.terminate()
            process.communicate(timeout=SECONDS)


def gone(mounted: Mounted, processes: list[int]) -> bool:
    """Whether neither a mount nor a process is left, now or soon."""
    return devices.wait_until(
        lambda: not mounts(str(mounted.place)) and not any(alive(pid) for pid in processes), SECONDS
    )


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be buried by whoever inherited it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

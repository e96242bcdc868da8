# SPDX-License-Identifier: Apache-2.0
"""A directory of the host, shared by our daemon with a guest, and what a test does with it from both sides."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import probe as probes
from probe import Conversation, Step, Value

import devices
from virtiofs.vm.guest import Guest, Result, Share

PROBE = "/bin/probe"  # in the guest


class Served(NamedTuple):
    """A directory of the host, the daemon that shares it, the guest that has it at `mountpoint`."""

    host: Path
    daemon: devices.RunningDevice
    guest: Guest
    mountpoint: str = "/mnt"

    def worker(self) -> int:
        """The process that has the files: the daemon's only child, or that one's, where it has walls around it."""
        pid = self.daemon.process.pid
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        return pid

    def holds(self, inodes: Collection[int]) -> set[int]:
        """Those of some host files, named by inode number, that the worker has a descriptor of."""
        device, found = self.host.stat().st_dev, set()
        for entry in os.scandir(f"/proc/{self.worker()}/fd"):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(entry.path)
                found |= {status.st_ino} if status.st_dev == device else set()
        return found & set(inodes)


class Place:
    """A directory of the share that belongs to one test: `host` here, `path` in the guest."""

    def __init__(self, served: Served, name: str):
        self.served = served
        self.guest = served.guest
        self.host = served.host / name
        self.path = f"{served.mountpoint}/{name}"

    def run(self, script: str | bytes, timeout: float = 60.0) -> Result:
        """Run a shell script in the place, as root."""
        start = f"cd {shlex.quote(self.path)} || exit 99\n"
        return self.guest.run(start.encode() + os.fsencode(script), timeout)

    def output(self, script: str | bytes, timeout: float = 60.0) -> str:
        """What a script prints, without the last newline; it must succeed."""
        result = self.run(script, timeout)
        assert result.status == 0, f"status {result.status}: {result.errors.decode(errors='replace')}"
        return result.output.decode("utf-8", "surrogateescape").removesuffix("\n")

    def wait(self, condition: str) -> None:
        """Wait until a condition of the shell holds in the guest.

        Meant for what the guest is to see within a second, for which it may trust what it knows; five are allowed.
        """
        self.output(f"n=0; until {condition}; do [ $((n += 1)) -lt 500 ] || exit 1; usleep 10000; done")

    def steps(
        self, *steps: Step, answers: Mapping[str, Callable[[], object]] | None = None, timeout: float = 60.0
    ) -> list[Value]:
        """The results of probe.c's steps, made in the place; `answers` says what a "wait" step waits for."""
        words = [b"/bin/sh", b"-c", b'cd "$0" && exec "$@"', self.path.encode()]
        ours, theirs = os.pipe()
        try:
            conversation = Conversation(answers or {}, theirs)
            stdin = ours if answers else None
            result = self.guest.run(
                words + probes.arguments(PROBE, steps), timeout, stdin=stdin, stdout=conversation
            )
        finally:
            os.close(ours)
            os.close(theirs)
        assert result.status == 0, f"status {result.status}: {result.errors.decode(errors='replace')}"
        assert len(conversation.values) == len(steps)
        return conversation.values

    def do(
        self, *steps: Step, answers: Mapping[str, Callable[[], object]] | None = None, timeout: float = 60.0
    ) -> Value:
        """The result of the last step, made after the others, which must all succeed."""
        *before, last = self.steps(*steps, answers=answers, timeout=timeout)
        failed = [
            f"{step}: {value}" for step, value in zip(steps, before, strict=False) if isinstance(value, str)
        ]
        assert not failed, "; ".join(failed)
        return last


@contextlib.contextmanager
def directory_for_a_share() -> Iterator[Path]:
    """An empty directory that everybody may enter, removed afterwards: some tests fill it."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-share-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@contextlib.contextmanager
def serve(
    directory: Path,
    probe: Path,
    daemon_options: Sequence[str] = (),
    watch: bool = True,
    **guest_options: Any,
) -> Iterator[Served]:
    """Share a directory with a guest that has it at /mnt, and the probe.

    With `watch`, whatever waits for the guest fails at once when the daemon ends.
    """
    extra = {PROBE: probe} | guest_options.pop("extra_files", {})
    with devices.start_ours(directory, daemon_options) as daemon:
        guest = Guest([Share("data", daemon.socket, "/mnt")], timeout=60, extra_files=extra, **guest_options)
        watched = os.pidfd_open(daemon.process.pid)
        if watch:
            guest.watch(watched, lambda: "the daemon ended: " + "; ".join(daemon.log[-3:]))
        try:
            with guest:
                yield Served(directory, daemon, guest)
        finally:
            os.close(watched)


@contextlib.contextmanager
def serve_with_the_hosts_programs(directory: Path, **guest_options: Any) -> Iterator[Served]:
    """Share a directory with a guest that has it at /mnt, and whose root is the host's own, read-only.

    So the guest runs this very interpreter, these tests, and whatever is installed here.
    """
    with (
        devices.start_ours(Path("/"), ["--readonly", "--cache", "always"]) as root,
        devices.start_ours(directory) as daemon,
    ):
        shares = [Share("rootfs", root.socket, "/", True), Share("data", daemon.socket, "/mnt")]
        with Guest(shares, rootfs=True, timeout=60, **guest_options) as guest:
            yield Served(directory, daemon, guest)

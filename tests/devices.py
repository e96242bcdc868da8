# SPDX-License-Identifier: Apache-2.0
"""Starts the daemons that tests speak to: ours, and virtiofsd, in C from Debian's QEMU packages and in Rust."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from virtiofs.client import peers
from virtiofs.vm.kernel import cache_directory

C_VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
DAEMONS = (
    "ours",
    "ours-unprivileged",
    "c",
    "rust",
)  # what can be sent requests; rust: only where marked also_rust
MOUNTS = ("mount", "relay")  # what programs speak to, through the host's kernel (mounting.py)
POLICED = "ours-policy"  # ours, with a policy that allows all that tests do
KINDS = (*DAEMONS, POLICED, *MOUNTS)
NOBODY = 54321  # who runs our daemon without privilege: no user of this host
# Behaviours that an ordinary user's daemon can not have, and what is in the way.
GIVES_AWAY = "only root gives files to another owner"
SWITCHES = (
    "only root creates files in the name of the guest's users; without privilege all are the daemon's user's"
)
NEEDS_PRIVILEGE = {
    "test_stat_shows_what_the_host_sees": GIVES_AWAY,
    "test_chown_changes_what_was_asked": GIVES_AWAY,
    "test_chown_of_a_link_leaves_its_target_alone": GIVES_AWAY,
    "test_a_directory_with_setgid_gives_its_group_on": GIVES_AWAY,
    "test_the_group_of_the_extension_record_is_not_needed_for_ones_own_group": GIVES_AWAY,
    "test_a_user_writes_through_a_supplementary_group": GIVES_AWAY,
    "test_what_a_user_makes_is_his": SWITCHES,
    "test_the_next_request_is_made_in_its_own_callers_name": SWITCHES,
    "test_a_user_makes_nothing_where_he_may_not_write": SWITCHES,
    "test_a_failed_creation_leaves_no_trace_of_the_caller": SWITCHES,
}
READY_SECONDS = 20.0
END_SECONDS = 10.0


class RunningDevice:
    """A daemon that listens at `socket` and serves `directory`; `log` collects what it prints."""

    def __init__(self, kind: str, directory: Path, socket: str, process: subprocess.Popen[str]):
        self.kind = kind
        self.directory = directory
        self.socket = socket
        self.process = process
        self.log: list[str] = []
        self._waiting = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))
            if "Waiting for vhost-user socket connection" in line:
                self._waiting.set()
        self._waiting.set()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def family(self) -> list[int]:
        """The daemon's process, its child, that one's child, to the last, which serves."""
        return family_of(self.process.pid)

    @property
    def worker(self) -> int:
        """The process that serves."""
        return self.family[-1]

    def wait_for_listening(self) -> None:
        """Wait for a daemon that is not ours to say that it listens (its socket file appears before that)."""
        self._waiting.wait(READY_SECONDS)
        if not self.alive or not self._waiting.is_set():
            raise RuntimeError(f"{self.kind} daemon does not listen:\n" + "\n".join(self.log))

    def stop(self) -> int:
        """SIGTERM, and SIGKILL for a daemon that does not obey; its exit status."""
        if self.alive and self.kind == "c":
            self.process.kill()  # it does not heed SIGTERM while it waits for a front end
        elif self.alive:
            self.process.terminate()
        try:
            status = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._reader.join()
        return status


def family_of(pid: int) -> list[int]:
    """A process, its only child, that one's, to the last."""
    found = [pid]
    while True:
        children = Path(f"/proc/{found[-1]}/task/{found[-1]}/children").read_text().split()
        if not children:
            return found
        assert len(children) == 1
        found.append(int(children[0]))


def available(kind: str) -> str:
    """Empty if daemons of this kind can run here, else why not."""
    if kind in ("ours", POLICED):
        return ""
    if kind == "ours-unprivileged":
        return (
            "" if os.geteuid() == 0 else "only root can become another user; `ours` is unprivileged already"
        )
    if kind == "rust":
        if rust_virtiofsd() is None:
            return "there is no virtiofsd in Rust; `make testbed-trixie` prepares one"
        return "" if os.geteuid() == 0 else "the virtiofsd in Rust needs root for its sandbox"
    if not os.access(C_VIRTIOFSD, os.X_OK):
        return f"{C_VIRTIOFSD} is missing (Debian 12 package qemu-system-common)"
    if os.geteuid() != 0:
        return f"{C_VIRTIOFSD} needs root"
    return ""


@functools.cache
def rust_virtiofsd() -> tuple[str, ...] | None:
    """The words that run the daemon in Rust, as `virtiofs bench` does: installed here, or in the cache directory."""
    found = peers.find(cache_directory())[0]
    return next((peer.command for peer in found if peer.name == "virtiofsd-rust"), None)


@contextlib.contextmanager
def start_other(
    kind: str, command: Callable[[str], Sequence[str]], directory: Path
) -> Iterator[RunningDevice]:
    """Run a daemon that is not ours.  It serves one connection and exits when that ends."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-test-") as place:
        socket = f"{place}/{kind}.sock"
        process = subprocess.Popen(
            command(socket), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        device = RunningDevice(kind, directory, socket, process)
        try:
            device.wait_for_listening()
            yield device
        finally:
            device.stop()


def start_c_virtiofsd(
    directory: Path, options: Sequence[str] = ()
) -> contextlib.AbstractContextManager[RunningDevice]:
    """Run the daemon in C on `directory`."""
    words = [
        C_VIRTIOFSD,
        "-o",
        f"source={directory}",
        "-o",
        "sandbox=chroot",
        "-o",
        "cache=auto",
        "-o",
        "xattr",
    ]
    return start_other("c", lambda socket: [*words, f"--socket-path={socket}", *options], directory)


def start_rust_virtiofsd(
    directory: Path, options: Sequence[str] = ()
) -> contextlib.AbstractContextManager[RunningDevice]:
    """Run the daemon in Rust on `directory`."""
    words = [word for word in rust_virtiofsd() or () if not word.startswith("--log-level")]
    return start_other(
        "rust",
        lambda socket: [
            *(word.format(socket=socket, dir=directory) for word in words),
            "--log-level=info",
            *options,
        ],
        directory,
    )


# Runs our command as another user, who may not be able to read this interpreter's own files: all is imported before.
AS_USER = """
import contextlib, ctypes, errno, fcntl, importlib, json, locale, os, pkgutil, resource, shutil, sys, tomllib, traceback
import virtiofs.cli.main
for module in pkgutil.walk_packages(virtiofs.__path__, "virtiofs."):
    if module.name.split(".")[1] not in ("__main__", "client", "vm"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # the adapters' libraries need not be there
            if error.name.split(".")[0] not in ("fsspec", "mfusepy", "pyfuse3"):
                raise
with contextlib.suppress(SystemExit):
    virtiofs.cli.main.main(["serve", "--help"])
virtiofs.fs.python.loading.preload()
user = int(sys.argv[1])
os.setgroups([]), os.setresgid(user, user, user), os.setresuid(user, user, user)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is ours, as after an exec
sys.exit(virtiofs.cli.main.main(sys.argv[2:]))
"""


@contextlib.contextmanager
def start_ours(
    directory: Path, options: Sequence[str] = (), user: int | None = None, wrapper: Sequence[str] = ()
) -> Iterator[RunningDevice]:
    """Run our daemon on `directory`, as another `user` if one is given.  It serves one connection after the other.

    `wrapper`: a command that runs the one behind it in its place.
    """
    with tempfile.TemporaryDirectory(prefix="virtiofs-test-") as place:
        socket = f"{place}/v.sock"
        ready, ready_end = os.pipe()
        command = [sys.executable, "-m", "virtiofs"]
        if user is not None:
            os.chown(place, user, user)
            command = [sys.executable, "-c", AS_USER, str(user)]
        command += ["serve", str(directory), "--socket", socket]
        command = [*wrapper, *command, "--ready-fd", str(ready_end), *options]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, pass_fds=[ready_end]
        )
        os.close(ready_end)
        device = RunningDevice("ours" if user is None else "ours-unprivileged", directory, socket, process)
        try:
            if not select.select([ready], [], [], READY_SECONDS)[0] or not os.read(ready, 64):
                device.process.kill()
                device.stop()
                raise RuntimeError("our daemon is not ready:\n" + "\n".join(device.log))
            yield device
        finally:
            os.close(ready)
            device.stop()


def start(
    kind: str, directory: Path, options: Sequence[str] = ()
) -> contextlib.AbstractContextManager[RunningDevice]:
    """A daemon of any kind; `options` are for its own command line."""
    if kind == "c":
        return start_c_virtiofsd(directory, options)
    if kind == "rust":
        return start_rust_virtiofsd(directory, options)
    if kind == POLICED:
        return start_policed(directory, options)
    return start_ours(directory, options, NOBODY if kind == "ours-unprivileged" else None)


# Patterns of every kind, for names that no test has.
LARGE_POLICY = """
hide = [{names}, "*.hidden-[a-z]*", "/nowhere/", "/nowhere/**/below"]
deny = ["/nowhere/denied/*", "denied-?-*"]
read-only = ["**/kept/kept-*"]
"""


def large_policy(count: int) -> str:
    """A policy of about so many patterns, none of which matches the name of a file of a test."""
    names = [f"unheard-of-{i}" for i in range(count // 2)]
    names += [f"*.unheard-of-{i}" for i in range(count // 4)]
    names += [f"unheard-of-{i}-*-[0-9]" for i in range(count // 4)]
    return LARGE_POLICY.format(names=", ".join(f'"{name}"' for name in names))


@contextlib.contextmanager
def start_policed(directory: Path, options: Sequence[str] = ()) -> Iterator[RunningDevice]:
    """Our daemon with a policy of a thousand patterns."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as policy:
        policy.write(large_policy(1000))
        policy.flush()
        with start_ours(directory, ["--policy", policy.name, *options]) as running:
            running.kind = POLICED
            yield running


@contextlib.contextmanager
def share_for(kind: str) -> Iterator[Path]:
    """An empty directory to share by a daemon of a kind: it is the daemon's user's, who can reach it."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-share-") as place:
        os.chmod(place, 0o755)
        if kind == "ours-unprivileged":
            os.chown(place, NOBODY, NOBODY)
        yield Path(place)


@contextlib.contextmanager
def as_user_of(kind: str) -> Iterator[None]:
    """Do what is done on the host as the user whom a daemon of a kind runs as."""
    if kind != "ours-unprivileged":
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def wait_until(condition: object, seconds: float = 5.0) -> bool:
    """Whether `condition()` becomes true in time; for state that no descriptor announces."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True

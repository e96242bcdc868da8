# SPDX-License-Identifier: Apache-2.0
"""A throw-away guest: boot it once, run many commands in it, throw it away.

    with Guest([Share("data", "/run/data.sock", "/mnt")]) as guest:
        guest.run(["ls", "/mnt"]).output
        guest.run("cd /mnt && sha256sum * | sort", timeout=60).status

Everything the guest needs is put together here: kernel (kernel.py), RAM disk (ramdisk.py), QEMU (qemu.py).  A
Guest is used by one thread at a time.  Nothing is left behind: QEMU dies with us, its sockets have no names,
and the files are in a directory of their own that close() removes.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from virtiofs.vm import accelerator as accelerators
from virtiofs.vm import process, qemu, ramdisk
from virtiofs.vm.errors import GuestError, GuestTimeout, PoweredOff
from virtiofs.vm.kernel import Kernel, find_kernel, newer_kernel
from virtiofs.vm.qemu import Channels, Machine, Share
from virtiofs.vm.qmp import Monitor
from virtiofs.vm.stream import Cut

__all__ = ["Guest", "GuestError", "GuestTimeout", "PoweredOff", "Result", "Share"]

Sink = Callable[[bytes], object]

_ARGUMENT_LIMIT = 131071  # bytes: MAX_ARG_STRLEN of Linux, less its NUL
_PROBE_SECONDS = 6.0  # a kernel that KVM really runs is up in less than one
_TICK_SECONDS = 0.2
_SERVICES_SECONDS = 120.0  # systemd waits for a service that does not stop for 90


class Result(NamedTuple):
    """How a command ended: its exit status as a shell tells it (128 + N for signal N), and what it wrote."""

    status: int
    output: bytes
    errors: bytes

    @property
    def text(self) -> str:
        """`output`, decoded as UTF-8."""
        return self.output.decode("utf-8", "replace")


class Guest:
    """A Linux guest in QEMU with some shares mounted.

    shares      (tag, socket path, mount point, read only?) of devices that listen already; tags differ
    kernel      an image, or None for the first one found (kernel.find_kernel)
    memory      as QEMU takes it: "512M"
    queues      request queues of each share
    timeout     seconds a boot may take, and a run() that names no other time
    rootfs      the first share becomes the root file system
    init        a program of that root file system to be process 1: the boot is its own then, and so is the power-off
    extra_files put in the RAM disk: path in the guest -> contents (bytes) or a host file or directory;
                commands do not see it if they live in a root file system of their own
    append      more words for the kernel's command line
    accelerator "kvm", "tcg", or "auto": KVM where this kernel really boots with it
    verbose     copy the guest's kernel log to our standard error
    terminal    give the guest a terminal, for interact()
    dax         use devices that can map files (QEMU 11.1; docs/dax.md); each share's daemon tells the tag then
    modules     of the kernel to load besides those that shares take; those it has built in are passed over
    devices     words for QEMU's command line that add devices
    prealloc    the host gives it all its memory before it boots
    progress    called with a word for what is being waited for, several times a second while the guest boots
    """

    def __init__(
        self,
        shares: Sequence[Share | tuple[str, str, str, bool]] = (),
        *,
        kernel: str | os.PathLike[str] | None = None,
        memory: str = "512M",
        cpus: int = 1,
        queues: int = 1,
        timeout: float = 300.0,
        rootfs: bool = False,
        init: str = "",
        extra_files: ramdisk.ExtraFiles | None = None,
        append: str = "",
        accelerator: str = "auto",
        verbose: bool = False,
        terminal: bool = False,
        progress: Callable[[str], object] | None = None,
        dax: bool = False,
        modules: Sequence[str] = (),
        devices: Sequence[str] = (),
        prealloc: bool = False,
    ) -> None:
        """Nothing is started yet.  Raises ValueError for arguments that make no guest."""
        self.shares = [Share(*share) for share in shares]
        self._check(rootfs, init, accelerator, cpus, queues)
        self.kernel_path = kernel
        self.memory = qemu.memory_size(memory)
        self.cpus = cpus
        self.queues = queues
        self.timeout = timeout
        self.rootfs = rootfs
        self.init = init
        self.extra_files = extra_files
        self.append = append
        self.accelerator = accelerator
        self.verbose = verbose
        self.dax = dax
        self.modules = [*modules]
        self.devices = [*devices]
        self.prealloc = prealloc
        self._wants_terminal = terminal
        self._progress = progress
        self._watched: dict[int, Callable[[], str]] = {}
        self._kernel: Kernel | None = None
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None
        self._sockets: dict[str, socket.socket] = {}
        self._received = b""
        self._lines: list[str] = []
        self._boot_id = ""
        self._state = "off"  # off, booting, idle, busy
        self._stage = ""
        self._sinks: dict[str, Callable[[bytes], None]] = {}
        self._feed: tuple[int, str] | None = None
        self._unsent = b""
        self._reset_expected = False
        self._log_start = 0  # where this boot begins in the console's text

    def _check(self, rootfs: bool, init: str, accelerator: str, cpus: int, queues: int) -> None:
        if rootfs and not self.shares:
            raise ValueError("a root file system needs a share")
        if init and not (rootfs and init.startswith("/")):
            raise ValueError(f"an init is a path in a root file system, as /sbin/init, not {init!r}")
        if len({share.tag for share in self.shares}) != len(self.shares):
            raise ValueError("two shares have the same tag")
        for share in self.shares:
            if not 1 <= len(os.fsencode(share.tag)) <= 36:
                raise ValueError(f"a tag has 1 to 36 bytes, not {share.tag!r}")
        for share in self.shares[1:] if rootfs else self.shares:
            if not share.mountpoint.startswith("/") or not share.mountpoint.strip("/"):
                raise ValueError(f"a mount point is a path below /, not {share.mountpoint!r}")
        if accelerator not in ("auto", "kvm", "tcg"):
            raise ValueError(f"the accelerator is auto, kvm or tcg, not {accelerator!r}")
        if cpus < 1 or queues < 1:
            raise ValueError("a guest has at least one CPU and one request queue")

    # Life

    def start(self, timeout: float | None = None) -> None:
        """Boot, mount the shares, and wait until commands can be run.

        Raises MissingPart if QEMU, a kernel or busybox is not installed, GuestTimeout after `timeout`
        seconds, GuestError if the guest cannot boot or mount.  After an error everything is cleaned up
        already.
        """
        if self._state != "off":
            raise GuestError("the guest runs already")
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        try:
            self._launch()
            self._await_ready(deadline)
        except BaseException:
            self._clean_up()
            raise

    def close(self) -> None:
        """End the guest and remove all that was made for it.  An idle guest unmounts its shares first."""
        try:
            if self._state == "idle":
                self._state = "busy"
                if self.init:
                    self._report("waiting for the guest's power-off")
                self._tell("halt")
                self._wait_for_line("halted", time.monotonic() + (_SERVICES_SECONDS if self.init else 30.0))
        except GuestError:
            pass  # it is going away in any case
        finally:
            self._clean_up()

    def wait_for_power_off(self, timeout: float | None = None) -> None:
        """Return when the guest has powered itself off.  Raises as run() does."""
        self._require_idle()
        self._state = "busy"
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        try:
            while True:
                self._pump(deadline, "the guest did not power off in time")
        except PoweredOff:
            return

    def reboot(self, orderly: bool = False, timeout: float | None = None) -> None:
        """Reset the guest and wait until it is up again with its shares mounted.

        By default this is the reset button: nothing is unmounted or synced, the devices are just reset; it
        also helps when a command hangs.  With `orderly` the guest unmounts and reboots itself.  Raises as
        start() does.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        if orderly:
            self._require_idle()
        elif self._state == "off":
            raise GuestError("the guest is not running")
        self._state = "booting"
        self._sinks.clear()
        self._reset_expected = True
        self._log_start = len(self.console())
        if orderly:
            self._tell("reboot")
        else:
            self.monitor.command("system_reset")
        self._await_ready(deadline)

    def watch(self, descriptor: int, reason: Callable[[], str]) -> None:
        """Give up with GuestError(reason()) when `descriptor` becomes readable: a needed daemon's pidfd."""
        self._watched[descriptor] = reason

    def pause(self) -> None:
        """Stop the guest's CPUs, and with them its devices' queues."""
        self.monitor.command("stop")

    def resume(self) -> None:
        """Let a paused guest go on."""
        self.monitor.command("cont")

    def __enter__(self) -> Guest:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Commands

    def run(
        self,
        command: str | bytes | Sequence[str | bytes],
        timeout: float | None = None,
        *,
        stdin: int | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> Result:
        """Run a command as root in the guest's "/", and wait for its end.

        A string is a script for the guest's /bin/sh, a sequence is an argument vector; bytes arrive as they
        are.  What it leaves running in the background goes on, and the output of that is dropped.  `stdout`
        and `stderr` are called with what is written, as it comes; without them it is collected in the result.
        `stdin` is a descriptor to read the command's input from, to its end; one run per Guest can have it.

        Raises GuestTimeout after `timeout` seconds; the command goes on then, and only reboot() or close()
        helps.  Raises GuestError if the guest stops or a watched descriptor becomes readable.  Raises
        ValueError for a command that cannot be passed: no words, a NUL, or a word of 128 KiB or more (put
        such a script in `extra_files`).
        """
        script = _script(command, "exec chroot . " if self.rootfs else "exec -- ")
        collected: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        sinks: dict[str, Sink] = {
            "stdout": stdout or collected["stdout"].append,
            "stderr": stderr or collected["stderr"].append,
        }
        if stdin is not None:
            self._feed = (stdin, "stdin")
        status = self._execute(script, "null" if stdin is None else "stdin", sinks, timeout)
        return Result(status, b"".join(collected["stdout"]), b"".join(collected["stderr"]))

    def interact(
        self, command: Sequence[str | bytes], stdin: int, stdout: Sink, timeout: float | None = None
    ) -> int:
        """Run `command` on a terminal of the guest, and give its exit status.  Raises as run() does.

        What comes from `stdin` is typed there, what it shows goes to `stdout`.  The Guest must have been made
        with `terminal`.
        """
        if not self._wants_terminal:
            raise GuestError("this guest was made without a terminal")
        columns, rows = shutil.get_terminal_size()
        enter = f"exec </dev/hvc0 >/dev/hvc0 2>&1; stty rows {rows} cols {columns}; exec setsid -c "
        script = _script(command, enter + ("chroot . " if self.rootfs else ""))
        self._feed = (stdin, "terminal")
        self._sinks["terminal"] = stdout  # type: ignore[assignment]
        return self._execute(script, "null", {}, timeout)

    def _execute(self, script: bytes, source: str, sinks: Mapping[str, Sink], timeout: float | None) -> int:
        self._require_idle()
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        nonce = secrets.token_hex(12)
        cuts = {name: Cut(nonce.encode()) for name in ("stdout", "stderr")}

        def deliver(name: str) -> Callable[[bytes], None]:
            def sink(data: bytes) -> None:
                output = cuts[name].feed(data)
                if output and name in sinks:
                    sinks[name](output)

            return sink

        self._sinks |= {name: deliver(name) for name in cuts}
        self._state = "busy"
        self._tell(f"run {nonce} {len(script)} {source}", script)
        status = self._wait_for_line(f"status {nonce} ", deadline, "the command did not end in time")
        while not all(cut.ended for cut in cuts.values()):
            self._pump(deadline, "the command's output did not end in time")
        self._sinks.clear()
        self._feed = None
        self._state = "idle"
        return int(status)

    # What else a test may want to see

    @property
    def monitor(self) -> Monitor:
        """QEMU's monitor.  Raises GuestError if the guest is not running."""
        if self._monitor is None:
            raise GuestError("the guest is not running")
        return self._monitor

    @property
    def pid(self) -> int:
        """QEMU's process id.  Raises GuestError if the guest is not running."""
        if self._process is None:
            raise GuestError("the guest is not running")
        return self._process.pid

    def console(self, lines: int | None = None) -> str:
        """The guest's kernel log so far, or its last `lines`.  "" once the guest is closed."""
        if self._directory is None:
            return ""
        try:
            text = (self._directory / "console").read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        except OSError:
            return ""
        return text if lines is None else "\n".join(text.rstrip("\n").split("\n")[-lines:])

    # Inside

    def _launch(self) -> None:
        self._report("preparing the guest")
        program = qemu.find_dax_qemu() if self.dax else qemu.Program(qemu.find_qemu())
        self._kernel = kernel = self._kernel or self._find_kernel()
        if self.accelerator == "auto":
            self.accelerator = accelerators.choose(kernel, program.path, self._boots_with_kvm)
        self._directory = Path(tempfile.mkdtemp(prefix="virtiofs-guest-"))
        image = self._directory / "ramdisk"
        image.write_bytes(
            ramdisk.build(kernel, self.shares, self.rootfs, self.extra_files, self.modules, self.init)
        )
        names = ["monitor", *qemu.PORTS] + (["terminal"] if self._wants_terminal else [])
        theirs: dict[str, socket.socket] = {}
        try:
            for name in names:
                self._sockets[name], theirs[name] = socket.socketpair()
                self._sockets[name].setblocking(False)
            machine = Machine(
                qemu=program.words,
                accelerator=self.accelerator,
                kernel=str(kernel.path),
                ramdisk=str(image),
                console=str(self._directory / "console"),
                shares=self.shares,
                channels=Channels(**{name: end.fileno() for name, end in theirs.items()}),
                memory=self.memory,
                cpus=self.cpus,
                queues=self.queues,
                append=f"{ramdisk.init_words(self.shares[0]) if self.init else ''} {self.append}".strip(),
                verbose=self.verbose,
                dax=self.dax,
                devices=self.devices,
                prealloc=self.prealloc,
            )
            self._state = "booting"
            self._report(f"booting guest ({self.accelerator.upper()})")
            with open(self._directory / "qemu.log", "wb") as log:
                self._process = process.start(
                    qemu.command_line(machine),
                    stdin=subprocess.DEVNULL,
                    stdout=2 if self.verbose else log,
                    stderr=log,
                    env=os.environ | dict(program.environment),
                    pass_fds=[end.fileno() for end in theirs.values()],
                )
        finally:
            for end in theirs.values():
                end.close()
        # QEMU aborts where KVM is broken; a core of the guest's memory would be no use to anybody.
        resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))
        self._monitor = Monitor(self._sockets.pop("monitor"))
        try:
            self._monitor.negotiate()
        except GuestError:
            self._check_alive({})  # says why QEMU ended, if it did
            raise

    def _find_kernel(self) -> Kernel:
        """The kernel that was named; with DAX rather the testbed's newer one, as older ones may not have it."""
        named = self.kernel_path or os.environ.get("VIRTIOFS_KERNEL")
        return find_kernel(named or (newer_kernel() if self.dax else None))

    def _boots_with_kvm(self) -> bool:
        trial = Guest(memory="256M", accelerator="kvm", timeout=_PROBE_SECONDS, dax=self.dax)
        trial._kernel = self._kernel
        trial._progress = lambda _: self._report("trying KVM")
        try:
            with trial:
                return trial.run(["true"], timeout=_PROBE_SECONDS).status == 0
        except GuestError:
            return False

    def _await_ready(self, deadline: float) -> None:
        late = "the guest did not boot in time"
        while True:
            identity = self._wait_for_line("boot ", deadline, late)
            if identity != self._boot_id:  # else it was said before a reset
                break
        self._boot_id = identity
        self._reset_expected = False
        self._wait_for_line("ready", deadline, late)
        self._state = "idle"

    def _require_idle(self) -> None:
        if self._state == "off":
            raise GuestError("the guest is not running")
        if self._state != "idle":
            raise GuestError("the guest is still busy with an earlier command; reboot() or close() it")

    def _report(self, stage: str) -> None:
        self._stage = stage
        if self._progress:
            self._progress(stage)

    def _tell(self, line: str, data: bytes = b"") -> None:
        """Write to the control port.  An idle guest reads it at once, so a full buffer means it is gone."""
        channel = self._sockets["control"]
        channel.settimeout(10.0)
        try:
            channel.sendall(line.encode() + b"\n" + data)
        except OSError as error:
            raise GuestError(f"the guest takes no more commands: {error}", self._details()) from None
        finally:
            channel.setblocking(False)

    def _wait_for_line(
        self, start: str, deadline: float, late: str = "the guest did not answer in time"
    ) -> str:
        """Wait for a line on the control port that begins with `start`; gives its rest."""
        while True:
            while self._lines:
                line = self._lines.pop(0)
                if line.startswith(start):
                    return line[len(start) :]
                if line.startswith("stage "):
                    self._report(line[6:])
                elif line.startswith("failed "):
                    raise self._refusal(line[7:])
            self._pump(deadline, late)

    def _refusal(self, reason: str) -> GuestError:
        if reason == "no virtiofs":
            reason = self._kernel_lacks("it has no virtiofs (CONFIG_VIRTIO_FS)")
        return GuestError(reason, self._details())

    def _kernel_lacks(self, what: str) -> str:
        if self._kernel is None:
            return what
        where = (
            ""
            if self._kernel.modules
            else f", and no modules of version {self._kernel.version} lie beside it"
        )
        return f"guest kernel {self._kernel.path}: {what}{where}; choose another --kernel"

    def _pump(self, deadline: float, late: str) -> None:
        """Wait for something to happen and take it in.  Raises GuestTimeout, or GuestError if all is lost."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise GuestTimeout(late, self._details())
        if self._progress and self._state == "booting":
            self._progress(self._stage)
            left = min(left, _TICK_SECONDS)
        poll = select.poll()
        for descriptor in [self.monitor.fileno(), *self._watched]:
            poll.register(descriptor, select.POLLIN)
        for name, channel in self._sockets.items():
            if name != "stdin":
                poll.register(channel, select.POLLIN)
        if self._feed is not None:
            if self._unsent:
                poll.register(self._sockets[self._feed[1]], select.POLLIN | select.POLLOUT)
            else:
                poll.register(self._feed[0], select.POLLIN)
        ready = dict(poll.poll(left * 1000))
        for name, channel in list(self._sockets.items()):
            events = ready.get(channel.fileno(), 0)
            if name != "stdin" and events & (select.POLLIN | select.POLLHUP):
                self._take(name, channel)
            if (
                self._feed is not None
                and name == self._feed[1]
                and events & (select.POLLOUT | select.POLLERR)
            ):
                self._send_unsent(channel)
        if self._feed is not None and not self._unsent and self._feed[0] in ready:
            self._read_feed(*self._feed)
        # Last, so that a status that came with the end of everything is not lost.
        if not self._lines:
            self._check_alive(ready)

    def _take(self, name: str, channel: socket.socket) -> None:
        try:
            data = channel.recv(262144)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            # QEMU is ending: the monitor tells the rest.
            channel.close()
            del self._sockets[name]
        elif name == "control":
            *lines, self._received = (self._received + data).split(b"\n")
            self._lines += [
                re.sub(r"^.*(?=boot \S+$)", "", line.decode("utf-8", "replace")) for line in lines
            ]
        elif name in self._sinks:
            self._sinks[name](data)

    def _read_feed(self, descriptor: int, name: str) -> None:
        self._unsent = os.read(descriptor, 65536)
        if not self._unsent:
            self._feed = None
            if name == "stdin":
                self._sockets[name].shutdown(socket.SHUT_WR)

    def _send_unsent(self, channel: socket.socket) -> None:
        try:
            self._unsent = self._unsent[channel.send(self._unsent) :]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._unsent, self._feed = b"", None

    def _check_alive(self, ready: Mapping[int, int]) -> None:
        for event in self.monitor.events():
            if event["event"] == "SHUTDOWN":
                # Before it could speak to us, init says on the console what it cannot do without.
                lacking = re.search(r"^virtiofs: (it .*)$", self.console(5), re.MULTILINE)
                message = self._kernel_lacks(lacking[1]) if lacking else "the guest powered off"
                by_itself = not lacking and event["data"].get("reason") == "guest-shutdown"
                raise (PoweredOff if by_itself else GuestError)(message, self._details())
            if event["event"] == "RESET" and event["data"].get("guest") and not self._reset_expected:
                panic = re.search(r"Kernel panic - not syncing: (.*)", self.console()[self._log_start :])
                reason = (
                    f"the guest's kernel panicked: {panic[1]}" if panic else "the guest rebooted by itself"
                )
                raise GuestError(reason, self._details())
        if self.monitor.closed:
            log = self._qemu_log()
            advice = (
                "; try the accelerator tcg" if self.accelerator == "kvm" and self._state == "booting" else ""
            )
            raise GuestError(
                f"QEMU ended{': ' + log[-1] if log else ' without a word'}{advice}", "\n".join(log)
            )
        for descriptor, why in self._watched.items():
            if descriptor in ready:
                raise GuestError(why(), self._details())

    def _qemu_log(self) -> list[str]:
        if self._directory is None:
            return []
        text = (self._directory / "qemu.log").read_bytes().decode("utf-8", "replace")
        return [line.removeprefix("qemu-system-x86_64: ") for line in text.splitlines() if line.strip()]

    def _details(self) -> str:
        return "\n".join([*self._qemu_log(), self.console(20)]).strip()

    def _clean_up(self) -> None:
        if self._process is not None:
            process.end(self._process)
        if self._monitor is not None:
            self._monitor.close()
        for channel in self._sockets.values():
            channel.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._process = self._monitor = self._directory = None
        self._sockets = {}
        self._lines, self._received, self._boot_id, self._log_start = [], b"", "", 0
        self._sinks, self._feed, self._unsent = {}, None, b""
        self._state = "off"


def _script(command: str | bytes | Sequence[str | bytes], start: str) -> bytes:
    """A line of shell that begins with `start` and goes on with the words of `command`, each quoted."""
    words = ["/bin/sh", "-c", command] if isinstance(command, (str, bytes)) else list(command)
    if not words:
        raise ValueError("there is no command to run")
    return start.encode() + b" ".join(_quote(os.fsencode(word)) for word in words) + b"\n"


def _quote(word: bytes) -> bytes:
    if b"\0" in word:
        raise ValueError("an argument of a command cannot hold a NUL")
    if len(word) > _ARGUMENT_LIMIT:
        raise ValueError(f"an argument of a command has at most {_ARGUMENT_LIMIT} bytes, not {len(word)}")
    return b"'" + word.replace(b"'", b"'\\''") + b"'"

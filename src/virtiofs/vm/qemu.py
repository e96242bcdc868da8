# SPDX-License-Identifier: Apache-2.0
"""The QEMU command line of a guest.

Measured on TCG (two 2.6 GHz cores, Debian 12's cloud kernel, QEMU 7.2), from the command to a shell in the
guest: q35 as it comes 2.4 s, without its SATA and SMBus controllers 2.1 s, i440fx 2.5 s, microvm with PCIe
2.1 s.  A kernel compressed with xz (Debian's ordinary one) needs 2.2 s more than one compressed with lz4 (the
cloud one).  So: q35, which every other user of virtio-fs has too, with the devices left out that a guest here
never uses.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from virtiofs.vm.errors import MissingPart
from virtiofs.vm.kernel import cache_directory

__all__ = [
    "PORTS",
    "Channels",
    "Machine",
    "Program",
    "Share",
    "command_line",
    "find_dax_qemu",
    "find_qemu",
    "memory_size",
]

DAX_DEVICE = "vhost-user-test-device-pci"
DAX_SINCE = (11, 1)  # when it got shared memory regions

# The ports of the virtio serial device, numbered from 1 in this order.  The kernel tells a port only once it
# answered for the ports before it, so when the control port talks, all are open.
PORTS = ("stdin", "stdout", "stderr", "control")

_PROCESSOR = {
    "kvm": "host",
    # Without ERMS and FSRM the kernel copies by words (TCG runs the "fast" string moves a byte at a time),
    # and without LA57 a page walk has one step less.
    "tcg": "max,-erms,-fsrm,-la57",
}
_ACCELERATOR = {"kvm": "kvm", "tcg": "tcg,thread=multi"}
# A throw-away guest runs nobody's secrets, and need not prove its ciphers at each boot (0.2 s on TCG).
# On a busy host TCG gives a guest too little time for its test of the timer interrupt, and the kernel panics.
_KERNEL_WORDS = {
    "kvm": "mitigations=off nokaslr cryptomgr.notests panic=-1",
    "tcg": "mitigations=off nokaslr cryptomgr.notests panic=-1 tsc=reliable no_timer_check",
}
_UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Share(NamedTuple):
    """A device to give to the guest: who serves it, and where the guest mounts it."""

    tag: str
    socket_path: str
    mountpoint: str
    read_only: bool = False


class Channels(NamedTuple):
    """Descriptors of connected sockets that QEMU inherits.  `terminal`, if given, becomes /dev/hvc0."""

    monitor: int
    stdin: int
    stdout: int
    stderr: int
    control: int
    terminal: int | None = None


class Machine(NamedTuple):
    """All that decides a command line.

    `qemu`: the words that start it.  `memory` is in bytes, `console` the file for the kernel's log.  `dax`: devices
    have a window to map files in (docs/dax.md).  `devices`: more words, as they are.  `prealloc`: the host gives the
    guest all its memory before it boots, so that none of its work waits for that.
    """

    qemu: Sequence[str]
    accelerator: str
    kernel: str
    ramdisk: str
    console: str
    shares: Sequence[Share]
    channels: Channels
    memory: int = 512 << 20
    cpus: int = 1
    queues: int = 1
    append: str = ""
    verbose: bool = False
    dax: bool = False
    devices: Sequence[str] = ()
    prealloc: bool = False


def find_qemu() -> str:
    """The path of qemu-system-x86_64.  Raises MissingPart if it is not installed."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise MissingPart(
            "no qemu-system-x86_64: install the Debian package qemu-system-x86 (or run `make testbed`)"
        )
    return qemu


class Program:
    """A QEMU: its file, the words that start it, and what it needs in its environment."""

    def __init__(self, path: str, words: Sequence[str] = (), environment: Mapping[str, str] | None = None):
        self.path = path
        self.words = words or [path]
        self.environment = environment or {}


def find_dax_qemu(environ: Mapping[str, str] = os.environ) -> Program:
    """A QEMU with a device that can map files: the installed one, or the testbed's.

    Raises MissingPart if both are too old or not there.
    """
    root = cache_directory(environ) / "trixie"
    shares = [root / "usr/share" / name for name in ("qemu", "seabios")]
    installed = shutil.which("qemu-system-x86_64")
    candidates = [Program(installed)] if installed else []
    libraries = root / "usr/lib/x86_64-linux-gnu"
    path = str(root / "usr/bin/qemu-system-x86_64")
    loader = [str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries), path]
    firmware = [word for share in shares for word in ("-L", str(share))]
    candidates.append(Program(path, [*loader, *firmware], {"QEMU_MODULE_DIR": str(libraries / "qemu")}))
    for program in candidates:
        if os.path.exists(program.path) and _has_dax_device(program):
            return program
    raise MissingPart(
        "DAX needs QEMU 11.1 or newer, with its vhost-user-test-device-pci: there is none, neither installed nor in "
        f"{root}; run `make testbed` as root on a Debian machine, or use it without --dax"
    )


def _has_dax_device(program: Program) -> bool:
    """Whether this QEMU is of a version whose generic device has shared memory regions."""
    try:
        said = subprocess.run(
            [*program.words, "-version"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
        version = re.search(r"version (\d+)\.(\d+)", said)
        return version is not None and (int(version[1]), int(version[2])) >= DAX_SINCE
    except (OSError, subprocess.TimeoutExpired):
        return False


def memory_size(text: str) -> int:
    """ "512M" -> bytes.  A number with K, M (the default) or G, as QEMU takes it.

    Raises ValueError for anything else and for less than 128 MiB, which boots no stock kernel.
    """
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"memory is given as 512M or 2G, not {text!r}")
    size = int(match[1]) * _UNITS[match[2].upper()]
    if size < 128 << 20:
        raise ValueError(f"a guest needs at least 128M of memory, not {text}")
    return size


def command_line(machine: Machine) -> list[str]:
    """The words of the command.  Values that QEMU would take apart at commas are escaped."""
    console = f"file,id=console,path={_escape(machine.console)}"
    if machine.verbose:
        # QEMU's standard output is our standard error then; error messages are still taken from the file.
        console = f"stdio,id=console,signal=off,logfile={_escape(machine.console)}"
    words = [
        *machine.qemu,
        "-accel",
        _ACCELERATOR[machine.accelerator],
        "-cpu",
        _PROCESSOR[machine.accelerator],
    ]
    words += ["-smp", str(machine.cpus), "-m", f"{machine.memory >> 10}K"]
    # vhost-user devices reach guest memory through a descriptor: it has to be shared.
    prealloc = ",prealloc=on" if machine.prealloc else ""
    words += ["-object", f"memory-backend-memfd,id=mem,size={machine.memory >> 10}K,share=on{prealloc}"]
    words += ["-machine", "q35,memory-backend=mem,sata=off,smbus=off"]
    words += ["-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-kernel", machine.kernel, "-initrd", machine.ramdisk, "-append", _append(machine)]
    words += ["-chardev", console, "-serial", "chardev:console"]
    words += [
        "-chardev",
        f"socket,id=monitor,fd={machine.channels.monitor}",
        "-mon",
        "chardev=monitor,mode=control",
    ]
    words += ["-device", "virtio-serial-pci,id=ports"]
    for number, name in enumerate(PORTS, 1):
        words += ["-chardev", f"socket,id={name},fd={getattr(machine.channels, name)}"]
        words += ["-device", f"virtserialport,bus=ports.0,nr={number},chardev={name},name=virtiofs.{name}"]
    if machine.channels.terminal is not None:
        words += ["-chardev", f"socket,id=terminal,fd={machine.channels.terminal}"]
        words += ["-device", "virtconsole,bus=ports.0,nr=0,chardev=terminal"]
    for number, share in enumerate(machine.shares):
        words += ["-chardev", f"socket,id=share{number},path={_escape(share.socket_path)}"]
        device = _dax_device(number, machine.queues) if machine.dax else None
        words += ["-device", device or _share_device(number, share, machine.queues)]
    return [*words, *machine.devices]


def _share_device(number: int, share: Share, queues: int) -> str:
    return (
        f"vhost-user-fs-pci,chardev=share{number},tag={_escape(share.tag)},"
        f"num-request-queues={queues},queue-size=1024"
    )


def _dax_device(number: int, queues: int) -> str:
    """QEMU's generic device: the one that has shared memory regions.  The tag is the daemon's own (`--tag`)."""
    return f"{DAX_DEVICE},chardev=share{number},virtio-id=26,num_vqs={queues + 1},vq_size=1024,config_size=40"


def _append(machine: Machine) -> str:
    words = ["console=ttyS0", _KERNEL_WORDS[machine.accelerator]]
    if not machine.verbose:
        words.append("quiet")
    if machine.append:
        words.append(machine.append)
    return " ".join(words)


def _escape(value: str | os.PathLike[str]) -> str:
    """QEMU's option parser reads ",," as one comma."""
    return os.fspath(value).replace(",", ",,")

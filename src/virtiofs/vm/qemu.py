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
from collections.abc import Sequence
from typing import NamedTuple

from virtiofs.vm.errors import MissingPart

__all__ = ["PORTS", "Channels", "Machine", "Share", "command_line", "find_qemu", "memory_size"]

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
_KERNEL_WORDS = {
    "kvm": "mitigations=off nokaslr cryptomgr.notests panic=-1",
    "tcg": "mitigations=off nokaslr cryptomgr.notests panic=-1 tsc=reliable",
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
    """All that decides a command line.  `memory` is in bytes, `console` the file for the kernel's log."""

    qemu: str
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


def find_qemu() -> str:
    """The path of qemu-system-x86_64.  Raises MissingPart if it is not installed."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise MissingPart(
            "no qemu-system-x86_64: install the Debian package qemu-system-x86 (or run `make testbed`)"
        )
    return qemu


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
        machine.qemu,
        "-accel",
        _ACCELERATOR[machine.accelerator],
        "-cpu",
        _PROCESSOR[machine.accelerator],
    ]
    words += ["-smp", str(machine.cpus), "-m", f"{machine.memory >> 10}K"]
    # vhost-user devices reach guest memory through a descriptor: it has to be shared.
    words += ["-object", f"memory-backend-memfd,id=mem,size={machine.memory >> 10}K,share=on"]
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
        words += ["-device", _share_device(number, share, machine.queues)]
    return words


def _share_device(number: int, share: Share, queues: int) -> str:
    return (
        f"vhost-user-fs-pci,chardev=share{number},tag={_escape(share.tag)},"
        f"num-request-queues={queues},queue-size=1024"
    )


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

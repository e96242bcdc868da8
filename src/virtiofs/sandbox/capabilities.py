# SPDX-License-Identifier: Apache-2.0
"""Capabilities (capabilities(7)) as bit masks: which there are, which we have, and giving up the others."""

import cython
from cython.cimports.libc.errno import EINVAL, errno
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.virtiofs.sandbox.host import (
    _LINUX_CAPABILITY_VERSION_3,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_CAPBSET_READ,
    SYS_capget,
    SYS_capset,
    prctl,
    syscall,
)

# By number: include/uapi/linux/capability.h.
NAMES = (
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
)


def mask(*names: str) -> int:
    """The bits of capabilities given by name: "chown", also "CAP_CHOWN".  Raises `ValueError` for an unknown one."""
    bits = 0
    for name in names:
        plain = name.lower().removeprefix("cap_")
        if plain not in NAMES:
            raise ValueError(f"there is no capability {name}; capabilities(7) lists them")
        bits |= 1 << NAMES.index(plain)
    return bits


def names(bits: int) -> list[str]:
    """The names of the capabilities in `bits`."""
    return [name for number, name in enumerate(NAMES) if bits >> number & 1]


def change(bits: int, changes: str) -> int:
    """`bits` with "+name:-name..." applied.  Raises `ValueError` for a change that makes no sense."""
    for word in changes.split(":"):
        if word[:1] not in ("+", "-"):
            raise ValueError(f"capabilities are changed by +NAME or -NAME, joined by colons, not by {word!r}")
        if word[0] == "+":
            bits |= mask(word[1:])
        else:
            bits &= ~mask(word[1:])
    return bits


def permitted() -> int:
    """The permitted capabilities of this thread."""
    header: uint32_t[2]
    data: uint32_t[6]  # effective, permitted, inheritable: low words, then high words
    header[0] = _LINUX_CAPABILITY_VERSION_3
    header[1] = 0
    if syscall(SYS_capget, header, data) != 0:
        raise OSError(errno, "capget")
    return cython.cast(object, data[1]) | cython.cast(object, data[4]) << 32


def keep(bits: int) -> int:
    """Give up every capability but those in `bits`, for good; returns what is left of them.

    The bounding set is reduced as well where that is allowed (CAP_SETPCAP).  For a process with one thread.
    Raises `OSError`.
    """
    header: uint32_t[2]
    data: uint32_t[6]
    number: cython.int
    left: object = bits & permitted()
    for number in range(64):
        if bits >> number & 1:
            continue
        if prctl(PR_CAPBSET_READ, number, 0, 0, 0) < 0 and errno == EINVAL:
            break  # the kernel's last was before
        if prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # not privileged: then no_new_privs sees to it that the set gives nothing
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header[0] = _LINUX_CAPABILITY_VERSION_3
    header[1] = 0
    data[0] = data[1] = left & 0xFFFFFFFF
    data[3] = data[4] = left >> 32
    data[2] = data[5] = 0
    if syscall(SYS_capset, header, data) != 0:
        raise OSError(errno, "capset")
    return left

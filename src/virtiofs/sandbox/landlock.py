# SPDX-License-Identifier: Apache-2.0
"""Landlock: paths, ports and processes that this process may not touch whatever its user may (landlock(7)).

A rule allows what lies below one directory, later mounts included, since the kernel walks from the opened
file up to the root.  A file that was reached by file handle may have no way up (a disconnected dentry) and
would be refused; so where handles are used only the network and other processes are walled off.
"""

import os

import cython
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.virtiofs.sandbox.host import (
    SYS_LANDLOCK_ADD_RULE,
    SYS_LANDLOCK_CREATE_RULESET,
    SYS_LANDLOCK_RESTRICT_SELF,
    PathBeneath,
    RulesetAttributes,
    syscall,
)

# LANDLOCK_ACCESS_FS_*, by bit: include/uapi/linux/landlock.h.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_BLOCK = 1 << 11
# What is known since which ABI: rights on files, rights on the network, scopes; and the size of the attributes.
LEVELS = (
    (1, (1 << 13) - 1, 0, 0, 8),
    (2, (1 << 14) - 1, 0, 0, 8),  # REFER: to link and rename from one directory to another
    (3, (1 << 15) - 1, 0, 0, 8),  # TRUNCATE
    (4, (1 << 15) - 1, 3, 0, 16),  # BIND_TCP, CONNECT_TCP
    (5, (1 << 16) - 1, 3, 0, 16),  # IOCTL_DEV
    (6, (1 << 16) - 1, 3, 3, 24),  # ABSTRACT_UNIX_SOCKET, SIGNAL
)
IOCTL_DEV = 1 << 15
CREATE_RULESET_VERSION = cython.declare(cython.int, 1)
RULE_PATH_BENEATH = cython.declare(cython.int, 1)
# Version 1 forbids every rename and link from one directory to another.
LEAST_VERSION = 2


def version() -> int:
    """The kernel's Landlock ABI version; 0 if it has none."""
    found: cython.long = syscall(SYS_LANDLOCK_CREATE_RULESET, cython.NULL, 0, CREATE_RULESET_VERSION)
    return max(found, 0)


def restrict(directory: str, read_only: bool, network: bool = False) -> bool:
    """Touch nothing outside `directory` any more ("": any file), no network unless `network`, and no other process.

    False if the kernel can not do it.  Needs no_new_privs.  Raises `OSError`.
    """
    attributes: RulesetAttributes
    rule: PathBeneath
    found: object = version()
    if found < LEAST_VERSION:
        return False
    _, files, ports, scopes, size = max(level for level in LEVELS if level[0] <= found)
    if network:
        ports = 0
    if not directory and not ports and not scopes:
        return False
    attributes.handled_fs = files if directory else 0
    attributes.handled_net = ports
    attributes.scoped = scopes
    ruleset: cython.int = syscall(SYS_LANDLOCK_CREATE_RULESET, cython.address(attributes), size_of(size), 0)
    if ruleset < 0:
        raise OSError(errno, "landlock_create_ruleset")
    try:
        if directory:
            parent: cython.int = os.open(directory, os.O_PATH | os.O_CLOEXEC)
            rule.parent = parent
            rule.allowed = READ_FILE | READ_DIR if read_only else files & ~(EXECUTE | MAKE_BLOCK | IOCTL_DEV)
            failed: cython.bint = (
                syscall(SYS_LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, cython.address(rule), 0) != 0
            )
            os.close(parent)
            if failed:
                raise OSError(errno, "landlock_add_rule")
        if syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
            raise OSError(errno, "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return True


@cython.cfunc
def size_of(size: uint64_t) -> uint64_t:
    return size

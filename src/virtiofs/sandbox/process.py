# SPDX-License-Identifier: Apache-2.0
"""The life of the serving process: bound to its parent's, and its limits."""

import os
import resource

from cython.cimports.libc.errno import errno
from cython.cimports.libc.signal import SIGKILL

# /proc/sys/fs/nr_open may allow more; a share has no use for it.
MOST_DESCRIPTORS = 1_000_000


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when process `parent`, which forked it, ends (prctl(2),
    PR_SET_PDEATHSIG).

    Raises `OSError` if the kernel refuses, `ProcessLookupError` if the parent is gone already.
    """
    if prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0:
        raise OSError(errno, "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise ProcessLookupError("the supervisor ended while its worker started")


def shed_privilege() -> None:
    """Give up supplementary groups (CVE-2022-0358) and the umask, which is the guest's business."""
    os.umask(0)
    try:
        os.setgroups([])
    except PermissionError:
        pass  # not privileged: then the groups give nothing that the user does not have


def set_descriptor_limit(limit: int = 0) -> int:
    """Let this process have `limit` descriptors (0: as many as is allowed and useful); returns how many it may have.

    Raises `OSError` or `ValueError` if a limit that was asked for is not allowed.
    """
    if limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        return limit
    with open("/proc/sys/fs/nr_open") as file:
        ceiling: int = min(int(file.read()), MOST_DESCRIPTORS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (ceiling, hard):
        if wanted <= soft:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
            return wanted
        except (ValueError, OSError):
            continue  # without privilege the hard limit is the end
    return soft

# SPDX-License-Identifier: Apache-2.0
"""Whether a file system tells soon enough what a file takes, for a quota to be kept there."""

from __future__ import annotations

import os
from errno import EISDIR, EOPNOTSUPP

__all__ = ["check_counting"]

PROBE = 65536  # bytes


def check_counting(root: int, directory: str) -> None:
    """Raises `OSError` if st_blocks of a file in the directory `root` does not show what was just written to it."""
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=root)
    except OSError as error:
        if error.errno in (EOPNOTSUPP, EISDIR):
            raise OSError(
                EOPNOTSUPP, "no quota can be kept: the file system has no O_TMPFILE to try it", directory
            ) from None
        return  # nothing can be made here; what can be below is the guest's to find out
    try:
        if os.write(fd, os.urandom(PROBE)) == PROBE and os.fstat(fd).st_blocks * 512 < PROBE:
            raise OSError(
                EOPNOTSUPP,
                "no quota can be kept: the file system tells too late what a file takes; use its own quotas",
                directory,
            )
    except OSError as error:
        if error.errno == EOPNOTSUPP:
            raise
    finally:
        os.close(fd)

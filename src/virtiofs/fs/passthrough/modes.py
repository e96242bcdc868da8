# SPDX-License-Identifier: Apache-2.0
"""What `--cache` promises (docs/caching.md), in the words of FUSE."""

from __future__ import annotations

from typing import NamedTuple

from virtiofs.fuse.abi import CONSTANTS

__all__ = ["CACHE_MODES", "CacheMode", "cache_mode"]


class CacheMode(NamedTuple):
    """What a guest may keep, and for how long."""

    valid: float  # seconds for which names and attributes are trusted
    readdirplus: bool = (
        True  # attributes with directory entries: of use only if they may be trusted for a while
    )
    open_file: int = 0  # FOPEN_* of files
    open_to_write: int = 0  # more of them for files that are opened only for writing
    open_directory: int = 0  # FOPEN_* of directories
    init_flags: int = 0  # FUSE_* of INIT
    unopened: bool = (
        False  # what is only read need not be opened: what OPEN would say is what the guest assumes
    )


DAY = 86400.0
DIRECT = CONSTANTS["FOPEN_DIRECT_IO"]
KEEP = CONSTANTS["FOPEN_KEEP_CACHE"]
KEEP_DIRECTORY = KEEP | CONSTANTS["FOPEN_CACHE_DIR"]
SYMLINKS = CONSTANTS["FUSE_CACHE_SYMLINKS"]
CACHE_MODES = {
    "never": CacheMode(0.0, readdirplus=False, open_file=DIRECT),
    "metadata": CacheMode(DAY, open_file=DIRECT, open_directory=KEEP_DIRECTORY, init_flags=SYMLINKS),
    # What is written and not read through the same handle is dropped by the next open in any case: it goes past the
    # guest's page cache, which spares it two thirds of the work.
    "auto": CacheMode(1.0, open_to_write=DIRECT),
    # The second is all there is where the host's changes are not known.
    "adaptive": CacheMode(1.0, open_to_write=DIRECT),
    "always": CacheMode(
        DAY, open_file=KEEP, open_directory=KEEP_DIRECTORY, init_flags=SYMLINKS, unopened=True
    ),
}


def cache_mode(name: str) -> CacheMode:
    """A row of `CACHE_MODES`.  Raises `ValueError` for a name that has none."""
    if name not in CACHE_MODES:
        raise ValueError(f"a cache mode is one of {', '.join(CACHE_MODES)}, not {name}")
    return CACHE_MODES[name]

# SPDX-License-Identifier: Apache-2.0
"""Programs of a newer Debian: run in its root file system, of which they change nothing."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from virtiofs.vm.kernel import cache_directory

# What does not end in time leaves no process behind: timeout(1) ends all that the shell started.
ALONE = (
    *("timeout", "--kill-after=10", "220"),
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
)

# $1 is that Debian, in which what is written stays in memory, $2 the test's own directory, seen in there as well.
_ENTER = """
    set -eu
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
    cd /mnt/root
    for directory in /dev /proc /sys; do mount --rbind "$directory" ".$directory"; done
    mkdir -p ".$2"
    mount --bind "$2" ".$2"
    shift 2
    exec chroot . /bin/sh -c "$@"
"""


def command(root: Path, directory: Path, script: str) -> list[str]:
    """Run `script` as a shell of `root` does; words that are added to the command are $1 and so on."""
    return [*ALONE, textwrap.dedent(_ENTER), "sh", str(root), str(directory), textwrap.dedent(script), "sh"]


def prepared(name: str, part: str, *programs: str) -> Path:
    """The root file system `name` of the cache directory; skips the test if `tools/trixie part` has yet to make it."""
    root = cache_directory() / name
    missing = [program for program in programs if not (root / program).exists()]
    if missing:
        pytest.skip(f"no {missing[0]} in {root}: as root, `tools/trixie {part}` prepares it")
    return root

# SPDX-License-Identifier: Apache-2.0
"""Whole suites inside a guest, which has the host's root file system and with it this interpreter and these tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shares import Served, directory_for_a_share, serve_with_the_hosts_programs

pytestmark = pytest.mark.guest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with (
        directory_for_a_share() as directory,
        serve_with_the_hosts_programs(directory, memory="1G") as served,
    ):
        yield served


def run_python(served: Served, *words: str, timeout: float) -> None:
    """Run this interpreter in the guest with the repository as its directory; what it says is shown if it fails."""
    environment = [
        f"{name}={value}"
        for name, value in {
            "PYTHONPATH": REPOSITORY / "src",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": os.environ["PATH"],
            "HOME": "/dev/shm",
            "TMPDIR": "/dev/shm",
        }.items()
    ]
    command = ["/usr/bin/env", "-C", str(REPOSITORY), *environment, sys.executable, *words]
    result = served.guest.run(command, timeout)
    assert result.status == 0, "\n" + result.text + result.errors.decode(errors="replace")


def test_every_posix_behaviour_holds_in_a_guest(served: Served) -> None:
    lean = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest"]
    run_python(
        served, "-m", "pytest", "-q", "--tb=short", *lean, "--mountpoint", "/mnt", "tests/posix", timeout=900
    )
    assert os.listdir(served.host) == []
    assert served.daemon.log == []


def test_every_posix_behaviour_holds_in_a_guest_on_a_tree_in_memory_written_in_python() -> None:
    what = Path(f"{REPOSITORY / 'examples' / 'memory.py'}:MemoryFilesystem")
    with serve_with_the_hosts_programs(what, memory="1G") as served:
        lean = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest"]
        words = ["-m", "pytest", "-q", "--tb=short", *lean, "--mountpoint", "/mnt", "tests/posix"]
        run_python(served, *words, timeout=900)
        assert served.daemon.log == []


# A minute's worth of what `make heavy` does on a mount of the host.
HEAVY = {
    "cpython": ("test_tempfile",),
    "sqlite": ("wal",),
    "stress": ("fallocate", "getdent", "rename", "xattr"),
    "fio": ("psync randwrite", "mmap randrw"),
}


@pytest.mark.parametrize("suite", HEAVY)
def test_a_slice_of_a_heavy_suite_passes_in_a_guest(served: Served, suite: str) -> None:
    only = [word for case in HEAVY[suite] for word in ("--only", case)]
    run_python(served, "tests/heavy/run", "/mnt", "--suite", suite, *only, timeout=600)
    assert os.listdir(served.host) == []
    assert served.daemon.log == []

# SPDX-License-Identifier: Apache-2.0
"""A guest on a workspace: it changes what it likes, and the directory stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

VIRTIOFS = [sys.executable, "-m", "virtiofs"]


def virtiofs(*words: object) -> str:
    done = subprocess.run(
        [*VIRTIOFS, *map(str, words)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_guest_changes_is_kept_apart_until_it_is_committed(tmp_path: Path) -> None:
    directory, place = tmp_path / "directory", tmp_path / "workspace"
    (directory / "old").mkdir(parents=True)
    (directory / "old" / "file").write_text("old\n")
    (directory / "program").write_text("1\n")
    share = ("--share", f"{directory}:/mnt", "--workspace", place, "--", "sh", "-ec")
    # A file that is written stays the file that was open: both ends of one copy see what the other writes.
    first = virtiofs(
        "run",
        *share,
        "cd /mnt; exec 3<program 4>>program; echo 2 >&4; cat <&3; cat program; rm -r old; mkdir new; echo x >new/file",
    )
    assert first == "1\n2\n1\n2\n"
    assert sorted(path.name for path in directory.iterdir()) == ["old", "program"]
    assert (directory / "program").read_text() == "1\n"
    assert virtiofs("workspace", "diff", place) == "A new/\nA new/file\nD old\nM program\n"
    # It goes on where it ended.
    assert virtiofs("run", *share, "cat /mnt/new/file; ls /mnt") == "x\nnew\nprogram\n"
    virtiofs("workspace", "commit", place)
    assert sorted(path.name for path in directory.iterdir()) == ["new", "program"]
    assert (directory / "program").read_text() == "1\n2\n"
    assert virtiofs("workspace", "diff", place) == ""

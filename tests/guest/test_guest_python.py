# SPDX-License-Identifier: Apache-2.0
"""A file system in Python as a guest sees it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.guest

# Exercises names, data, links and an open file without a name, and says what is left.
WORK = """
set -e
cd /m
mkdir d
echo data >d/a
ln d/a d/b
ln -s b d/l
mv d/a c
exec 3<c
rm c d/b
cat <&3
ls d
dd if=/dev/zero of=big bs=64k count=20 2>/dev/null
stat -c %s big
dd if=/dev/zero of=more bs=64k count=64 2>/dev/null || echo full
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virtiofs", "run", "--timeout", "60", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


def test_file_systems_of_others_are_read_in_a_guest(tmp_path):
    for needed in ("fsspec", "ratarmount"):
        pytest.importorskip(needed)
    data = os.urandom(3_000_000)
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/file", data)
    words = [f"zip://{tmp_path / 'a.zip'}:/zip", f"file://{tmp_path / 'tree'}:/local", "memory://:/memory"]
    words = [word for share in (*words, "ratarmount.FuseMount:FuseMount:/tar") for word in ("--share", share)]
    words += ["--option", f"pathToMount={tmp_path / 'a.zip'}", "--option", f"mountPoint={tmp_path}"]
    done = run(*words, "--", "sh", "-c", "cp -r /zip/deep /memory && md5sum /*/deep/file | sort")
    expected = hashlib.md5(data).hexdigest()
    said = [line.split() for line in done.stdout.splitlines()]
    names = ["/local/deep/file", "/memory/deep/file", "/tar/deep/file", "/zip/deep/file"]
    assert sorted(said) == [[expected, name] for name in names], done.stderr


def test_a_tree_in_memory_works_in_a_guest():
    share = f"{EXAMPLES / 'memory.py'}:MemoryFilesystem:/m"
    done = run("--share", share, "--option", "size=4194304", "--", "sh", "-c", WORK)
    assert (done.returncode, done.stdout) == (0, "data\nl\n1310720\nfull\n"), done.stderr

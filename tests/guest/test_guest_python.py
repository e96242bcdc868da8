# SPDX-License-Identifier: Apache-2.0
"""A file system in Python as a guest sees it."""

from __future__ import annotations

import subprocess
import sys
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


def test_a_tree_in_memory_works_in_a_guest():
    share = f"{EXAMPLES / 'memory.py'}:MemoryFilesystem:/m"
    command = [sys.executable, "-m", "virtiofs", "run", "--timeout", "60", "--share", share]
    command += ["--option", "size=4194304", "--", "sh", "-c", WORK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (0, "data\nl\n1310720\nfull\n"), done.stderr

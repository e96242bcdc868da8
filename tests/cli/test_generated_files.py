# SPDX-License-Identifier: Apache-2.0
"""Manual pages and shell completions say what the option tables say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tool", ["manual", "completions"])
def test_generated_files_are_those_of_the_tables(tool: str) -> None:
    if tool == "completions":
        pytest.importorskip("shtab")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / tool, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("man") is None, reason="there is no man (Debian package man-db)")
def test_troff_has_nothing_to_say_about_a_page() -> None:
    for page in sorted((ROOT / "man").glob("*.1")):
        done = subprocess.run(
            ["man", "--warnings", "-l", str(page)],
            capture_output=True,
            text=True,
            check=False,
            env={"LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "PATH": "/usr/bin:/bin"},
        )
        said = [
            line for line in done.stderr.splitlines() if "adjust" not in line and "break line" not in line
        ]
        assert done.returncode == 0 and not said, page


@pytest.mark.parametrize("name", ["virtiofs", "virtiofsd"])
def test_bash_completes_options_and_values(name: str) -> None:
    words = {"virtiofs": ["virtiofs", "serve", "--cache", "al"], "virtiofsd": ["virtiofsd", "--sand"]}[name]
    script = f"""
        source {ROOT}/contrib/completions/bash/{name}
        COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
        _shtab_{name} {words[0]} {words[-1]} {words[-2]}
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == {"virtiofs": ["always"], "virtiofsd": ["--sandbox"]}[name], done.stderr

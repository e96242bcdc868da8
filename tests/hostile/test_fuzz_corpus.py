# SPDX-License-Identifier: Apache-2.0
"""The inputs that fuzzing kept, once more: each target's oracle holds on this build (see docs/fuzzing.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import virtiofs

ROOT = Path(__file__).resolve().parents[2]
NO_NAMESPACES = 77


@pytest.mark.parametrize("target", ["rings", "requests", "races", "vhostuser", "channel"])
def test_kept_inputs_lead_to_no_finding(target, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment["PYTHONPATH"] = f"{Path(virtiofs.__file__).parents[1]}:{ROOT}"
    words = [sys.executable, "-m", "fuzz", target, "--replay", str(ROOT / "fuzz" / "corpus" / target)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode == NO_NAMESPACES:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-6000:]
    assert "no finding" in done.stdout

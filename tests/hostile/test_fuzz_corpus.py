# SPDX-License-Identifier: Apache-2.0
"""A short slice of fuzzing: what `make fuzz` kept, and inputs made from that; each target's oracle holds on this build.

See docs/fuzzing.md.  The inputs are the same in every run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import virtiofs

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "fuzz" / "corpus"
NO_NAMESPACES = 77
TARGETS = ("rings", "requests", "races", "vhostuser", "channel")
MADE = {"rings": 1200, "requests": 1200, "races": 150, "vhostuser": 1200, "channel": 1200}


def replay(target: str, directory: Path, scratch: Path) -> None:
    """Give a target every input of a directory; fails with what it says of a finding."""
    environment = {**os.environ, "TMPDIR": str(scratch)}
    environment["PYTHONPATH"] = f"{Path(virtiofs.__file__).parents[1]}:{ROOT}"
    words = [sys.executable, "-m", "fuzz", target, "--replay", str(directory)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode == NO_NAMESPACES:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-6000:]
    assert "no finding" in done.stdout


def made_from(kept: list[bytes], generator: random.Random) -> bytes:
    """An input like those that were kept: the beginning of one, the end of another, and some bytes changed."""
    one, other = generator.choice(kept), generator.choice(kept)
    data = bytearray(one[: generator.randint(0, len(one))] + other[generator.randint(0, len(other)) :])
    for _ in range(generator.randint(0, 8)):
        if data:
            data[generator.randrange(len(data))] = generator.choice(
                (0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256))
            )
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs_lead_to_no_finding(target, tmp_path):
    replay(target, CORPUS / target, tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_made_from_them_lead_to_no_finding(target, tmp_path):
    generator = random.Random(f"{target} 26")
    kept = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for number in range(MADE[target]):
        (inputs / f"{number:04}").write_bytes(made_from(kept, generator))
    replay(target, inputs, tmp_path)

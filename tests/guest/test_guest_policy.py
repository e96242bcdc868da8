# SPDX-License-Identifier: Apache-2.0
"""`virtiofs run` with a policy for each share, and what an audit then has of the guest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest


def virtiofs(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "virtiofs", *words], capture_output=True, text=True, timeout=90
    )


def test_each_share_of_a_guest_has_its_policy_and_its_audit(tmp_path: Path) -> None:
    for tag in ("a", "b"):
        (tmp_path / tag).mkdir()
        for name in ("one", "two"):
            (tmp_path / tag / name).write_text(f"{name} of {tag}")
    (tmp_path / "a.toml").write_text('hide = ["one"]\n')
    (tmp_path / "all.toml").write_text('read-only = ["two"]\n')
    (tmp_path / "audit").mkdir()
    words = ["--share", f"{tmp_path}/a:/a:policy={tmp_path}/a.toml", "--share", f"{tmp_path}/b:/b"]
    words += ["--policy", f"{tmp_path}/all.toml", "--audit", f"{tmp_path}/audit"]
    script = "ls /a /b; echo x >/a/two; echo x 2>/dev/null >/b/two || echo refused"
    done = virtiofs("run", "--timeout", "60", *words, "--", "sh", "-c", script)
    assert done.stdout.split() == ["/a:", "two", "/b:", "one", "two", "refused"], done.stderr
    assert (tmp_path / "a/two").read_text() == "x\n" and (tmp_path / "b/two").read_text() == "two of b"
    for tag, name, operation, result in (
        ("share0", "two", "write", "ok"),
        ("share1", "two", "open", "EROFS"),
    ):
        path = tmp_path / "audit" / f"{tag}.jsonl"
        said = virtiofs("audit", "verify", str(path))
        assert said.returncode == 0, said.stderr
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert records[-1]["note"] == "end"
        assert [name, operation, result] in [
            [record.get(key) for key in ("path", "operation", "result")] for record in records
        ]

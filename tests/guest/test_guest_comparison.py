# SPDX-License-Identifier: Apache-2.0
"""`virtiofs bench-guest`: one guest has virtio-fs, 9p and a disk image, and does the same on each."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from virtiofs.vm.kernel import cache_directory

pytestmark = pytest.mark.guest

BENCH = [sys.executable, "-m", "virtiofs", "bench-guest"]
TARGETS = ("virtiofs", "9p-mmap", "ext4-image")
WORKS = ("find and stat, warm", "create files of 4 KiB")


def test_the_same_work_is_measured_on_each_target(tmp_path: Path) -> None:
    if not (cache_directory() / "kernel-amd64").exists():
        pytest.skip("no kernel with 9p: tools/testbed --flavour amd64 unpacks one (make testbed)")
    words = [*(f"--target={name}" for name in TARGETS), *(f"--work={name}" for name in WORKS)]
    files = {kind: tmp_path / kind for kind in ("json", "markdown", "html")}
    ended = subprocess.run(
        [*BENCH, "--quick", *words, *(f"--{kind}={path}" for kind, path in files.items())],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(files["json"].read_text())["rows"]
    assert {(row["target"], row["work"]) for row in rows} == {(t, w) for t in TARGETS for w in WORKS}
    assert all(row["seconds"] > 0 for row in rows)
    for work in WORKS:
        assert re.search(
            rf"^\| {re.escape(work)} \| [0-9.]+ \| [0-9.]+ \| [0-9.]+ \|$",
            files["markdown"].read_text(),
            re.M,
        )
    assert files["html"].read_text().count("<svg") == 2


def test_what_there_is_not_is_a_usage_error() -> None:
    listed = subprocess.run([*BENCH, "--list"], capture_output=True, text=True, check=True).stdout
    assert {*TARGETS, *WORKS} <= set(listed.splitlines())
    refused = subprocess.run([*BENCH, "--target", "nothing"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "no target nothing" in refused.stderr

# SPDX-License-Identifier: Apache-2.0
"""A policy that is read again, as the host's own kernel sees it, which keeps what it knows until it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import devices
import mounting

pytestmark = pytest.mark.skipif(bool(mounting.unavailable()), reason=mounting.unavailable())


@pytest.mark.parametrize("options", [["--cache", "always"], ["--cache", "auto", "--metadata-table"]])
def test_names_and_pages_that_the_kernel_keeps_are_gone_with_the_next_policy(
    tmp_path: Path, options: list[str]
) -> None:
    policy, control = tmp_path / "p.toml", tmp_path / "control"
    policy.write_text("")
    share = tmp_path / "share"
    (share / "d").mkdir(parents=True)
    for name in ("hidden", "denied", "kept", "d/hidden"):
        (share / name).write_text(name)
    with mounting.mounted(tmp_path, "--policy", str(policy), "--control", str(control), *options) as mounted:
        place = mounted.place
        for name in ("hidden", "denied", "kept", "d/hidden"):
            assert (place / name).read_text() == name
        assert sorted(os.listdir(place)) == ["d", "denied", "hidden", "kept"]
        with open(place / "kept") as kept, open(place / "hidden") as opened:
            policy.write_text('hide = ["hidden"]\ndeny = ["denied"]\n')
            words = [sys.executable, "-m", "virtiofs", "ctl", str(control), "reload-policy"]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            assert done.stdout == f"{place}\n"
            assert devices.wait_until(lambda: not (place / "hidden").exists())
            assert devices.wait_until(lambda: not (place / "d/hidden").exists())
            assert sorted(os.listdir(place)) == ["d", "denied", "kept"]
            with pytest.raises(PermissionError):
                (place / "denied").read_text()
            assert (kept.read(), opened.read()) == ("kept", "hidden")
        policy.write_text("")
        mounted.process.send_signal(signal.SIGHUP)
        assert devices.wait_until((place / "hidden").exists)
        assert (place / "denied").read_text() == "denied"
        assert mounted.end(signal.SIGTERM)[0] == 0


def test_a_mount_without_a_policy_ends_on_sighup(tmp_path: Path) -> None:
    with mounting.mounted(tmp_path) as mounted:
        assert mounted.end(signal.SIGHUP)[0] == 0

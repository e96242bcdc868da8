# SPDX-License-Identifier: Apache-2.0
"""Locks of the drop-in `virtiofsd`: what somebody who may add words to its command line can not change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from virtiofs.cli import virtiofsd
from virtiofs.cli.locked import read_lock
from virtiofs.cli.virtiofsd_options import Refused, UsageError

ROOT = Path(__file__).resolve().parent.parent.parent
SANDBOX = "/run/kata-containers/shared/sandboxes/0123abcd"
GO = ["--syslog", "--cache=auto", f"--shared-dir={SANDBOX}/shared", "--fd=3", "--thread-pool-size=1"]
RUST = [
    *("--socket-path", "/run/kata/0123abcd/root/virtiofsd.sock", "--shared-dir", f"{SANDBOX}/ro"),
    *("--cache", "auto", "--thread-pool-size=1", "-o", "announce_submounts"),
]


@pytest.fixture
def kata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The lock that is shipped for Kata, as the machine's own."""
    lock = tmp_path / "locked.toml"
    lock.write_bytes((ROOT / "contrib" / "kata" / "locked.toml").read_bytes())
    lock.chmod(0o644)
    monkeypatch.setattr(virtiofsd, "SYSTEM_LOCK", str(lock))
    return lock


def lock(directory: Path, text: str) -> str:
    path = directory / "lock.toml"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("line", [GO, RUST], ids=["go", "rust"])
def test_what_the_runtimes_pass_is_allowed_and_the_walls_are_up(kata: Path, line: list[str]) -> None:
    settings = virtiofsd.parse(line)
    assert (settings.sandbox, settings.seccomp, settings.modcaps) == ("namespace", "kill", "")
    assert settings.shared_dir is not None
    assert settings.shared_dir.startswith(SANDBOX)


@pytest.mark.parametrize(
    "added",
    [
        ["-o", "source=/"],
        ["-o", "source=/", "--no-announce-submounts", "--sandbox=none"],
        ["--sandbox=none"],
        ["--sandbox", "chroot"],
        ["-o", "sandbox=chroot"],
        ["--seccomp=none"],
        ["--modcaps=+sys_admin"],
        ["-o", "modcaps=+dac_override"],
        ["--no-announce-submounts"],
        ["--inode-file-handles=mandatory"],
        ["--rlimit-nofile=1000000"],
        ["--translate-uid=map:0:0:1"],
        ["--xattrmap=:map::user.virtiofs.:"],
        ["--socket-group=users"],
        ["--writeback"],
        ["-d"],
    ],
    ids=" ".join,
)
def test_added_arguments_loosen_nothing(kata: Path, added: list[str]) -> None:
    with pytest.raises((Refused, UsageError)):
        virtiofsd.parse([*GO, *added])


@pytest.mark.parametrize(
    "directory",
    [
        "/",
        "/etc",
        SANDBOX,
        f"{SANDBOX}/shared/../../..",
        f"{SANDBOX}/mounts",
        "/run/kata-containers/shared/sandboxes/../shared",
        "/run/kata-containers/shared/sandboxes/./shared",
        f"{SANDBOX}/x/shared",
        "/run/kata-containers/shared/sandboxes//shared",
    ],
)
def test_only_sandboxes_directories_are_shared(kata: Path, directory: str) -> None:
    with pytest.raises(Refused, match=r"locked\.toml"):
        virtiofsd.parse(["--cache=auto", f"--shared-dir={directory}", "--fd=3"])


def test_a_link_in_an_allowed_place_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "shares").mkdir()
    (tmp_path / "shares" / "real").mkdir()
    (tmp_path / "shares" / "link").symlink_to("/etc")
    path = lock(tmp_path, f'[allowed]\nfd = true\nshared-dir = ["{tmp_path}/shares/*"]\n')
    line = ["--locked", path, "--fd=3", "--shared-dir"]
    assert virtiofsd.parse([*line, f"{tmp_path}/shares/real"]).shared_dir == f"{tmp_path}/shares/real"
    with pytest.raises(Refused, match="allows"):
        virtiofsd.parse([*line, f"{tmp_path}/shares/link"])


def test_a_lock_named_by_the_command_line_can_only_take_away(kata: Path, tmp_path: Path) -> None:
    everything = lock(tmp_path, "[allowed]\nsandbox = true\nshared-dir = true\nfd = true\n")
    with pytest.raises(Refused, match="sandbox"):
        virtiofsd.parse(
            ["--locked", everything, f"--shared-dir={SANDBOX}/shared", "--fd=3", "--sandbox=none"]
        )
    with pytest.raises(Refused, match="cache"):
        virtiofsd.parse(["--locked", everything, f"--shared-dir={SANDBOX}/shared", "--fd=3", "--cache=auto"])


def test_what_a_lock_puts_first_holds_unless_it_allows_another(tmp_path: Path) -> None:
    path = lock(
        tmp_path,
        'arguments = ["--readonly", "--cache=never"]\n[allowed]\nshared-dir = true\nfd = true\ncache = true\n',
    )
    settings = virtiofsd.parse(["--locked", path, "--shared-dir=/srv", "--fd=3"])
    assert settings.readonly
    assert settings.passthrough["cache"] == "never"
    again = virtiofsd.parse(["--locked", path, "--shared-dir=/srv", "--fd=3", "--cache=always"])
    assert again.passthrough["cache"] == "always"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "allowed"),
        ("[allowed", "lock"),
        ("allowed = 1", "table"),
        ("[allowed]\nnonsense = true", "no option nonsense"),
        ("[allowed]\ncache = 'auto'", "list of strings"),
        ("[allowed]\ncache = [1]", "list of strings"),
        ("more = 1\n[allowed]", "not more"),
        ("arguments = '--readonly'\n[allowed]", "list of strings"),
    ],
)
def test_a_lock_that_makes_no_sense_is_an_error_and_not_ignored(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        read_lock(lock(tmp_path, text))


def test_a_lock_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = lock(tmp_path, "[allowed]\n")
    Path(path).chmod(0o666)
    with pytest.raises(UsageError, match="changed by others"):
        read_lock(path)
    with pytest.raises(UsageError, match="No such file"):
        read_lock(str(tmp_path / "missing"))


def test_the_daemon_says_which_lock_refused_what(tmp_path: Path) -> None:
    path = lock(tmp_path, "[allowed]\nshared-dir = true\n")
    ended = subprocess.run(
        [*(sys.executable, "-m", "virtiofs.cli.virtiofsd"), "--locked", path, "--sandbox=none", "--fd=3"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == f"virtiofsd: --sandbox none: {path} does not allow sandbox\n"

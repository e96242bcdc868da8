# SPDX-License-Identifier: Apache-2.0
"""`virtiofs run` as a person uses it: how shares are written, and one clear line for everything that is wrong."""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from pathlib import Path

import pytest

from virtiofs.cli import run
from virtiofs.vm.guest import GuestError


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return parser.parse_args(words)


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run.main(parse(*words)) == run.FAILED
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a few directories, and a place for our temporary files that must end up empty."""
    for name in ("dir", "odd:/name", "odd2:ro", "plain"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "directory", "mountpoint", "read_only"),
    [
        ("dir", "dir", None, False),
        ("dir:ro", "dir", None, True),
        ("dir:rw", "dir", None, False),
        ("dir:/data", "dir", "/data", False),
        ("dir:/data:ro", "dir", "/data", True),
        ("odd:/name", "odd:/name", None, False),
        ("odd:/name:/data:ro", "odd:/name", "/data", True),
        ("odd2:ro", "odd2:ro", None, False),
        ("odd2:ro:ro", "odd2:ro", None, True),
    ],
)
def test_a_share_is_a_directory_a_mount_point_and_a_mode(
    place: Path, text: str, directory: str, mountpoint: str | None, read_only: bool
) -> None:
    assert run._parse_mount(text, "--share") == run.Mount(place / directory, mountpoint, read_only)
    if not read_only:
        limited = run._parse_mount(f"{text}:quota=2G", "--share")
        assert limited == run.Mount(place / directory, mountpoint, False, "2G")
    ruled = run._parse_mount(f"{text}:policy=a.toml", "--share")
    assert ruled == run.Mount(place / directory, mountpoint, read_only, policy="a.toml")


@pytest.mark.parametrize(
    ("text", "what", "mountpoint", "read_only"),
    [
        ("tree:Tree", "tree:Tree", None, False),
        ("tree.py:Tree:/data:ro", "tree.py:Tree", "/data", True),
        ("package.tree:Tree:ro", "package.tree:Tree", None, True),
    ],
)
def test_a_share_may_be_a_class_in_python(
    place: Path, text: str, what: str, mountpoint: str | None, read_only: bool
) -> None:
    mount = run._parse_mount(text, "--share")
    assert (str(mount.directory), mount.mountpoint, mount.read_only) == (what, mountpoint, read_only)
    (mount,) = run._mounts(parse("--share", text, "--option", "a=b", "--quota", "1G"))
    assert (mount.options, mount.quota) == (("--option", "a=b"), "")


def test_a_policy_of_a_share_comes_before_that_of_all(place: Path) -> None:
    words = [
        "--share",
        "dir:policy=g.py:Guard:ro",
        "--share",
        "plain",
        "--share",
        "t:T",
        "--policy",
        "p.toml",
    ]
    assert [mount.policy for mount in run._mounts(parse(*words))] == ["g.py:Guard", "p.toml", ""]
    assert run._mounts(parse(*words))[0].read_only
    with pytest.raises(GuestError, match="a policy is about directories"):
        run._mounts(parse("--share", "t:T:policy=p.toml"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--share", "dir", "--share", "plain", "--audit", "f"], "names a directory, not f"),
        (["--share", "t:T", "--audit", "f"], "is about directories"),
        (["--share", "dir", "--audit", "f", "--dax"], "use --audit or --dax"),
        (["--share", "dir", "--audit-operations", "all"], "goes with --audit"),
        (["--share", "dir", "--audit", "f", "--daemon", "x {socket}"], "has no audit"),
    ],
)
def test_an_audit_that_can_not_be_is_refused(place: Path, words: list[str], reason: str) -> None:
    with pytest.raises(GuestError, match=reason):
        run._mounts(parse(*words))


def test_an_audit_is_a_file_for_each_share(place: Path) -> None:
    mount = run.Mount(place / "dir", None, False)
    share = run.Share("share1", "/tmp/s", "/mnt")
    args = parse("--share", "dir", "--audit", "plain", "--audit-operations", "all")
    expected = ["--audit", "plain/share1.jsonl", "--audit-operations", "all"]
    assert run._audit_options(mount, share, args) == expected
    assert run._audit_options(mount, share, parse("--audit", "f")) == ["--audit", "f"]
    assert run._audit_options(mount._replace(options=()), share, args) == []


def test_an_option_of_a_class_needs_one_to_be_for(place: Path) -> None:
    for shares in (["--share", "dir"], ["--share", "a:A", "--share", "b:B"]):
        with pytest.raises(GuestError, match="--option and --needs go with one --share"):
            run._mounts(parse(*shares, "--option", "a=b"))


def test_shares_get_different_tags_and_mount_points(place: Path) -> None:
    args = parse(
        "--rootfs", "dir:ro", "--share", "plain", "--share", "dir:/x", "--share", "plain", "--", "true"
    )
    status = run.Status(shown=False)
    guest = run._guest(args, run._mounts(args), place, status, interactive=False)
    assert guest.rootfs
    assert [(share.tag, share.mountpoint, share.read_only) for share in guest.shares] == [
        ("rootfs", "/", True),
        ("share0", "/mnt", False),
        ("share1", "/x", False),
        ("share2", "/mnt2", False),
    ]


def test_a_daemon_template_is_filled_in_word_by_word(place: Path) -> None:
    mount = run.Mount(place / "odd:/name", None, False)
    share = run.Share("tag", "/tmp/a socket", "/mnt")
    words = run._other_command("daemon --socket-path={socket} -o 'source={dir}' --tag {tag} {}", mount, share)
    assert words == [
        "daemon",
        "--socket-path=/tmp/a socket",
        "-o",
        f"source={place}/odd:/name",
        "--tag",
        "tag",
        "{}",
    ]


def test_our_own_daemon_is_told_everything(place: Path) -> None:
    mount = run.Mount(place / "dir", None, True)
    words = run._serve_command(mount, run.Share("tag", "/tmp/s", "/mnt", True), 4, 9)
    assert words[:4] == [sys.executable, "-m", "virtiofs", "serve"]
    assert words[4:] == [
        *(str(place / "dir"), "--socket", "/tmp/s", "--tag", "tag", "--queues", "4", "--ready-fd", "9"),
        "--readonly",
    ]


def start_daemon(place: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> run.Daemon:
    """A daemon that is told its ready descriptor as ours is, but is this Python program: FD is the descriptor."""
    start = "import os, signal, sys; FD = int(sys.argv[1]); "
    monkeypatch.setattr(
        run, "_serve_command", lambda *given: [sys.executable, "-c", start + program, str(given[-1])]
    )
    mount = run.Mount(place / "dir", None, False)
    share = run.Share("tag", str(place / "tag.sock"), "/mnt")
    return run.Daemon(mount, share, parse("--share", "dir"), place)


def test_a_daemon_is_ready_when_it_writes_to_its_ready_descriptor(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start_daemon(place, monkeypatch, "os.write(FD, b'ready'); os.close(FD); signal.pause()")
    try:
        daemon.wait_until_ready(time.monotonic() + 10)
        assert not select.select([daemon.pidfd], [], [], 0)[0]
    finally:
        daemon.close()


@pytest.mark.parametrize("program", ["sys.exit('no luck')", "os.close(FD); sys.exit('no luck')"])
def test_a_daemon_that_says_nothing_on_it_has_failed(
    place: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    daemon = start_daemon(place, monkeypatch, program)
    try:
        with pytest.raises(run.GuestError, match="ended: no luck"):
            daemon.wait_until_ready(time.monotonic() + 10)
    finally:
        daemon.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--share", "nowhere", "--", "ls"], "there is no directory nowhere"),
        (["--share", "", "--", "ls"], "there is no directory"),
        (["--share", "dir/file", "--", "ls"], "is not a directory"),
        (["--", "ls"], "nothing to share: add --share DIR"),
        (["--share", "dir"], "no command to run"),
        (["--rootfs", "dir:/x", "--", "ls"], "--rootfs takes DIR or DIR:ro"),
        (["--share", "dir", "--init", "--", "ls"], "add --rootfs DIR"),
        (["--rootfs", "dir", "--init", "sbin/init", "--", "ls"], "'sbin/init'"),
        (["--share", "dir:/", "--", "ls"], "mount point"),
        (["--share", "dir", "--quota", "much", "--", "ls"], "--quota: a size is"),
        (["--share", "dir:quota=1K1", "--", "ls"], "dir:quota=1K1: a size is"),
        (["--share", "dir:ro:quota=1G", "--", "ls"], "read-only share"),
        (["--share", "dir:quota=1G", "--daemon", "true {socket}", "--", "ls"], "--daemon names another"),
        (["--share", "dir", "--memory", "lots", "--", "ls"], "512M"),
        (["--share", "dir", "--daemon", "true", "--", "ls"], "{socket}"),
        (["--share", "dir", "--daemon", "/no/such {socket}", "--", "ls"], "/no/such: No such file"),
        (
            ["--share", "dir", "--daemon", "sh -c 'echo it broke >&2; exit 1' {socket}", "--", "ls"],
            "ended: it broke",
        ),
        (["--share", "dir", "--timeout", "0.2", "--daemon", "sleep 100 {socket}", "--", "ls"], "daemon"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (place / "dir" / "file").write_bytes(b"")
    assert said in fails(capsys, *words)
    assert os.listdir(place / "temporary") == []


def test_a_directory_that_may_not_be_read_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (place / "dir").chmod(0)
    assert "may not be read" in fails(capsys, "--share", "dir", "--", "ls")


@pytest.mark.parametrize(
    "words", [["--timeout", "0"], ["--queues", "0"], ["--cpus", "x"], ["--accel", "hvf"]]
)
def test_options_out_of_range_are_a_usage_error(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words, "--share", ".", "--", "true")
    assert caught.value.code == 2

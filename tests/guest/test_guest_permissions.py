# SPDX-License-Identifier: Apache-2.0
"""Users of the guest: who may do what, and whose the files are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shares import Place

pytestmark = pytest.mark.guest

USER, GROUP, OTHER = 1000, 1000, 1001
TEAM = 4242  # a group that the user has beside his own


def owner(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid, status.st_mode & 0o7777


def test_a_file_of_root_alone_is_not_for_others(place: Place) -> None:
    (place.host / "secret").write_text("secret")
    (place.host / "secret").chmod(0o600)
    assert place.steps(
        ("open", "root", "secret", "r"),
        ("user", USER, GROUP),
        ("open", "f", "secret", "r"),
        ("open", "f", "secret", "w"),
        ("truncate", "secret", 0),
        ("chmod", "secret", "666"),
        ("chown", "secret", USER, GROUP),
        ("setxattr", "secret", "user.a", "b"),
    ) == [None, None, "EACCES", "EACCES", "EACCES", "EPERM", "EPERM", "EACCES"]
    assert (place.host / "secret").read_text() == "secret"
    assert owner(place.host / "secret") == (0, 0, 0o600)


def test_a_directory_of_root_alone_is_not_for_others(place: Place) -> None:
    (place.host / "dir").mkdir(mode=0o700)
    (place.host / "dir" / "file").write_text("x")
    (place.host / "dir" / "file").chmod(0o666)
    # Root has walked there first, so that the guest knows all these names.
    assert (
        place.steps(
            ("open", "f", "dir/file", "r"),
            ("user", USER, GROUP),
            ("open", "f", "dir/file", "r"),
            ("walk", "dir", 4096),
            ("unlink", "dir/file"),
            ("mkdir", "dir/new", "755"),
        )[2:]
        == ["EACCES"] * 4
    )


def test_what_a_user_makes_is_his_on_the_host(place: Place) -> None:
    place.do(
        ("user", USER, GROUP),
        ("open", "f", "file", "w,creat", "640"),
        ("mkdir", "dir", "750"),
        ("symlink", "target", "link"),
        ("open", "g", "dir/inside", "w,creat", "600"),
        ("write", "g", "mine"),
    )
    assert place.output("su user -c 'mkfifo -m 620 fifo'") == ""
    assert owner(place.host / "file") == (USER, GROUP, 0o640)
    assert owner(place.host / "dir") == (USER, GROUP, 0o750)
    assert owner(place.host / "link")[:2] == (USER, GROUP)
    assert owner(place.host / "fifo") == (USER, GROUP, 0o620)
    assert owner(place.host / "dir" / "inside") == (USER, GROUP, 0o600)
    assert (place.host / "dir" / "inside").read_text() == "mine"


def test_users_keep_their_files_from_one_another(place: Place) -> None:
    place.do(("user", USER, GROUP), ("open", "f", "private", "w,creat", "600"), ("write", "f", "x"))
    assert (
        place.steps(("user", OTHER, OTHER), ("open", "f", "private", "r"), ("unlink", "private"))[1]
        == "EACCES"
    )
    # The directory lets everybody write, so the other user may well remove the name.
    assert os.listdir(place.host) == []


def test_the_umask_is_the_guests(place: Place) -> None:
    place.output("umask 027; touch file; mkdir dir; umask 0; touch open")
    assert owner(place.host / "file")[2] == 0o640
    assert owner(place.host / "dir")[2] == 0o750
    assert owner(place.host / "open")[2] == 0o666


def test_a_directory_with_setgid_gives_its_group_on(place: Place) -> None:
    (place.host / "team").mkdir()
    os.chown(place.host / "team", 0, TEAM)
    (place.host / "team").chmod(0o2777)
    place.do(
        ("user", USER, GROUP),
        ("mkdir", "team/dir", "755"),
        ("open", "f", "team/file", "w,creat", "644"),
        ("open", "g", "team/dir/file", "w,creat", "644"),
    )
    assert owner(place.host / "team" / "dir") == (USER, TEAM, 0o2755)
    assert owner(place.host / "team" / "file") == (USER, TEAM, 0o644)
    assert owner(place.host / "team" / "dir" / "file") == (USER, TEAM, 0o644)


def test_in_a_sticky_directory_only_the_owner_removes(place: Place) -> None:
    (place.host / "tmp").mkdir()
    (place.host / "tmp").chmod(0o1777)
    place.do(("user", USER, GROUP), ("open", "f", "tmp/his", "w,creat", "666"), ("mkdir", "tmp/dir", "777"))
    assert place.steps(
        ("user", OTHER, OTHER),
        ("unlink", "tmp/his"),
        ("rmdir", "tmp/dir"),
        ("rename", "tmp/his", "tmp/mine"),
        ("open", "f", "tmp/his", "rw"),
    ) == [None, "EPERM", "EPERM", "EPERM", None]
    assert place.steps(("user", USER, GROUP), ("unlink", "tmp/his"), ("rmdir", "tmp/dir")) == [None] * 3


def test_a_supplementary_group_lets_its_members_in(place: Place) -> None:
    (place.host / "team").mkdir()
    os.chown(place.host / "team", 0, TEAM)
    (place.host / "team").chmod(0o770)
    assert place.do(("user", USER, GROUP), ("open", "f", "team/file", "w,creat")) == "EACCES"
    values = place.steps(
        ("user", USER, GROUP, TEAM),
        ("open", "f", "team/file", "w,creat,excl", "640"),
        ("mkdir", "team/dir", "750"),
        ("symlink", "x", "team/link"),
        ("link", "team/file", "team/second"),
        ("rename", "team/file", "team/first"),
        ("unlink", "team/second"),
        ("walk", "team", 4096),
    )
    assert values[:7] == [None] * 7
    assert sorted(values[7] or ()) == [b".", b"..", b"dir", b"first", b"link"]  # type: ignore[arg-type]
    assert owner(place.host / "team" / "first") == (USER, GROUP, 0o640)
    assert owner(place.host / "team" / "dir") == (USER, GROUP, 0o750)


def test_a_member_gives_his_file_to_his_group_and_nobody_elses(place: Place) -> None:
    place.do(("user", USER, GROUP), ("open", "f", "file", "w,creat", "644"))
    assert place.steps(
        ("user", USER, GROUP, TEAM),
        ("chown", "file", USER, TEAM),
        ("chown", "file", USER, TEAM + 1),
        ("chown", "file", OTHER, TEAM),
        ("chmod", "file", "664"),
    ) == [None, None, "EPERM", "EPERM", None]
    assert owner(place.host / "file") == (USER, TEAM, 0o664)


def test_root_of_the_guest_gives_files_away(place: Place) -> None:
    place.output("touch file; ln -s file link; chown 12:34 file; chown -h 56:78 link; chmod 4711 file")
    assert owner(place.host / "file") == (12, 34, 0o4711)
    assert owner(place.host / "link")[:2] == (56, 78)


@pytest.mark.parametrize("change", ["write", "truncate", "chown"])
def test_setuid_and_setgid_do_not_survive_a_users_change(place: Place, change: str) -> None:
    (place.host / "tool").write_bytes(b"old contents")
    os.chown(place.host / "tool", 0, 0)
    (place.host / "tool").chmod(0o6777)
    steps = {
        "write": [("user", USER, GROUP), ("open", "f", "tool", "w"), ("write", "f", "new")],
        "truncate": [("user", USER, GROUP), ("truncate", "tool", 3)],
        "chown": [("chown", "tool", USER, GROUP)],
    }
    place.do(*steps[change])  # type: ignore[arg-type]
    assert owner(place.host / "tool")[2] == 0o777


def test_a_script_is_run_from_the_share_only_if_it_is_executable(place: Place) -> None:
    (place.host / "script").write_text("#!/bin/sh\necho ran as $(id -u)\n")
    assert place.run("./script").status == 126
    (place.host / "script").chmod(0o755)
    place.wait("[ -x script ]")
    assert place.output("./script; su user -c ./script") == "ran as 0\nran as 1000"

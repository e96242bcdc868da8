# SPDX-License-Identifier: Apache-2.0
"""The worker in a user namespace with more ids than one: what a guest's users are on the host."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import devices
from sharing import ROOT, USER, failure, refusal
from virtiofs.client.device import Caller, Device
from virtiofs.client.session import Session
from virtiofs.sandbox import idmaps
from virtiofs.sandbox.idmaps import MAX_ID, IdMaps, IdRange, parse_map

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="other users need root")
MAPS = ("--uid-map", ":0:100000:65536:", "--gid-map", "/0/200000/65536/")


# --- how maps are written ---


def test_any_character_separates_the_three_numbers():
    assert parse_map([":1:100000:65536:", " 0 1000 1 "], "-") == [
        IdRange(0, 1000, 1),
        IdRange(1, 100000, 65536),
    ]
    assert parse_map([], "-") == []


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ([""], ":INSIDE:OUTSIDE:COUNT:"),
        (["0:1000:1"], ":INSIDE:OUTSIDE:COUNT:"),
        ([":0:1000:1"], ":INSIDE:OUTSIDE:COUNT:"),
        ([":0:1000:1:2:"], ":INSIDE:OUTSIDE:COUNT:"),
        ([":0:-1:1:"], ":INSIDE:OUTSIDE:COUNT:"),
        ([":0:x:1:"], ":INSIDE:OUTSIDE:COUNT:"),
        ([":0:1000:0:"], "at least 1"),
        ([":0:4294967295:1:"], "up to 4294967294"),
        ([":0:1000:5:", ":4:2000:1:"], "4 of the namespace is in two ranges"),
        ([":0:1000:5:", ":7:1004:1:"], "1004 of the host is in two ranges"),
        ([":1:1000:5:"], "is 0 in its namespace"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused_with_a_reason(texts, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        parse_map(texts, "--uid-map")
    assert str(caught.value).startswith("--uid-map")


@given(
    st.lists(
        st.text(alphabet=":/019 x", max_size=20) | st.from_regex(r"\A:\d{1,10}:\d{1,10}:\d{1,10}:\Z"),
        max_size=3,
    )
)
def test_every_text_is_a_map_or_refused(texts):
    try:
        ranges = parse_map(texts, "--uid-map")
    except ValueError:
        return
    assert all(one.length and max(one.inside, one.outside) + one.length - 1 <= MAX_ID for one in ranges)
    assert not ranges or ranges[0].inside == 0


def test_a_missing_program_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(idmaps, "PROGRAMS", {"uid": "surely-no-newuidmap"})
    with pytest.raises(OSError, match=r"surely-no-newuidmap.*install the package uidmap"):
        IdMaps([IdRange(0, 1000, 1)], [], privileged=False)


# --- what they do ---


@pytest.fixture
def host() -> Iterator[Path]:
    """A directory that every user of the host can reach, and write to."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-idmap-", dir="/tmp") as place:
        os.chmod(place, 0o755)
        directory = Path(place) / "share"
        directory.mkdir()
        directory.chmod(0o777)
        yield directory


def make(session: Session, name: str, user: int) -> int:
    """Make a directory as a user of the guest: 0 or an errno."""
    session.caller = Caller(user, user, 1)
    return failure(session.mkdir, ROOT, name)


@needs_root
def test_a_guests_users_are_the_mapped_ones_on_the_host(host):
    (host / "old").mkdir()
    os.chown(host / "old", 100007, 200008)
    (host / "other").mkdir()
    with devices.start_ours(host, MAPS) as running, Device.connect(running.socket) as device:
        session = Session(device)
        assert make(session, "root", 0) == make(session, "user", 1000) == 0
        assert make(session, "nobody", 65536) == errno.EINVAL
        seen = session.lookup(ROOT, "old").attr
        assert (seen.uid, seen.gid) == (7, 8)
        assert session.lookup(ROOT, "other").attr.uid == 65534, "the host's root is nobody here"
        session.caller = Caller(0, 0, 1)
        node = session.lookup(ROOT, "user").nodeid
        session.setattr(node, gid=9)
        assert failure(session.setattr, node, uid=65536) == errno.EINVAL
        worker = Path(f"/proc/{running.worker}")
        assert (worker / "uid_map").read_text().split() == ["0", "100000", "65536"]
        assert "Uid:\t100000\t100000\t100000\t100000" in (worker / "status").read_text()
    owners = {name: ((host / name).stat().st_uid, (host / name).stat().st_gid) for name in ("root", "user")}
    assert owners == {"root": (100000, 200000), "user": (101000, 200009)}


@needs_root
def test_without_a_map_of_groups_there_is_one_group(host):
    with devices.start_ours(host, MAPS[:2]) as running, Device.connect(running.socket) as device:
        session = Session(device)
        assert make(session, "root", 0) == 0
        assert make(session, "user", 1000) == errno.EINVAL
    assert (host / "root").stat().st_gid == os.getegid()


def test_maps_without_a_user_namespace_are_refused():
    assert "--sandbox none" in refusal(*MAPS, "--sandbox", "none")
    assert "is 0 in its namespace" in refusal("--uid-map", ":1:2:3:")


def as_sub_user(place: Path, ids: str) -> list[str]:
    """A command that runs another where user 1000 may map these ids."""
    for path in ("/usr/bin/newuidmap", "/usr/bin/newgidmap", "/etc/subuid", "/etc/subgid"):
        if not os.path.exists(path):
            pytest.skip(f"there is no {path} (package uidmap)")
    (place / "sub").write_text(f"{USER}:{ids}\n")
    (place / "passwd").write_text(f"root:x:0:0::/:\nsomebody:x:{USER}:{USER}::/:\n")
    mounts = "mount --bind $0/sub /etc/subuid && mount --bind $0/sub /etc/subgid && mount --bind $0/passwd /etc/passwd"
    return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', str(place)]


SESSION = tuple(
    f"--{kind}-map=:{ids}:" for kind in ("uid", "gid") for ids in (f"0:{USER}:1", "1:100000:65536")
)


@needs_root
def test_an_ordinary_user_maps_what_subuid_gives_him(host, tmp_path):
    """libvirt's maps for a session: root is the user himself, all others are from his range."""
    wrapper = as_sub_user(tmp_path, "100000:65536")
    os.chown(host, USER, USER)
    with (
        devices.start_ours(host, SESSION, USER, wrapper) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        assert make(session, "root", 0) == make(session, "user", 1000) == 0
        assert session.lookup(ROOT, "user").attr.uid == 1000
        session.caller = Caller(0, 0, 1)
        session.rmdir(ROOT, "root")
        assert make(session, "root", 0) == 0
    assert (host / "root").stat().st_uid == USER
    assert ((host / "user").stat().st_uid, (host / "user").stat().st_gid) == (100999, 100999)


@needs_root
def test_ids_that_subuid_does_not_give_are_refused_with_the_programs_words(host, tmp_path):
    wrapper = as_sub_user(tmp_path, "300000:10")
    with (
        pytest.raises(RuntimeError, match=r"cannot map ids: newuidmap: .*not allowed.*/etc/subuid"),
        devices.start_ours(host, SESSION, USER, wrapper),
    ):
        pass

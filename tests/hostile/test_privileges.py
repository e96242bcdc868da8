# SPDX-License-Identifier: Apache-2.0
"""Privilege a guest's user must not gain: set-id bits, capabilities, groups, by the ways they were gained before."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator

import pytest

from sharing import ROOT, Shared, failure, shared
from virtiofs.client.session import OFFER
from virtiofs.fuse.abi import CONSTANTS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a privileged daemon is attacked")
USER, OUTSIDER_GROUP = 1000, 4242
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0)  # cap_sys_admin, effective


# --- CVE-2021-20263: a capability under another name survives what the host would have taken it away for ---


def by_write(place: Shared, node: int) -> None:
    handle = place.session.open(node, os.O_WRONLY).fh
    place.session.write(node, handle, 0, b"evil")


def by_write_back(place: Shared, node: int) -> None:
    handle = place.session.open(node, os.O_RDWR).fh
    place.session.write(node, handle, 0, b"evil", write_flags=CONSTANTS["FUSE_WRITE_CACHE"])


def by_truncation(place: Shared, node: int) -> None:
    place.session.setattr(node, size=0)


def by_truncation_of_a_handle(place: Shared, node: int) -> None:
    place.session.setattr(node, size=0, fh=place.session.open(node, os.O_WRONLY).fh)


def by_opening(place: Shared, node: int) -> None:
    place.session.open(node, os.O_WRONLY | os.O_TRUNC)


def by_creating(place: Shared, node: int) -> None:
    place.session.create(ROOT, "program", os.O_WRONLY | os.O_TRUNC)


def by_change_of_owner(place: Shared, node: int) -> None:
    place.session.setattr(node, uid=USER)


def by_change_of_group(place: Shared, node: int) -> None:
    place.session.setattr(node, gid=USER)


def by_allocation(place: Shared, node: int) -> None:
    place.session.fallocate(node, place.session.open(node, os.O_WRONLY).fh, 0, 4096)


def by_copying(place: Shared, node: int) -> None:
    (place.host / "source").write_bytes(b"evil")
    source = place.session.lookup(ROOT, "source").nodeid
    handle = place.session.open(node, os.O_WRONLY).fh
    place.session.copy_file_range(source, place.session.open(source).fh, 0, node, handle, 0, 4)


WAYS: list[Callable[[Shared, int], None]] = [
    by_write,
    by_write_back,
    by_truncation,
    by_truncation_of_a_handle,
    by_opening,
    by_creating,
    by_change_of_owner,
    by_change_of_group,
    by_allocation,
    by_copying,
]
MAPS = {
    "trusted": ("--xattrmap", ":map::trusted.virtiofs.:", "--modcaps=+sys_admin"),
    "user": ("--xattrmap", "/map/security./user.virtiofs./"),
    "raw": ("--xattr",),
    "stored": ("--ownership", "xattr", "--xattrmap", ":map:security.:user.virtiofs.:"),
}


@pytest.fixture(scope="module", params=[*MAPS, "without killpriv"])
def with_capabilities(request: pytest.FixtureRequest) -> Iterator[Shared]:
    options = MAPS.get(request.param, (*MAPS["trusted"], "--no-killpriv-v2"))
    with shared(*options) as place:
        yield place


@pytest.mark.parametrize("way", WAYS)
def test_a_capability_of_a_program_goes_when_the_program_is_changed(with_capabilities, way):
    place = with_capabilities
    program = place.host / "program"
    program.unlink(missing_ok=True)
    program.write_bytes(b"#!/bin/true")
    node = place.session.lookup(ROOT, "program").nodeid
    place.session.setxattr(node, "security.capability", CAPABILITY)
    assert place.session.listxattr(node) == [b"security.capability"]
    way(place, node)
    assert place.session.listxattr(node) == []
    assert not [name for name in os.listxattr(program) if "capability" in name]


def test_an_attempt_to_change_a_capability_by_its_name_on_the_host_is_refused():
    """What is kept under the prefix is not to be had without the map."""
    with shared("--xattrmap", "/map/security./user.virtiofs./") as place:
        name = "user.virtiofs.security.capability"
        assert failure(place.session.setxattr, ROOT, name, CAPABILITY) == errno.EPERM
        assert failure(place.session.getxattr, ROOT, name) == errno.ENODATA


def test_a_map_to_names_we_may_not_use_stops_no_write():
    with shared("--xattrmap", ":map::trusted.virtiofs.:", user=USER) as place:
        entry, handle = place.session.create(ROOT, "f")
        assert failure(place.session.setxattr, entry.nodeid, "security.capability", CAPABILITY) == errno.EPERM
        assert place.session.write(entry.nodeid, handle.fh, 0, b"data") == 4


# --- CVE-2022-0358, CVE-2018-13405: a program with a group its maker is not in ---


@pytest.fixture(scope="module")
def member_daemon() -> Iterator[Shared]:
    """A daemon that was started with a supplementary group, as root usually is."""
    before = os.getgroups()
    os.setgroups([OUTSIDER_GROUP])
    try:
        with shared() as place:
            yield place
    finally:
        os.setgroups(before)


@pytest.fixture
def group_directory(member_daemon: Shared) -> int:
    path = member_daemon.host / "group"
    path.mkdir(exist_ok=True)
    os.chown(path, 0, OUTSIDER_GROUP)
    path.chmod(0o2777)
    return int(member_daemon.session.lookup(ROOT, "group").nodeid)


def test_a_program_made_in_a_set_group_id_directory_does_not_get_the_bit(member_daemon, group_directory):
    session, node = member_daemon.session, group_directory
    with member_daemon.caller(USER, USER):
        made = [
            session.create(node, "created", mode=0o2755)[0],
            session.mknod(node, "made", stat.S_IFREG | 0o2755),
            session.tmpfile(node, mode=0o2755)[0],
        ]
    for entry in made:
        assert entry.attr.gid == OUTSIDER_GROUP
        assert not entry.attr.mode & stat.S_ISGID
    for name in ("created", "made"):
        status = (member_daemon.host / "group" / name).stat()
        assert (status.st_gid, status.st_mode & stat.S_ISGID) == (OUTSIDER_GROUP, 0)
        (member_daemon.host / "group" / name).unlink()


def test_the_daemons_own_groups_open_no_directory(member_daemon):
    path = member_daemon.host / "closed"
    path.mkdir()
    os.chown(path, 0, OUTSIDER_GROUP)
    path.chmod(0o770)
    node = member_daemon.session.lookup(ROOT, "closed").nodeid
    with member_daemon.caller(USER, USER):
        assert failure(member_daemon.session.mkdir, node, "d") == errno.EACCES


@pytest.mark.parametrize("flags", [OFFER, OFFER & ~CONSTANTS["FUSE_CREATE_SUPP_GROUP"]])
def test_groups_of_one_request_do_not_stay_for_the_next(flags):
    with shared(flags=flags) as place:
        (place.host / "d").mkdir()
        os.chown(place.host / "d", 0, OUTSIDER_GROUP)
        (place.host / "d").chmod(0o2777)
        node = place.session.lookup(ROOT, "d").nodeid
        record = b"".join(n.to_bytes(4, "little") for n in (16, 32, 1, OUTSIDER_GROUP))
        with place.caller(0, 0):
            place.session.mkdir(node, "roots", extensions=record)
        with place.caller(USER, USER):
            place.session.mkdir(node, "members", extensions=record)
            entry, _ = place.session.create(node, "program", mode=0o2755)
        assert not entry.attr.mode & stat.S_ISGID


# --- ids that mean something else to the host ---


@pytest.mark.parametrize("options", [(), ("--ownership", "xattr")])
@pytest.mark.parametrize(("uid", "gid"), [(0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_an_unknown_id_is_not_taken_for_keep(options, uid, gid):
    with shared(*options) as place:
        with place.caller(uid, gid):
            for act in (place.session.create, place.session.mkdir):
                assert failure(act, ROOT, "name") == errno.EINVAL
            assert failure(place.session.tmpfile, ROOT) == errno.EINVAL
            assert failure(place.session.symlink, ROOT, "name", "target") == errno.EINVAL
        (place.host / "f").touch()
        node = place.session.lookup(ROOT, "f").nodeid
        given = {name: value for name, value in (("uid", uid), ("gid", gid)) if value}
        assert failure(place.session.setattr, node, **given) == errno.EINVAL
        assert os.listdir(place.host) == ["f"]


def test_a_squashed_root_is_not_root():
    rules = (
        "--translate-uid",
        "squash-guest:0:1000:4294967295",
        "--translate-gid",
        "squash-guest:0:1000:4294967295",
    )
    with shared("--ownership", "mapped", *rules) as place:
        (place.host / "roots").mkdir(mode=0o700)
        node = place.session.lookup(ROOT, "roots").nodeid
        for uid in (0, 1, 1000, 0xFFFFFFFE):
            with place.caller(uid, uid):
                assert failure(place.session.mkdir, node, "d") == errno.EACCES
        place.host.chmod(0o777)
        place.session.mkdir(ROOT, "d")
        assert (place.host / "d").stat().st_uid == 1000
        entry, _ = place.session.create(ROOT, "f", mode=0o4755)
        place.session.setattr(entry.nodeid, uid=0)
        assert (place.host / "f").stat().st_uid == 1000

# SPDX-License-Identifier: Apache-2.0
"""Access control lists, and with them the umask, are left to the host; without the option they do not exist."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator

import pytest

from sharing import ROOT, Shared, failure, refusal, shared

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, A_USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 0x10, 0x20
KILL_SGID = 1
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="other users' files need root")


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access list of (tag, permissions, id) as Linux stores it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


LIST = acl(
    (USER_OBJ, 7, 0xFFFFFFFF),
    (A_USER, 7, 1234),
    (GROUP_OBJ, 5, 0xFFFFFFFF),
    (MASK, 7, 0xFFFFFFFF),
    (OTHER, 0, 0xFFFFFFFF),
)


@pytest.fixture(scope="module")
def place() -> Iterator[Shared]:
    with shared("--posix-acl") as place:
        place.host.chmod(0o777)
        yield place


def mode(place: Shared, name: str) -> int:
    return stat.S_IMODE((place.host / name).lstat().st_mode)


def test_an_access_list_is_the_hosts(place):
    assert all(place.session.has(flag) for flag in ("POSIX_ACL", "DONT_MASK", "SETXATTR_EXT"))
    entry, handle = place.session.create(ROOT, "f", mode=0o640)
    place.session.setxattr(entry.nodeid, ACCESS, LIST)
    assert os.getxattr(place.host / "f", ACCESS) == LIST
    assert place.session.getxattr(entry.nodeid, ACCESS) == LIST
    assert place.session.listxattr(entry.nodeid) == [ACCESS.encode()]
    assert mode(place, "f") == 0o770, "the mask is the group's bits"
    place.session.removexattr(entry.nodeid, ACCESS)
    assert place.session.listxattr(entry.nodeid) == []


def test_the_umask_applies_where_a_directory_has_no_default_list(place):
    session = place.session
    session.mkdir(ROOT, "d1", 0o777, umask=0o027)
    session.create(ROOT, "f1", mode=0o666, umask=0o077)
    session.mknod(ROOT, "n1", stat.S_IFIFO | 0o666, umask=0o007)
    session.tmpfile(ROOT, mode=0o666, umask=0o077)
    assert (mode(place, "d1"), mode(place, "f1"), mode(place, "n1")) == (0o750, 0o600, 0o660)
    with place.caller(1000, 1000):
        session.mkdir(ROOT, "d2", 0o777, umask=0o022)
    session.mkdir(ROOT, "d3", 0o777)
    assert (mode(place, "d2"), mode(place, "d3")) == (0o755, 0o777), (
        "one request's umask is not the next one's"
    )


def test_a_default_list_takes_the_place_of_the_umask(place):
    session = place.session
    node = session.mkdir(ROOT, "inherits", 0o777).nodeid
    session.setxattr(node, DEFAULT, LIST)
    entry, handle = session.create(node, "f", mode=0o666, umask=0o077)
    assert mode(place, "inherits/f") == 0o660
    assert b"system.posix_acl_access" in session.listxattr(entry.nodeid)
    session.mkdir(node, "d", 0o777, umask=0o077)
    assert os.getxattr(place.host / "inherits/d", DEFAULT) == LIST


def test_a_failed_creation_leaves_no_umask_behind(place):
    session = place.session
    assert failure(session.mkdir, ROOT, "d9", 0o777, umask=0) == 0
    assert failure(session.mkdir, ROOT, "d9", 0o777, umask=0o077) == errno.EEXIST
    session.mkdir(ROOT, "d10", 0o777)
    assert mode(place, "d10") == 0o777


@pytest.mark.parametrize("group", [4321, 0])
def test_the_set_group_id_bit_goes_when_the_guest_says_so(place, group):
    """Also where the file's group happens to be the daemon's own."""
    session, name = place.session, f"sgid{group}"
    (place.host / name).touch()
    os.chown(place.host / name, 1000, group)
    (place.host / name).chmod(0o2770)
    node = session.lookup(ROOT, name).nodeid
    session.setxattr(node, ACCESS, LIST)
    assert mode(place, name) == 0o2770
    session.setxattr(node, ACCESS, LIST, setxattr_flags=KILL_SGID)
    assert mode(place, name) == 0o770
    session.setattr(node, mode=0o2770)
    assert mode(place, name) == 0o2770, "the next request has the privilege again"


def test_without_the_option_there_are_no_access_lists():
    with shared("--xattr") as place:
        (place.host / "f").touch()
        os.setxattr(place.host / "f", ACCESS, LIST)
        node = place.session.lookup(ROOT, "f").nodeid
        assert not place.session.has("POSIX_ACL")
        assert failure(place.session.getxattr, node, ACCESS) == errno.EOPNOTSUPP
        assert failure(place.session.setxattr, node, ACCESS, LIST) == errno.EOPNOTSUPP
        assert failure(place.session.removexattr, node, ACCESS) == errno.EOPNOTSUPP
        assert place.session.listxattr(node) == []


def test_access_lists_need_the_hosts_ids():
    assert "--posix-acl needs --ownership as-is" in refusal("--posix-acl", "--ownership", "xattr")

# SPDX-License-Identifier: Apache-2.0
"""What a request says about its caller beyond user and group."""

import errno
import os
import stat

import pytest

from expect import failure

USER, GROUP = 1000, 1001


@pytest.fixture
def open_place(place):
    """A place where everybody may write."""
    place.host.chmod(0o777)
    return place


def made(place, name):
    status = (place.host / name).lstat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def test_modes_are_taken_as_the_guest_sends_them(open_place):
    """The guest's kernel applies the umask unless DONT_MASK was agreed."""
    place, session, root = open_place, open_place.session, open_place.root
    assert not session.has("DONT_MASK")
    session.forget(session.mkdir(root, "d", 0o777, umask=0o077).nodeid)
    assert made(place, "d")[2] == 0o777
    entry, handle = session.create(root, "f", mode=0o666, umask=0o077)
    session.release(entry.nodeid, handle.fh)
    session.forget(entry.nodeid)
    assert made(place, "f")[2] == 0o666


@pytest.mark.c_differs("does not know CREATE_SUPP_GROUP, which came after QEMU 7.2")
def test_a_user_writes_through_a_supplementary_group(open_place):
    place, session = open_place, open_place.session
    assert session.has("CREATE_SUPP_GROUP")
    (place.host / "d").mkdir()
    os.chown(place.host / "d", 0, 7777)
    (place.host / "d").chmod(0o770)
    node = place.lookup("d")
    record = b"".join(
        n.to_bytes(4, "little") for n in (16, 32, 1, 7777)
    )  # size, EXT_GROUPS, one group, which
    with place.caller(USER, GROUP):
        assert failure(session.mkdir, node, "without") == errno.EACCES
        session.forget(session.mkdir(node, "with", extensions=record).nodeid)
        assert failure(session.mkdir, node, "again") == errno.EACCES
    assert made(place, "d/with")[:2] == (USER, GROUP)
    session.forget(node)

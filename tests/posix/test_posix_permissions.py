# SPDX-License-Identifier: Apache-2.0
"""Owners and modes of what a caller makes, and what a caller may not do.

The guest's kernel checks permissions itself (default_permissions is forced on virtiofs), so a device has to
get right what it creates in a caller's name; it may check more.
"""

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


def test_what_a_user_makes_is_his(open_place):
    place, session, root = open_place, open_place.session, open_place.root
    with place.caller(USER, GROUP):
        entry, handle = session.create(root, "file", mode=0o640)
        session.release(entry.nodeid, handle.fh)
        nodes = [
            entry,
            session.mkdir(root, "directory", 0o750),
            session.mknod(root, "fifo", stat.S_IFIFO | 0o620),
            session.symlink(root, "link", "target"),
        ]
    assert made(place, "file") == (USER, GROUP, 0o640)
    assert made(place, "directory") == (USER, GROUP, 0o750)
    assert made(place, "fifo") == (USER, GROUP, 0o620)
    assert made(place, "link")[:2] == (USER, GROUP)
    for node in nodes:
        assert (node.attr.uid, node.attr.gid) == (USER, GROUP)
        session.forget(node.nodeid)


def test_the_next_request_is_made_in_its_own_callers_name(open_place):
    place, session, root = open_place, open_place.session, open_place.root
    with place.caller(USER, GROUP):
        session.forget(session.mkdir(root, "a").nodeid)
    session.forget(session.mkdir(root, "b").nodeid)
    with place.caller(USER + 5, 0):
        session.forget(session.mkdir(root, "c").nodeid)
    assert made(place, "a")[:2] == (USER, GROUP)
    assert made(place, "b")[:2] == (0, 0)
    assert made(place, "c")[:2] == (USER + 5, 0)


def test_a_directory_with_setgid_gives_its_group_on(open_place):
    place, session = open_place, open_place.session
    (place.host / "d").mkdir()
    os.chown(place.host / "d", USER, 4242)
    (place.host / "d").chmod(0o2777)
    node = place.lookup("d")
    with place.caller(USER, GROUP):
        session.forget(session.mkdir(node, "sub", 0o755).nodeid)
        entry, handle = session.create(node, "f", mode=0o644)
        session.release(entry.nodeid, handle.fh)
        session.forget(entry.nodeid)
    session.forget(node)
    assert made(place, "d/sub") == (USER, 4242, 0o2755)
    assert made(place, "d/f") == (USER, 4242, 0o644)


def test_a_user_makes_nothing_where_he_may_not_write(place):
    session, root = place.session, place.root
    with place.caller(USER, GROUP):
        assert failure(session.mkdir, root, "d") == errno.EACCES
        assert failure(session.create, root, "f", os.O_RDWR | os.O_EXCL) == errno.EACCES
        assert failure(session.symlink, root, "l", "t") == errno.EACCES
        assert failure(session.mknod, root, "n", stat.S_IFREG | 0o600) == errno.EACCES
    assert os.listdir(place.host) == []
    session.forget(session.mkdir(root, "afterwards").nodeid)
    assert made(place, "afterwards")[0] == 0


def test_a_failed_creation_leaves_no_trace_of_the_caller(place):
    """The credentials are switched back on every path."""
    session, root = place.session, place.root
    for _ in range(3):
        with place.caller(USER, GROUP):
            failure(session.mkdir, root, "denied")
        session.forget(session.mkdir(root, "allowed").nodeid)
        assert made(place, "allowed")[:2] == (0, 0)
        (place.host / "allowed").rmdir()


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


def test_the_group_of_the_extension_record_is_not_needed_for_ones_own_group(open_place):
    place, session = open_place, open_place.session
    (place.host / "d").mkdir()
    os.chown(place.host / "d", 0, GROUP)
    (place.host / "d").chmod(0o770)
    node = place.lookup("d")
    with place.caller(USER, GROUP):
        session.forget(session.mkdir(node, "sub").nodeid)
    assert made(place, "d/sub")[:2] == (USER, GROUP)
    session.forget(node)


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

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
    place, tree = open_place, open_place.tree
    with place.caller(USER, GROUP):
        tree.write_file("file", b"", 0o640)
        tree.mkdir("directory", 0o750)
        tree.mknod("fifo", stat.S_IFIFO | 0o600)
        tree.symlink("target", "link")
    assert made(place, "file") == (USER, GROUP, 0o640)
    assert made(place, "directory") == (USER, GROUP, 0o750)
    assert made(place, "fifo") == (USER, GROUP, 0o600)
    assert made(place, "link")[:2] == (USER, GROUP)
    for name in ("file", "directory", "fifo", "link"):
        status = tree.stat(name, follow_symlinks=False)
        assert (status.st_uid, status.st_gid) == (USER, GROUP)


def test_the_next_request_is_made_in_its_own_callers_name(open_place):
    place, tree = open_place, open_place.tree
    with place.caller(USER, GROUP):
        tree.mkdir("a")
    tree.mkdir("b")
    with place.caller(USER + 5, 0):
        tree.mkdir("c")
    assert made(place, "a")[:2] == (USER, GROUP)
    assert made(place, "b")[:2] == (0, 0)
    assert made(place, "c")[:2] == (USER + 5, 0)


def test_a_directory_with_setgid_gives_its_group_on(open_place):
    place = open_place
    (place.host / "d").mkdir()
    os.chown(place.host / "d", USER, 4242)
    (place.host / "d").chmod(0o2777)
    with place.caller(USER, GROUP):
        place.tree.mkdir("d/sub", 0o755)
        place.tree.write_file("d/f", b"")
    assert made(place, "d/sub") == (USER, 4242, 0o2755)
    assert made(place, "d/f") == (USER, 4242, 0o644)


def test_a_user_makes_nothing_where_he_may_not_write(place):
    tree = place.tree
    with place.caller(USER, GROUP):
        assert failure(tree.mkdir, "d") == errno.EACCES
        assert failure(tree.open, "f", os.O_RDWR | os.O_CREAT | os.O_EXCL) == errno.EACCES
        assert failure(tree.symlink, "t", "l") == errno.EACCES
        assert failure(tree.mknod, "n", stat.S_IFREG | 0o600) == errno.EACCES
    assert os.listdir(place.host) == []
    tree.mkdir("afterwards")
    assert made(place, "afterwards")[0] == 0


def test_a_failed_creation_leaves_no_trace_of_the_caller(place):
    """The credentials are switched back on every path."""
    for _ in range(3):
        with place.caller(USER, GROUP):
            assert failure(place.tree.mkdir, "denied") == errno.EACCES
        place.tree.mkdir("allowed")
        assert made(place, "allowed")[:2] == (0, 0)
        place.tree.rmdir("allowed")


def test_the_group_of_the_extension_record_is_not_needed_for_ones_own_group(open_place):
    place = open_place
    (place.host / "d").mkdir()
    os.chown(place.host / "d", 0, GROUP)
    (place.host / "d").chmod(0o770)
    with place.caller(USER, GROUP):
        place.tree.mkdir("d/sub")
    assert made(place, "d/sub")[:2] == (USER, GROUP)


@pytest.mark.mounted
def test_a_user_writes_through_a_supplementary_group(open_place):
    place = open_place
    (place.host / "d").mkdir()
    os.chown(place.host / "d", 0, 7777)
    (place.host / "d").chmod(0o770)
    with place.caller(USER, GROUP):
        assert failure(place.tree.mkdir, "d/without") == errno.EACCES
    with place.caller(USER, GROUP, groups=(7776, 7777)):
        place.tree.mkdir("d/with")
        place.tree.write_file("d/file", b"x")
    assert made(place, "d/with")[:2] == (USER, GROUP)
    assert made(place, "d/file")[:2] == (USER, GROUP)


@pytest.mark.mounted
def test_the_umask_is_heeded(place):
    before = os.umask(0o027)
    try:
        place.tree.mkdir("d", 0o777)
        place.tree.write_file("f", b"", 0o666)
    finally:
        os.umask(before)
    assert made(place, "d")[2] == 0o750
    assert made(place, "f")[2] == 0o640


@pytest.mark.mounted
def test_a_user_reads_and_changes_only_what_the_modes_let_him(place):
    for mode, owner, may_read in (
        (0o600, 0, False),
        (0o644, 0, True),
        (0o400, USER, True),
        (0o040, 0, False),
    ):
        place.tree.write_file("f", b"secret")
        place.tree.chown("f", owner, 0)
        place.tree.chmod("f", mode)
        with place.caller(USER, GROUP):
            if may_read:
                assert place.tree.read_file("f") == b"secret"
            else:
                assert failure(place.tree.read_file, "f") == errno.EACCES
            assert failure(place.tree.open, "f", os.O_WRONLY) == errno.EACCES
            assert failure(place.tree.unlink, "f") == errno.EACCES
            if owner != USER:
                assert failure(place.tree.chmod, "f", 0o666) == errno.EPERM
                assert failure(place.tree.utime, "f", ns=(1, 1)) == errno.EPERM
        place.tree.unlink("f")


@pytest.mark.mounted
def test_in_a_sticky_directory_one_removes_only_ones_own(place):
    (place.host / "d").mkdir()
    (place.host / "d").chmod(0o1777)
    place.tree.write_file("d/roots", b"x")
    with place.caller(USER, GROUP):
        place.tree.write_file("d/mine", b"x")
        assert failure(place.tree.unlink, "d/roots") == errno.EPERM
        assert failure(place.tree.rename, "d/roots", "d/taken") == errno.EPERM
        place.tree.unlink("d/mine")

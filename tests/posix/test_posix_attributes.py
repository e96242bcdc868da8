# SPDX-License-Identifier: Apache-2.0
"""Attributes: what stat(2) shows and chmod(2), chown(2), utimensat(2) change; extended attributes; file
systems."""

import errno
import os
import stat
import time

import pytest

from expect import failure

NS = 10**9


def test_stat_shows_what_the_host_sees(place):
    (place.host / "f").write_bytes(b"x" * 5000)
    os.chmod(place.host / "f", 0o4751)
    os.chown(place.host / "f", 1234, 5678)
    os.utime(place.host / "f", ns=(1_000_000_000_123_456_789, 2_000_000_000_987_654_321))
    ours, host = place.tree.stat("f"), (place.host / "f").stat()
    os.chmod(place.host / "f", 0o600)
    for field in ("ino", "nlink", "uid", "gid", "size", "blocks", "atime_ns", "mtime_ns", "ctime_ns"):
        assert getattr(ours, "st_" + field) == getattr(host, "st_" + field), field
    assert ours.st_mode == host.st_mode


def test_stat_of_every_type(place):
    (place.host / "d").mkdir()
    (place.host / "l").symlink_to("nowhere")
    os.mkfifo(place.host / "p")
    for name in "dlp":
        assert place.tree.stat(name, follow_symlinks=False).st_mode == (place.host / name).lstat().st_mode


def test_stat_by_handle_sees_a_file_without_a_name(place):
    with place.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.pwrite(b"abc", 0)
        place.tree.unlink("f")
        status = file.fstat()
        assert (status.st_size, status.st_nlink) == (3, 0)


def test_chmod_changes_the_permission_bits_only(place):
    (place.host / "f").touch()
    for mode in (0, 0o777, 0o4755, 0o1644):
        place.tree.chmod("f", mode)
        assert (place.host / "f").stat().st_mode == stat.S_IFREG | mode


def test_chown_changes_what_was_asked(place):
    (place.host / "f").touch()
    place.tree.chown("f", 1000, 2000)
    place.tree.chown("f", -1, 3000)
    status = (place.host / "f").stat()
    assert (status.st_uid, status.st_gid) == (1000, 3000)


def test_chown_of_a_link_leaves_its_target_alone(place):
    (place.host / "f").touch()
    (place.host / "l").symlink_to("f")
    place.tree.chown("l", 1000, 1000, follow_symlinks=False)
    assert (place.host / "l").lstat().st_uid == 1000
    assert (place.host / "f").stat().st_uid == 0


@pytest.mark.parametrize(
    "ns",
    [
        (1_600_000_000 * NS + 123_456_789, 1_700_000_000 * NS + 987_654_321),
        (0, 1),
        (-5 * NS + 7, -3 * NS),
        ((1 << 33) * NS + 5, (1 << 33) * NS + 6),
    ],
)
def test_times_are_set_to_the_nanosecond(place, ns):
    (place.host / "f").touch()
    place.tree.utime("f", ns=ns)
    host = (place.host / "f").stat()
    assert (host.st_atime_ns, host.st_mtime_ns) == ns
    ours = place.tree.stat("f")
    assert (ours.st_atime_ns, ours.st_mtime_ns) == ns


def test_times_are_set_to_now(place):
    (place.host / "f").touch()
    os.utime(place.host / "f", (1, 1))
    before = time.time() - 1
    place.tree.utime("f")
    status = (place.host / "f").stat()
    assert status.st_atime >= before
    assert status.st_mtime >= before


def test_times_of_a_link_leave_its_target_alone(place):
    (place.host / "f").touch()
    os.utime(place.host / "f", ns=(5 * NS, 5 * NS))
    (place.host / "l").symlink_to("f")
    place.tree.utime("l", ns=(9 * NS, 9 * NS), follow_symlinks=False)
    assert (place.host / "l").lstat().st_mtime_ns == 9 * NS
    assert (place.host / "f").stat().st_mtime_ns == 5 * NS


def test_the_file_system_is_described(place):
    ours, host = place.tree.statvfs(), os.statvfs(place.host)
    assert (ours.f_frsize, ours.f_blocks, ours.f_files) == (host.f_frsize, host.f_blocks, host.f_files)
    assert ours.f_namemax == 255


def test_syncfs_succeeds_or_is_unknown(place):
    place.tree.write_file("f", b"x")
    place.tree.sync()


# --- extended attributes ---


def test_extended_attributes_are_set_listed_read_and_removed(place):
    (place.host / "f").touch()
    place.tree.setxattr("f", "user.one", b"1")
    place.tree.setxattr("f", "user.two", b"\0binary\xff")
    place.tree.setxattr("f", "user.empty", b"")
    assert os.getxattr(place.host / "f", "user.two") == b"\0binary\xff"
    assert sorted(place.tree.listxattr("f")) == ["user.empty", "user.one", "user.two"]
    assert place.tree.getxattr("f", "user.two") == b"\0binary\xff"
    assert place.tree.getxattr("f", "user.empty") == b""
    place.tree.removexattr("f", "user.one")
    assert sorted(place.tree.listxattr("f")) == ["user.empty", "user.two"]


def test_extended_attributes_of_directories(place):
    (place.host / "d").mkdir()
    place.tree.setxattr("d", "user.x", b"on a directory")
    assert os.getxattr(place.host / "d", "user.x") == b"on a directory"
    assert place.tree.getxattr("d", "user.x") == b"on a directory"
    assert place.tree.listxattr("d") == ["user.x"]


def test_a_missing_attribute_is_an_error(place):
    (place.host / "f").touch()
    assert failure(place.tree.getxattr, "f", "user.none") == errno.ENODATA
    assert failure(place.tree.removexattr, "f", "user.none") == errno.ENODATA
    assert place.tree.listxattr("f") == []


def test_create_and_replace_flags(place):
    (place.host / "f").touch()
    assert failure(place.tree.setxattr, "f", "user.x", b"1", os.XATTR_REPLACE) == errno.ENODATA
    place.tree.setxattr("f", "user.x", b"1", os.XATTR_CREATE)
    assert failure(place.tree.setxattr, "f", "user.x", b"2", os.XATTR_CREATE) == errno.EEXIST
    place.tree.setxattr("f", "user.x", b"2", os.XATTR_REPLACE)
    assert place.tree.getxattr("f", "user.x") == b"2"


def test_a_large_value_goes_both_ways(place):
    (place.host / "f").touch()
    value = bytes(range(256)) * 12
    place.tree.setxattr("f", "user.large", value)
    assert os.getxattr(place.host / "f", "user.large") == value
    assert place.tree.getxattr("f", "user.large") == value


@pytest.mark.parametrize("name", ["", "nodot", "user." + "x" * 300])
def test_bad_names_of_attributes_are_refused(place, name):
    (place.host / "f").touch()
    expected = (errno.EINVAL, errno.ERANGE, errno.EOPNOTSUPP, errno.ENODATA, errno.EPERM)
    assert failure(place.tree.setxattr, "f", name, b"x") in expected
    assert failure(place.tree.getxattr, "f", name) in expected
    assert os.listxattr(place.host / "f") == []


def test_attributes_of_a_symbolic_link_never_touch_its_target(place):
    (place.host / "f").touch()
    (place.host / "l").symlink_to("f")
    refused = (errno.EPERM, errno.EOPNOTSUPP, errno.ELOOP, errno.EBADF)
    assert failure(place.tree.setxattr, "l", "user.x", b"x", follow_symlinks=False) in refused
    assert os.listxattr(place.host / "f") == []


def test_attributes_of_a_fifo_do_not_block(place):
    os.mkfifo(place.host / "p")
    missing = (errno.ENODATA, errno.EPERM, errno.EOPNOTSUPP)
    assert failure(place.tree.getxattr, "p", "user.x") in missing

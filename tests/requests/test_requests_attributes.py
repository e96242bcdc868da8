# SPDX-License-Identifier: Apache-2.0
"""Attributes, as only a request can ask for them or change them."""

import errno
import os
import stat
import time

import pytest

from expect import failure, outcome

NS = 10**9


def test_one_time_is_set_without_the_other(place):
    (place.host / "f").touch()
    os.utime(place.host / "f", ns=(5 * NS, 6 * NS))
    node = place.lookup("f")
    place.session.setattr(node, mtime=7 * NS)
    place.session.forget(node)
    status = (place.host / "f").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (5 * NS, 7 * NS)


def test_several_attributes_change_at_once(place):
    (place.host / "f").write_bytes(b"x" * 100)
    node = place.lookup("f")
    attr = place.session.setattr(node, mode=0o600, size=10, mtime=3 * NS)
    place.session.forget(node)
    status = (place.host / "f").stat()
    assert (status.st_mode & 0o777, status.st_size, status.st_mtime_ns) == (0o600, 10, 3 * NS)
    assert (attr.mode & 0o777, attr.size, attr.mtime) == (0o600, 10, 3)


def test_a_change_of_nothing_returns_the_attributes(place):
    (place.host / "f").write_bytes(b"123")
    node = place.lookup("f")
    assert place.session.setattr(node).size == 3
    place.session.forget(node)


@pytest.mark.c_differs("answers ENOSYS: STATX came after QEMU 7.2")
def test_statx_shows_the_time_of_birth(place):
    (place.host / "f").write_bytes(b"123")
    node = place.lookup("f")
    record = place.session.statx(node)
    place.session.forget(node)
    host = (place.host / "f").stat()
    assert (record.ino, record.size, record.mode) == (host.st_ino, 3, host.st_mode)
    assert record.mtime.tv_sec * NS + record.mtime.tv_nsec == host.st_mtime_ns
    assert abs(record.btime.tv_sec - time.time()) < 3600
    assert (record.dev_major, record.dev_minor) == (os.major(host.st_dev), os.minor(host.st_dev))


def test_access_says_what_exists(place):
    (place.host / "f").touch()
    node = place.lookup("f")
    for mask in (os.F_OK, os.R_OK):
        # ENOSYS: the guest's kernel checks by itself then, as it always does on virtiofs.
        assert outcome(place.session.access, node, mask) in (0, errno.ENOSYS)
    place.session.forget(node)


def test_sizes_of_values_and_lists_can_be_asked(place):
    (place.host / "f").touch()
    os.setxattr(place.host / "f", "user.abc", b"x" * 100)
    node = place.lookup("f")
    assert place.session.getxattr_size(node, "user.abc") == 100
    assert place.session.listxattr_size(node) == len("user.abc") + 1
    assert failure(place.session.getxattr, node, "user.abc", 50) == errno.ERANGE
    assert failure(place.session.listxattr, node, 3) == errno.ERANGE
    place.session.forget(node)


def test_a_mode_with_the_type_of_another_file_changes_the_permission_bits_only(place):
    """Linux sends the type along."""
    (place.host / "f").touch()
    node = place.lookup("f")
    place.session.setattr(node, mode=stat.S_IFDIR | 0o640)
    assert (place.host / "f").stat().st_mode == stat.S_IFREG | 0o640
    place.session.forget(node)

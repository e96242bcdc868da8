# SPDX-License-Identifier: Apache-2.0
"""Handles and flags that Linux would not send."""

import errno
import os
import random

import pytest

from expect import failure

MIB = 1 << 20
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 0x10


def test_negative_and_huge_sizes_are_refused(place):
    (place.host / "f").touch()
    node = place.lookup("f")
    assert failure(place.session.setattr, node, size=(1 << 64) - 1) in (errno.EINVAL, errno.EFBIG)
    place.session.forget(node)


def test_exclusive_create_of_an_existing_name_fails(place):
    (place.host / "f").write_bytes(b"keep")
    assert failure(place.session.create, place.root, "f", os.O_RDWR | os.O_EXCL) == errno.EEXIST
    assert (place.host / "f").read_bytes() == b"keep"


@pytest.mark.c_differs('dies: "invalid openat64 call: O_CREAT or O_TMPFILE without mode"', run=False)
def test_create_of_an_existing_name_opens_it(place):
    (place.host / "f").write_bytes(b"keep")
    entry, handle = place.session.create(place.root, "f")
    assert place.session.read(entry.nodeid, handle.fh, 0, 100) == b"keep"
    place.session.release(entry.nodeid, handle.fh)
    place.session.forget(entry.nodeid)


def test_create_never_follows_a_symbolic_link(place, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    (place.host / "l").symlink_to(outside)
    refused = (errno.ELOOP, errno.EEXIST, errno.EBADF)
    assert failure(place.session.create, place.root, "l", os.O_RDWR) in refused
    assert outside.read_bytes() == b"secret"


def test_open_of_a_symbolic_link_node_is_refused(place, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    (place.host / "l").symlink_to(outside)
    node = place.lookup("l")
    assert failure(place.session.open, node) in (errno.ELOOP, errno.EBADF, errno.EINVAL)
    place.session.forget(node)


def test_an_unknown_handle_is_refused(place):
    (place.host / "f").write_bytes(b"x")
    node = place.lookup("f")
    for handle in (12345, (1 << 64) - 1):
        assert failure(place.session.read, node, handle, 0, 10) == errno.EBADF
        assert failure(place.session.write, node, handle, 0, b"x") == errno.EBADF
        assert failure(place.session.lseek, node, handle, 0, os.SEEK_DATA) == errno.EBADF
    # Not so for a handle of all ones: guests with DAX synchronise by node.
    assert failure(place.session.fsync, node, 12345) == errno.EBADF
    place.session.forget(node)


def test_a_released_handle_is_refused(place):
    (place.host / "f").write_bytes(b"x")
    node = place.lookup("f")
    handle = place.session.open(node)
    place.session.release(node, handle.fh)
    assert failure(place.session.read, node, handle.fh, 0, 10) == errno.EBADF
    place.session.forget(node)


def test_copy_file_range_with_an_unknown_handle_is_refused(place):
    place.tree.write_file("a", b"data")
    with place.tree.open("a") as source:
        bad = (source.nodeid, source.fh, 0, source.nodeid, 99999, 0, 4)
        assert failure(place.session.copy_file_range, *bad) == errno.EBADF


def test_many_reads_in_flight_each_get_their_own_data(place):
    block = 4096
    data = b"".join(i.to_bytes(2, "little") * (block // 2) for i in range(64))
    (place.host / "f").write_bytes(data)
    session = place.session
    node = place.lookup("f")
    handle = session.open(node)
    order = list(range(64)) * 2
    random.Random(4).shuffle(order)
    waiting = [
        (i, session.begin("read", node, room=block, fh=handle.fh, offset=i * block, size=block))
        for i in order
    ]
    for i, pending in waiting:
        assert session.finish(pending, "read", block) == data[i * block : (i + 1) * block]
    session.release(node, handle.fh)
    session.forget(node)

# SPDX-License-Identifier: Apache-2.0
"""Directories: entries with nodes, handles that never were."""

import errno
import os

import pytest

from expect import failure


def read_all(session, node, size):
    """All entries of a directory, in as many requests as it takes; lookups that came with them are given
    back."""
    handle = session.opendir(node)
    entries, cookie = [], 0
    while part := session.readdirplus(node, handle.fh, cookie, size):
        entries += part
        cookie = part[-1].cookie
    session.releasedir(node, handle.fh)
    nodes = [(entry.entry.nodeid, 1) for entry in entries if entry.entry]
    if nodes:
        session.batch_forget(nodes)
    return entries


@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_a_large_directory_is_listed_completely_with_nodes(place, size):
    names = {f"{'n' * (i % 100)}{i}".encode() for i in range(600)}
    for name in names:
        (place.host / os.fsdecode(name)).touch()
    found = [e.name for e in read_all(place.session, place.root, size) if e.name not in (b".", b"..")]
    assert len(found) == len(names)
    assert set(found) == names


def test_listing_with_nodes_gives_the_same_nodes_as_lookup(place):
    for name in "abc":
        (place.host / name).write_bytes(name.encode() * 3)
    handle = place.session.opendir(place.root)
    entries = place.session.readdirplus(place.root, handle.fh)
    nodes = {e.name: e.entry for e in entries if e.entry}
    assert set(nodes) == {b"a", b"b", b"c"}
    for name, entry in nodes.items():
        assert entry.attr.size == 3
        looked_up = place.session.lookup(place.root, name)
        assert looked_up.nodeid == entry.nodeid
        assert looked_up.attr.ino == entry.attr.ino
        place.session.forget(entry.nodeid, 2)
    place.session.releasedir(place.root, handle.fh)


def test_listing_with_nodes_has_no_node_for_dots(place):
    handle = place.session.opendir(place.root)
    entries = {e.name: e for e in place.session.readdirplus(place.root, handle.fh)}
    assert entries[b"."].entry is None
    assert entries[b".."].entry is None
    place.session.releasedir(place.root, handle.fh)


def test_reading_an_unknown_directory_handle_fails(place):
    assert failure(place.session.readdir, place.root, 4711) == errno.EBADF
    assert failure(place.session.readdirplus, place.root, 4711) == errno.EBADF


def test_making_a_file_in_a_removed_directory_fails(place):
    (place.host / "d").mkdir()
    node = place.lookup("d")
    (place.host / "d").rmdir()
    assert failure(place.session.mkdir, node, "x") in (errno.ENOENT, errno.ESTALE)
    place.session.forget(node)

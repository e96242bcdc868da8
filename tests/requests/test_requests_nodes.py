# SPDX-License-Identifier: Apache-2.0
"""Node ids: one per file, valid as long as it was looked up, never mistaken for another."""

import errno
import os

import pytest

from expect import failure

GONE = (errno.ESTALE, errno.EBADF, errno.ENOENT)


def test_the_same_file_has_one_node_id(place):
    (place.host / "f").touch()
    ids = {place.session.lookup(place.root, "f").nodeid for _ in range(5)}
    assert len(ids) == 1
    place.session.forget(ids.pop(), 5)


def test_different_files_have_different_node_ids(place):
    ids = []
    for i in range(200):
        (place.host / f"f{i}").touch()
        ids.append(place.lookup(f"f{i}"))
    assert len(set(ids)) == 200
    assert 0 not in ids
    assert 1 not in ids
    place.session.batch_forget((node, 1) for node in ids)


def test_a_forgotten_node_is_refused(place):
    (place.host / "f").touch()
    node = place.lookup("f")
    place.session.forget(node)
    assert failure(place.session.getattr, node) in GONE
    assert failure(place.session.open, node) in GONE


def test_a_node_lives_until_its_last_lookup_is_given_back(place):
    (place.host / "f").write_bytes(b"123")
    node = place.lookup("f")
    assert {place.lookup("f"), place.lookup("f")} == {node}
    place.session.forget(node, 2)
    assert place.session.getattr(node).size == 3
    place.session.forget(node)
    assert failure(place.session.getattr, node) in GONE


def test_batch_forget_gives_several_nodes_back(place):
    nodes = []
    for name in "abc":
        (place.host / name).touch()
        nodes.append(place.lookup(name))
    place.session.batch_forget([(nodes[0], 1), (nodes[2], 1)])
    assert failure(place.session.getattr, nodes[0]) in GONE
    assert failure(place.session.getattr, nodes[2]) in GONE
    assert place.session.getattr(nodes[1]).nlink == 1
    place.session.forget(nodes[1])


def test_forgetting_what_was_never_known_is_harmless(place):
    place.session.forget(1 << 50)
    place.session.batch_forget([(1 << 50, 3), ((1 << 64) - 1, 1)])
    assert place.session.getattr(place.root).nlink == 2


def test_the_root_is_always_there(place):
    place.session.forget(1, 1)
    assert place.session.getattr(1).ino == os.stat(place.host.parent).st_ino


def test_a_node_follows_its_file_through_a_rename(place):
    (place.host / "f").write_bytes(b"content")
    node = place.lookup("f")
    (place.host / "sub").mkdir()
    place.tree.rename("f", "sub/g")
    assert place.session.getattr(node).size == 7
    handle = place.session.open(node)
    assert place.session.read(node, handle.fh, 0, 100) == b"content"
    place.session.release(node, handle.fh)
    place.session.forget(node)


def test_a_node_follows_its_file_through_a_rename_by_the_host(place):
    (place.host / "d").mkdir()
    (place.host / "d" / "f").write_bytes(b"content")
    directory = place.lookup("d")
    node = place.session.lookup(directory, "f").nodeid
    (place.host / "d").rename(place.host / "e")
    assert place.session.getattr(node).size == 7
    assert place.session.lookup(directory, "f").nodeid == node
    place.session.forget(node, 2)
    place.session.forget(directory)


def test_a_file_replaced_by_the_host_gets_a_new_node(place):
    (place.host / "f").write_bytes(b"old")
    before = place.session.lookup(place.root, "f")
    (place.host / "new").write_bytes(b"longer")
    (place.host / "new").rename(place.host / "f")
    after = place.session.lookup(place.root, "f")
    assert after.nodeid != before.nodeid
    assert after.attr.size == 6
    place.session.batch_forget([(before.nodeid, 1), (after.nodeid, 1)])


def test_a_directory_that_became_a_file_gets_a_new_node(place):
    (place.host / "x").mkdir()
    before = place.lookup("x")
    (place.host / "x").rmdir()
    (place.host / "x").write_bytes(b"file now")
    after = place.session.lookup(place.root, "x")
    assert after.nodeid != before
    assert failure(place.session.opendir, after.nodeid) == errno.ENOTDIR
    place.session.batch_forget([(before, 1), (after.nodeid, 1)])


def test_a_symlink_put_in_place_of_a_directory_never_leads_out(place, tmp_path):
    (tmp_path / "secret").write_bytes(b"outside")
    (place.host / "d").mkdir()
    (place.host / "d" / "secret").write_bytes(b"inside")
    directory = place.lookup("d")
    (place.host / "d").rename(place.host / "old")
    (place.host / "d").symlink_to(tmp_path)
    entry = place.session.lookup(directory, "secret")
    assert entry.attr.size == 6
    place.session.forget(entry.nodeid)
    link = place.lookup("d")
    assert failure(place.session.lookup, link, "secret") in (errno.ENOTDIR, errno.ELOOP)
    place.session.batch_forget([(directory, 1), (link, 1)])


@pytest.mark.parametrize("node", [0, 2**32, 2**64 - 1])
def test_operations_on_node_ids_that_never_were(place, node):
    session = place.session
    for call in (
        lambda: session.getattr(node),
        lambda: session.lookup(node, "x"),
        lambda: session.open(node),
        lambda: session.opendir(node),
        lambda: session.mkdir(node, "x"),
        lambda: session.readlink(node),
        lambda: session.setattr(node, mode=0o600),
        lambda: session.setattr(node, size=0),
        lambda: session.statfs(node),
        lambda: session.getxattr(node, "user.x"),
        lambda: session.listxattr(node),
        lambda: session.link(node, place.root, "x"),
        lambda: session.link(place.root, node, "x"),
        lambda: session.rename(node, "x", place.root, "y"),
        lambda: session.rename(place.root, "x", node, "y"),
    ):
        assert failure(call) in (*GONE, errno.EINVAL, errno.EPERM, errno.EIO, errno.ENOSYS)
    assert os.listdir(place.host) == []


def test_a_thousand_handles_of_one_file(place):
    (place.host / "f").write_bytes(b"x")
    node = place.lookup("f")
    handles = [place.session.open(node).fh for _ in range(1000)]
    assert len(set(handles)) == 1000
    assert all(place.session.read(node, fh, 0, 1) == b"x" for fh in handles[::50])
    for fh in handles:
        place.session.release(node, fh)
    place.session.forget(node)


def test_entries_carry_a_sane_validity(place):
    (place.host / "f").touch()
    entry = place.session.lookup(place.root, "f")
    for seconds, nanoseconds in (
        (entry.entry_valid, entry.entry_valid_nsec),
        (entry.attr_valid, entry.attr_valid_nsec),
    ):
        assert seconds < 1 << 40
        assert nanoseconds < 10**9
    place.session.forget(entry.nodeid)

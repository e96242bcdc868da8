# SPDX-License-Identifier: Apache-2.0
"""Directories: making, removing and listing them."""

import errno
import os
import stat

import pytest
from expect import failure, outcome

DIRENT_ROOM = 4096


def read_all(session, node, plus=False, size=DIRENT_ROOM):
    """All entries of a directory, in as many requests as it takes; lookups that came with them are given
    back."""
    handle = session.opendir(node)
    entries, cookie = [], 0
    while part := (session.readdirplus if plus else session.readdir)(node, handle.fh, cookie, size):
        entries += part
        cookie = part[-1].cookie
    session.releasedir(node, handle.fh)
    for entry in entries:
        if entry.entry:
            session.forget(entry.entry.nodeid)
    return entries


def test_mkdir_makes_a_directory_with_the_mode(place):
    place.tree.mkdir("d", 0o750)
    status = (place.host / "d").stat()
    assert stat.S_ISDIR(status.st_mode)
    assert status.st_mode & 0o7777 == 0o750


def test_mkdir_over_anything_fails(place):
    (place.host / "f").touch()
    (place.host / "d").mkdir()
    assert failure(place.tree.mkdir, "f") == errno.EEXIST
    assert failure(place.tree.mkdir, "d") == errno.EEXIST


def test_nested_directories(place):
    path = ""
    for i in range(20):
        path += f"/d{i}"
        place.tree.mkdir(path)
    place.tree.write_file(path + "/f", b"deep")
    assert (place.host / path.lstrip("/") / "f").read_bytes() == b"deep"
    assert place.tree.read_file(path + "/../" + f"d{19}/f") == b"deep"


def test_rmdir_removes_an_empty_directory(place):
    (place.host / "d").mkdir()
    place.tree.rmdir("d")
    assert not (place.host / "d").exists()


def test_rmdir_of_a_directory_that_is_not_empty_fails(place):
    (place.host / "d").mkdir()
    (place.host / "d" / "f").touch()
    assert failure(place.tree.rmdir, "d") == errno.ENOTEMPTY
    assert (place.host / "d" / "f").exists()


def test_rmdir_of_a_file_and_unlink_of_a_directory_fail(place):
    (place.host / "d").mkdir()
    (place.host / "f").touch()
    assert failure(place.tree.rmdir, "f") == errno.ENOTDIR
    assert failure(place.tree.unlink, "d") == errno.EISDIR


def test_removing_what_is_not_there_fails(place):
    assert failure(place.tree.unlink, "missing") == errno.ENOENT
    assert failure(place.tree.rmdir, "missing") == errno.ENOENT


def test_listing_gives_every_name_once_with_its_type(place):
    (place.host / "d").mkdir()
    (place.host / "f").touch()
    (place.host / "l").symlink_to("f")
    os.mkfifo(place.host / "p")
    types = {entry.name: entry.type for entry in place.tree.scan("/")}
    assert types == {
        b"d": stat.S_IFDIR >> 12,
        b"f": stat.S_IFREG >> 12,
        b"l": stat.S_IFLNK >> 12,
        b"p": stat.S_IFIFO >> 12,
    }


def test_listing_gives_inode_numbers(place):
    (place.host / "f").touch()
    entries = {entry.name: entry.ino for entry in place.tree.scan("/")}
    assert entries[b"f"] == (place.host / "f").stat().st_ino


def test_an_empty_directory_lists_only_itself_and_its_parent(place):
    names = [entry.name for entry in read_all(place.session, place.root)]
    assert sorted(names) == [b".", b".."]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_a_large_directory_is_listed_completely(place, plus, size):
    names = {f"{'n' * (i % 100)}{i}".encode() for i in range(1500)}
    for name in names:
        (place.host / os.fsdecode(name)).touch()
    found = [e.name for e in read_all(place.session, place.root, plus, size) if e.name not in (b".", b"..")]
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


def test_listing_can_continue_from_any_cookie(place):
    for i in range(50):
        (place.host / f"f{i}").touch()
    handle = place.session.opendir(place.root)
    everything = place.session.readdir(place.root, handle.fh, 0, 65536)
    for i in (0, 1, 17, 49):
        rest = place.session.readdir(place.root, handle.fh, everything[i].cookie, 65536)
        assert [e.name for e in rest] == [e.name for e in everything[i + 1 :]]
    assert place.session.readdir(place.root, handle.fh, 0, 65536) == everything
    place.session.releasedir(place.root, handle.fh)


def test_names_that_stay_are_listed_once_while_others_come_and_go(place):
    stay = {f"stay{i}" for i in range(300)}
    for name in stay:
        (place.host / name).touch()
    for i in range(300):
        (place.host / f"go{i}").touch()
    handle = place.session.opendir(place.root)
    found, cookie, turn = [], 0, 0
    while part := place.session.readdir(place.root, handle.fh, cookie, 1024):
        found += [os.fsdecode(e.name) for e in part]
        cookie = part[-1].cookie
        (place.host / f"go{turn}").unlink(missing_ok=True)
        (place.host / f"new{turn}").touch()
        turn += 1
    place.session.releasedir(place.root, handle.fh)
    assert sorted(name for name in found if name in stay) == sorted(stay)


def test_a_buffer_too_small_for_one_entry_gives_an_error_or_whole_entries(place):
    (place.host / ("x" * 200)).touch()
    handle = place.session.opendir(place.root)
    cookie = 0
    while not (error := outcome(place.session.readdir, place.root, handle.fh, cookie, 64)):
        entries = place.session.readdir(place.root, handle.fh, cookie, 64)
        assert {e.name for e in entries} <= {b".", b".."}
        if not entries:
            break
        cookie = entries[-1].cookie
    assert error in (0, errno.EINVAL)  # as getdents64(2)
    place.session.releasedir(place.root, handle.fh)


def test_opendir_of_a_file_fails(place):
    (place.host / "f").touch()
    node = place.lookup("f")
    assert failure(place.session.opendir, node) == errno.ENOTDIR
    place.session.forget(node)


def test_reading_an_unknown_directory_handle_fails(place):
    assert failure(place.session.readdir, place.root, 4711) == errno.EBADF
    assert failure(place.session.readdirplus, place.root, 4711) == errno.EBADF


def test_fsyncdir_succeeds(place):
    handle = place.session.opendir(place.root)
    place.session.fsyncdir(place.root, handle.fh)
    place.session.releasedir(place.root, handle.fh)


def test_a_directory_removed_while_open_lists_nothing_new(place):
    (place.host / "d").mkdir()
    node = place.lookup("d")
    handle = place.session.opendir(node)
    place.tree.rmdir("d")
    if error := outcome(place.session.readdir, node, handle.fh):
        assert error == errno.ENOENT  # as getdents64(2); Linux does not even ask
    else:
        assert {e.name for e in place.session.readdir(node, handle.fh)} <= {b".", b".."}
    place.session.releasedir(node, handle.fh)
    place.session.forget(node)


def test_making_a_file_in_a_removed_directory_fails(place):
    (place.host / "d").mkdir()
    node = place.lookup("d")
    (place.host / "d").rmdir()
    assert failure(place.session.mkdir, node, "x") in (errno.ENOENT, errno.ESTALE)
    place.session.forget(node)


def test_walk_visits_everything(place):
    for path in ("a/b", "a/c", "d"):
        (place.host / path).mkdir(parents=True)
        (place.host / path / "f").touch()
    walked = {path: (sorted(dirs), sorted(files)) for path, dirs, files in place.tree.walk()}
    assert walked == {
        "/": (["a", "d"], []),
        "/a": (["b", "c"], []),
        "/a/b": ([], ["f"]),
        "/a/c": ([], ["f"]),
        "/d": ([], ["f"]),
    }

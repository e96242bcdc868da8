# SPDX-License-Identifier: Apache-2.0
"""Directories: making, removing and listing them."""

import errno
import os
import stat

import pytest

from expect import failure, outcome

DIRENT_ROOM = 4096


def read_all(directory, cookie=0, size=65536):
    """The entries behind `cookie`, in as many reads as it takes."""
    entries = []
    while part := directory.read(entries[-1].cookie if entries else cookie, size):
        entries += part
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
    with place.tree.opendir() as directory:
        assert sorted(entry.name for entry in directory.read()) == [b".", b".."]
        assert {entry.type for entry in directory.read()} == {stat.S_IFDIR >> 12}


def test_listing_can_continue_from_any_cookie(place):
    for i in range(50):
        (place.host / f"f{i}").touch()
    with place.tree.opendir() as directory:
        everything = read_all(directory)
        assert len(everything) == 52
        for i in (0, 1, 17, 49):
            rest = read_all(directory, everything[i].cookie)
            assert [e.name for e in rest] == [e.name for e in everything[i + 1 :]]
        assert read_all(directory) == everything


def test_names_that_stay_are_listed_once_while_others_come_and_go(place):
    stay = {f"stay{i}" for i in range(300)}
    for name in stay:
        (place.host / name).touch()
    for i in range(300):
        (place.host / f"go{i}").touch()
    found, cookie, turn = [], 0, 0
    with place.tree.opendir() as directory:
        while part := directory.read(cookie, 1024):
            found += [os.fsdecode(e.name) for e in part]
            cookie = part[-1].cookie
            (place.host / f"go{turn}").unlink(missing_ok=True)
            (place.host / f"new{turn}").touch()
            turn += 1
    assert sorted(name for name in found if name in stay) == sorted(stay)


def test_a_buffer_too_small_for_one_entry_gives_an_error_or_whole_entries(place):
    (place.host / ("x" * 200)).touch()
    cookie = 0
    with place.tree.opendir() as directory:
        while not (error := outcome(directory.read, cookie, 64)):
            entries = directory.read(cookie, 64)
            assert {e.name for e in entries} <= {b".", b".."}
            if not entries:
                break
            cookie = entries[-1].cookie
    assert error in (0, errno.EINVAL)  # as getdents64(2)


def test_opendir_of_a_file_fails(place):
    (place.host / "f").touch()
    assert failure(place.tree.opendir, "f") == errno.ENOTDIR


def test_fsyncdir_succeeds(place):
    with place.tree.opendir() as directory:
        directory.fsync()


def test_a_directory_removed_while_open_lists_nothing_new(place):
    (place.host / "d").mkdir()
    with place.tree.opendir("d") as directory:
        place.tree.rmdir("d")
        if error := outcome(directory.read):
            assert error == errno.ENOENT  # as getdents64(2)
        else:
            assert {e.name for e in directory.read()} <= {b".", b".."}


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


@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_a_large_directory_is_listed_completely(place, size):
    names = {f"{'n' * (i % 100)}{i}".encode() for i in range(1500)}
    for name in names:
        (place.host / os.fsdecode(name)).touch()
    with place.tree.opendir() as directory:
        found = read_all(directory, size=size)
    assert len(found) == len(names) + 2
    assert {entry.name for entry in found} == names | {b".", b".."}

# SPDX-License-Identifier: Apache-2.0
"""Names: which are found, which are refused, links and renames."""

import contextlib
import errno
import os
import stat

import pytest

from expect import failure

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
REFUSED = (errno.EINVAL, errno.ENOENT, errno.EPERM, errno.EEXIST, errno.EIO, errno.EBUSY, errno.ENOTEMPTY)


def test_names_may_hold_any_bytes_but_slash_and_nul(place):
    name = bytes(set(range(1, 256)) - {ord("/")})
    assert len(name) == 254
    place.tree.write_file(os.fsdecode(name), b"x")
    assert os.listdir(os.fsencode(place.host)) == [name]
    assert [e.name for e in place.tree.scan("/")] == [name]
    assert place.tree.stat(os.fsdecode(name)).st_size == 1


def test_the_longest_name_works_and_a_longer_one_does_not(place):
    place.tree.write_file("n" * 255, b"x")
    assert place.tree.read_file("n" * 255) == b"x"
    assert failure(place.tree.stat, "n" * 256) in (errno.ENAMETOOLONG, errno.EINVAL)
    assert failure(place.tree.mkdir, "n" * 256) in (errno.ENAMETOOLONG, errno.EINVAL)


def test_a_symbolic_link_is_made_read_and_removed(place):
    place.tree.symlink("some/../target with spaces", "l")
    assert os.readlink(place.host / "l") == "some/../target with spaces"
    assert place.tree.readlink("l") == "some/../target with spaces"
    assert stat.S_ISLNK(place.tree.stat("l", follow_symlinks=False).st_mode)
    place.tree.unlink("l")
    assert not os.path.lexists(place.host / "l")


def test_a_long_link_target_is_read_whole(place):
    target = "/".join(["x" * 200] * 20)[:4000]
    (place.host / "l").symlink_to(target)
    assert place.tree.readlink("l") == target


def test_symlink_over_an_existing_name_fails(place):
    (place.host / "f").touch()
    assert failure(place.tree.symlink, "t", "f") == errno.EEXIST


def test_readlink_of_a_file_fails(place):
    (place.host / "f").touch()
    # Linux never asks; readlinkat(2) of an O_PATH descriptor says ENOENT.
    assert failure(place.tree.readlink, "f") in (errno.EINVAL, errno.ENOENT)


def test_a_hard_link_is_the_same_file(place):
    place.tree.write_file("f", b"one")
    place.tree.link("f", "g")
    assert os.path.samefile(place.host / "f", place.host / "g")
    assert place.tree.stat("f").st_nlink == 2
    place.tree.write_file("g", b"two")
    assert place.tree.read_file("f") == b"two"
    place.tree.unlink("f")
    assert place.tree.stat("g").st_nlink == 1


def test_a_hard_link_to_a_symbolic_link_links_the_link(place):
    place.tree.symlink("target", "l")
    place.tree.link("l", "m")
    assert os.readlink(place.host / "m") == "target"


def test_link_over_an_existing_name_or_of_a_directory_fails(place):
    (place.host / "f").touch()
    (place.host / "g").touch()
    (place.host / "d").mkdir()
    assert failure(place.tree.link, "f", "g") == errno.EEXIST
    assert failure(place.tree.link, "d", "e") == errno.EPERM


def test_rename_moves_a_file_between_directories(place):
    (place.host / "a").mkdir()
    (place.host / "b").mkdir()
    place.tree.write_file("a/f", b"moved")
    place.tree.rename("a/f", "b/g")
    assert not (place.host / "a" / "f").exists()
    assert (place.host / "b" / "g").read_bytes() == b"moved"


def test_rename_replaces_a_file(place):
    place.tree.write_file("f", b"new")
    place.tree.write_file("g", b"old")
    place.tree.rename("f", "g")
    assert os.listdir(place.host) == ["g"]
    assert place.tree.read_file("g") == b"new"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("missing", "x", (errno.ENOENT,)),
        ("d", "f", (errno.ENOTDIR,)),
        ("f", "d", (errno.EISDIR,)),
        ("d", "full", (errno.ENOTEMPTY, errno.EEXIST)),
        ("full", "full/inside/below", (errno.EINVAL,)),
    ],
)
def test_renames_that_cannot_be_fail(place, old, new, expected):
    (place.host / "f").touch()
    (place.host / "d").mkdir()
    (place.host / "full" / "inside").mkdir(parents=True)
    assert failure(place.tree.rename, old, new) in expected


def test_rename_without_replacing(place):
    place.tree.write_file("f", b"f")
    place.tree.write_file("g", b"g")
    assert failure(place.tree.rename, "f", "g", RENAME_NOREPLACE) == errno.EEXIST
    assert place.tree.read_file("g") == b"g"
    place.tree.rename("f", "h", RENAME_NOREPLACE)
    assert place.tree.read_file("h") == b"f"


def test_rename_can_exchange_two_names(place):
    place.tree.write_file("f", b"f")
    place.tree.mkdir("d")
    place.tree.rename("f", "d", RENAME_EXCHANGE)
    assert place.tree.read_file("d") == b"f"
    assert stat.S_ISDIR(place.tree.stat("f").st_mode)


def test_rename_with_unknown_flags_is_refused(place):
    place.tree.write_file("f", b"f")
    assert failure(place.tree.rename, "f", "g", 0x8000) == errno.EINVAL
    assert place.tree.read_file("f") == b"f"


def test_mknod_makes_files_fifos_and_sockets(place):
    for name, kind in (("r", stat.S_IFREG), ("p", stat.S_IFIFO), ("s", stat.S_IFSOCK)):
        place.tree.mknod(name, kind | 0o600)
        status = (place.host / name).lstat()
        assert stat.S_IFMT(status.st_mode) == kind
        assert status.st_mode & 0o7777 == 0o600


def test_mknod_over_an_existing_name_fails(place):
    (place.host / "f").touch()
    assert failure(place.tree.mknod, "f") == errno.EEXIST


def test_opening_a_fifo_never_blocks_the_device(place):
    os.mkfifo(place.host / "p")
    # A guest opens its own pipe, never ours: whatever is answered, it comes at once and the device lives on.
    with contextlib.suppress(OSError), place.tree.open("p", os.O_RDONLY | os.O_NONBLOCK):
        pass
    assert place.tree.listdir("/") == ["p"]


def test_a_name_that_is_not_there_appears_when_it_is_made(place):
    for _ in range(3):
        assert failure(place.tree.stat, "f") == errno.ENOENT
        place.tree.write_file("f", b"x")
        assert place.tree.stat("f").st_size == 1
        place.tree.unlink("f")


def test_a_file_is_no_directory(place):
    (place.host / "f").touch()
    assert failure(place.tree.stat, "f/x") == errno.ENOTDIR
    assert failure(place.tree.mkdir, "f/x") == errno.ENOTDIR


def test_links_in_a_path_are_followed(place):
    (place.host / "d").mkdir()
    (place.host / "d" / "f").write_bytes(b"through a link")
    (place.host / "l").symlink_to("d")
    (place.host / "m").symlink_to("l/../d/f")
    assert place.tree.read_file("l/f") == b"through a link"
    assert place.tree.read_file("m") == b"through a link"
    (place.host / "loop").symlink_to("loop")
    assert failure(place.tree.read_file, "loop") == errno.ELOOP


def test_rename_moves_a_directory_with_what_is_in_it(place):
    (place.host / "a" / "b").mkdir(parents=True)
    (place.host / "a" / "b" / "f").write_bytes(b"inside")
    with place.tree.open("a/b/f", os.O_RDWR) as file:
        place.tree.rename("a", "z")
        assert file.pread(100, 0) == b"inside"
        file.pwrite(b"still ", 0)
    assert failure(place.tree.stat, "a/b/f") == errno.ENOENT
    assert place.tree.read_file("z/b/f") == b"still "

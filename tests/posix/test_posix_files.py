# SPDX-License-Identifier: Apache-2.0
"""File content: reading, writing, sizes, holes, copies."""

import contextlib
import errno
import os
import random

import pytest

from expect import failure

MIB = 1 << 20
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 0x10


def test_written_data_is_in_the_host_file_and_reads_back(place):
    data = random.Random(1).randbytes(3 * MIB + 17)
    place.tree.write_file("f", data)
    assert (place.host / "f").read_bytes() == data
    assert place.tree.read_file("f") == data


def test_data_written_by_the_host_is_read(place):
    data = random.Random(2).randbytes(MIB + 1)
    (place.host / "f").write_bytes(data)
    assert place.tree.read_file("f") == data


@pytest.mark.parametrize("size", [0, 1, 15, 16, 4095, 4096, 4097, 65536, 131071])
def test_every_size_reads_back(place, size):
    data = random.Random(size).randbytes(size)
    place.tree.write_file("f", data)
    assert place.tree.read_file("f") == data
    assert place.tree.stat("f").st_size == size


def test_read_returns_fewer_bytes_only_at_the_end(place):
    (place.host / "f").write_bytes(b"0123456789")
    with place.tree.open("f") as file:
        assert file.pread(4, 0) == b"0123"
        assert file.pread(4, 8) == b"89"
        assert file.pread(4, 10) == b""
        assert file.pread(4, 1 << 40) == b""


def test_overwriting_the_middle_keeps_the_rest(place):
    (place.host / "f").write_bytes(b"a" * 10000)
    with place.tree.open("f", os.O_RDWR) as file:
        assert file.pwrite(b"XYZ", 5000) == 3
    assert (place.host / "f").read_bytes() == b"a" * 5000 + b"XYZ" + b"a" * 4997


def test_writing_behind_the_end_leaves_a_hole_of_zeros(place):
    with place.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.pwrite(b"end", 10 * MIB)
        assert file.pread(8, 5 * MIB) == bytes(8)
    status = (place.host / "f").stat()
    assert status.st_size == 10 * MIB + 3
    assert status.st_blocks * 512 < MIB


def test_append_goes_to_the_end_whatever_the_offset(place):
    (place.host / "f").write_bytes(b"start-")
    with place.tree.open("f", os.O_WRONLY | os.O_APPEND) as file:
        (place.host / "f").write_bytes(b"start-host-")
        file.pwrite(b"guest", 6)
    # Linux sends the offset of the end it knows: a device may take the offset or, with O_APPEND, the real end.
    content = (place.host / "f").read_bytes()
    assert content == b"start-host-guest"


def test_truncate_shrinks_and_grows_with_zeros(place):
    place.tree.write_file("f", b"x" * 5000)
    place.tree.truncate("f", 100)
    assert (place.host / "f").read_bytes() == b"x" * 100
    place.tree.truncate("f", 300)
    assert (place.host / "f").read_bytes() == b"x" * 100 + bytes(200)


def test_truncate_through_an_open_file(place):
    with place.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.pwrite(b"abcdef", 0)
        file.ftruncate(3)
        assert file.fstat().st_size == 3
        assert file.pread(10, 0) == b"abc"


def test_opening_with_truncation_empties_the_file(place):
    (place.host / "f").write_bytes(b"old")
    with place.tree.open("f", os.O_WRONLY | os.O_TRUNC):
        assert (place.host / "f").stat().st_size == 0


def test_truncate_of_a_directory_is_refused(place):
    (place.host / "d").mkdir()
    assert failure(place.tree.truncate, "d", 0) == errno.EISDIR


def test_a_file_stays_readable_and_writable_after_unlink(place):
    with place.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.pwrite(b"before", 0)
        place.tree.unlink("f")
        assert not (place.host / "f").exists()
        file.pwrite(b" after", 6)
        assert file.pread(100, 0) == b"before after"
        assert file.fstat().st_nlink == 0


def test_rename_over_an_open_file_keeps_the_old_contents_readable(place):
    place.tree.write_file("f", b"old")
    place.tree.write_file("g", b"new")
    with place.tree.open("f") as file:
        place.tree.rename("g", "f")
        assert file.pread(100, 0) == b"old"
    assert place.tree.read_file("f") == b"new"


def test_create_makes_a_file_with_the_mode(place):
    with place.tree.open("f", os.O_RDWR | os.O_CREAT, 0o640) as file:
        file.pwrite(b"x", 0)
    assert (place.host / "f").stat().st_mode & 0o7777 == 0o640


def test_reading_a_handle_that_is_only_for_writing_fails(place):
    (place.host / "f").write_bytes(b"x")
    with place.tree.open("f", os.O_WRONLY) as file:
        assert failure(file.pread, 10, 0) == errno.EBADF


def test_writing_a_handle_that_is_only_for_reading_fails(place):
    (place.host / "f").write_bytes(b"x")
    with place.tree.open("f") as file:
        assert failure(file.pwrite, b"data", 0) == errno.EBADF
    assert (place.host / "f").read_bytes() == b"x"


def test_flush_fsync_and_release_succeed(place):
    with place.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.pwrite(b"data", 0)
        file.fsync()
        file.fsync(datasync=True)


def test_two_handles_of_one_file_see_each_other(place):
    (place.host / "f").touch()
    with place.tree.open("f", os.O_RDWR) as first, place.tree.open("f") as second:
        first.pwrite(b"shared", 0)
        assert second.pread(10, 0) == b"shared"


def test_seek_finds_data_and_holes(place):
    with (place.host / "f").open("wb") as file:
        file.truncate(4 * MIB)
        file.seek(2 * MIB)
        file.write(b"x" * 4096)
    with place.tree.open("f") as file:
        data = file.lseek(0, os.SEEK_DATA)
        assert data == os.lseek(os.open(place.host / "f", os.O_RDONLY), 0, os.SEEK_DATA)
        assert file.lseek(data, os.SEEK_HOLE) > data
        assert failure(file.lseek, 4 * MIB, os.SEEK_DATA) == errno.ENXIO


def test_fallocate_grows_the_file(place):
    with place.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.fallocate(0, 0, MIB)
    status = (place.host / "f").stat()
    assert status.st_size == MIB
    assert status.st_blocks * 512 >= MIB


def test_fallocate_can_keep_the_size(place):
    with place.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.pwrite(b"abc", 0)
        file.fallocate(FALLOC_KEEP_SIZE, 0, MIB)
        assert file.fstat().st_size == 3


def test_fallocate_punches_a_hole(place):
    place.tree.write_file("f", b"x" * MIB)
    with place.tree.open("f", os.O_RDWR) as file:
        file.fallocate(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 4096, 8192)
        assert file.pread(16384, 0) == b"x" * 4096 + bytes(8192) + b"x" * 4096


def test_fallocate_with_nonsense_is_refused(place):
    with place.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        assert failure(file.fallocate, 0, 0, 0) == errno.EINVAL
        assert failure(file.fallocate, 0x8000, 0, 10) in (errno.EINVAL, errno.EOPNOTSUPP)


def test_copy_file_range_copies_inside_the_share(place):
    data = random.Random(3).randbytes(MIB)
    place.tree.write_file("a", data)
    with place.tree.open("a") as source, place.tree.open("b", os.O_RDWR | os.O_CREAT) as target:
        done = 0
        while done < MIB - 100:
            done += source.copy_to(target, MIB - 100 - done, 100 + done, 7 + done)
    assert (place.host / "b").read_bytes() == bytes(7) + data[100:]


def test_files_beyond_4_gib_work(place):
    offset = (5 << 30) + 123
    with place.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.pwrite(b"far", offset)
        assert file.fstat().st_size == offset + 3
        assert file.pread(3, offset) == b"far"


@pytest.mark.c_differs("answers ENOSYS: TMPFILE came after QEMU 7.2")
def test_a_file_without_a_name_can_be_written_and_disappears(place):
    with place.tree.open("", os.O_TMPFILE | os.O_RDWR) as file:
        assert file.pwrite(b"temporary", 0) == 9
        assert file.pread(100, 0) == b"temporary"
        assert file.fstat().st_nlink == 0
        assert os.listdir(place.host) == []


@pytest.mark.c_differs("answers ENOSYS: TMPFILE came after QEMU 7.2")
def test_a_file_without_a_name_can_be_given_one(place):
    with place.tree.open("", os.O_TMPFILE | os.O_RDWR) as file:
        file.pwrite(b"named later", 0)
        place.tree.link_open(file, "f")
        assert file.fstat().st_nlink == 1
    assert (place.host / "f").read_bytes() == b"named later"


def test_exclusive_create_makes_a_file_and_refuses_an_existing_name(place):
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    with place.tree.open("new", flags) as file:
        file.pwrite(b"new", 0)
    (place.host / "f").write_bytes(b"keep")
    (place.host / "l").symlink_to("nowhere")
    for name in ("new", "f", "l"):
        assert failure(place.tree.open, name, flags) == errno.EEXIST
    assert (place.host / "f").read_bytes() == b"keep"
    assert not (place.host / "nowhere").exists()


def test_a_symbolic_link_is_not_opened_where_links_are_not_followed(place):
    (place.host / "f").write_bytes(b"secret")
    (place.host / "l").symlink_to("f")
    assert failure(place.tree.open, "l", os.O_RDONLY | os.O_NOFOLLOW) in (
        errno.ELOOP,
        errno.EBADF,
        errno.EINVAL,
    )


def test_a_thousand_descriptors_of_one_file(place):
    (place.host / "f").write_bytes(b"x")
    with contextlib.ExitStack() as held:
        files = [held.enter_context(place.tree.open("f")) for _ in range(900)]
        assert all(file.pread(1, 0) == b"x" for file in files[::50])

# SPDX-License-Identifier: Apache-2.0
"""Contents of files: what the guest writes the host has, and the other way round."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import guest_kernel
import probe as probes
import pytest
from shares import Place

import devices

pytestmark = pytest.mark.guest

BIG = 256 << 20
PAGE = 4096


def data_and_holes(path: Path) -> list[tuple[int, int]]:
    """The parts of a host file that hold data: (start, end) each."""
    parts = []
    with open(path, "rb") as file:
        size, end = os.fstat(file.fileno()).st_size, 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            parts.append((start, end))
    return parts


def test_a_created_file_has_the_contents_and_mode_it_was_given(place: Place) -> None:
    assert place.do(("open", "f", "new", "w,creat,excl", "640"), ("write", "f", "hello\n")) == 6
    status = (place.host / "new").stat()
    assert (place.host / "new").read_bytes() == b"hello\n"
    assert (status.st_mode, status.st_uid, status.st_gid) == (0o100640, 0, 0)
    assert place.do(("open", "f", "new", "w,creat,excl", "640")) == "EEXIST"


def test_what_is_appended_goes_to_the_end_also_after_the_host_appended(place: Place) -> None:
    def from_the_host() -> None:
        with open(place.host / "log", "a") as file:
            file.write("from the host\n")

    place.do(
        ("open", "f", "log", "w,creat,append"),
        ("write", "f", "one\n"),
        ("wait", "host"),
        ("write", "f", "two\n"),
        answers={"host": from_the_host},
    )
    assert (place.host / "log").read_text() == "one\nfrom the host\ntwo\n"


def test_overwriting_a_part_keeps_the_rest(place: Place) -> None:
    (place.host / "f").write_bytes(b"a" * 10000)
    assert place.do(
        ("open", "f", "f", "rw"), ("pwrite", "f", 4090, "XXXXXXXXXXXX"), ("pread", "f", 4088, 16)
    ) == (b"aaXXXXXXXXXXXXaa")
    assert (place.host / "f").read_bytes() == b"a" * 4090 + b"X" * 12 + b"a" * 5898


def test_opening_with_truncation_empties_the_file(place: Place) -> None:
    (place.host / "f").write_bytes(b"old contents")
    place.output("echo new >f")
    assert (place.host / "f").read_bytes() == b"new\n"


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, PAGE + 1, 9999])
def test_truncating_shrinks_a_file_and_what_is_gone_stays_gone(place: Place, size: int) -> None:
    contents = os.urandom(10000)
    (place.host / "f").write_bytes(contents)
    # Reading first leaves the old pages in the guest's cache; growing again must not show them.
    place.do(
        ("open", "f", "f", "rw"),
        ("pread", "f", 0, 10000),
        ("ftruncate", "f", size),
        ("ftruncate", "f", 12000),
    )
    expected = contents[:size] + bytes(12000 - size)
    assert (place.host / "f").read_bytes() == expected
    assert place.do(("open", "f", "f", "r"), ("pread", "f", 0, 20000)) == expected


def test_truncating_by_name_grows_a_file_with_zeros(place: Place) -> None:
    (place.host / "f").write_bytes(b"abc")
    assert place.do(("truncate", "f", 5000)) is None
    assert (place.host / "f").read_bytes() == b"abc" + bytes(4997)


def test_holes_stay_holes_and_both_sides_find_them(place: Place) -> None:
    # 1 MiB apart, so that no file system of the host rounds a hole away.
    steps = place.steps(
        ("open", "f", "f", "rw,creat"),
        ("ftruncate", "f", 4 << 20),
        ("pwrite", "f", 1 << 20, "one"),
        ("pwrite", "f", 3 << 20, "two"),
        ("fsync", "f"),
        ("seek", "f", 0, "data"),
        ("seek", "f", 1 << 20, "hole"),
        ("seek", "f", (1 << 20) + PAGE, "data"),
        ("seek", "f", (3 << 20) + PAGE, "data"),
    )
    assert data_and_holes(place.host / "f") == [(1 << 20, (1 << 20) + PAGE), (3 << 20, (3 << 20) + PAGE)]
    assert (place.host / "f").stat().st_blocks * 512 < 64 << 10
    assert steps[5:] == [1 << 20, (1 << 20) + PAGE, 3 << 20, "ENXIO"]
    assert place.do(("open", "f", "f", "r"), ("pread", "f", (1 << 20) - 2, 7)) == b"\0\0one\0\0"


def test_fallocate_reserves_and_punches(place: Place) -> None:
    (place.host / "f").write_bytes(b"x" * (64 << 10))
    place.do(
        ("open", "f", "f", "rw"),
        ("fallocate", "f", "punch,keep", 16 << 10, 32 << 10),
        ("fallocate", "f", "keep", 64 << 10, 64 << 10),
    )
    assert (place.host / "f").read_bytes() == b"x" * (16 << 10) + bytes(32 << 10) + b"x" * (16 << 10)
    assert data_and_holes(place.host / "f") == [(0, 16 << 10), (48 << 10, 64 << 10)]
    assert (
        place.do(("open", "f", "f", "rw"), ("fallocate", "f", "", 0, 256 << 10), ("size", "f")) == 256 << 10
    )
    assert (place.host / "f").stat().st_blocks * 512 >= 256 << 10


def test_copy_file_range_copies_within_the_share(place: Place) -> None:
    contents = os.urandom(1 << 20)
    (place.host / "from").write_bytes(contents)
    copied = place.do(
        ("open", "in", "from", "r"),
        ("open", "out", "to", "rw,creat"),
        ("copy", "in", 4096, "out", 100, 500000),
    )
    assert copied == 500000
    assert (place.host / "to").read_bytes() == bytes(100) + contents[4096:504096]


def test_a_mapping_shows_what_the_host_wrote(place: Place) -> None:
    (place.host / "f").write_bytes(b"a" * PAGE + b"b" * PAGE + b"c" * 100)
    loaded = place.steps(
        ("open", "f", "f", "r"),
        ("map", "m", "f", 3 * PAGE, "r"),
        ("load", "m", PAGE - 2, 4),
        ("load", "m", 2 * PAGE + 98, 4),
    )[2:]
    assert loaded == [b"aabb", b"cc\0\0"]


def test_shared_writes_through_a_mapping_reach_the_host_with_msync(place: Place) -> None:
    (place.host / "f").write_bytes(bytes(4 * PAGE))
    seen: list[bytes] = []
    place.do(
        ("open", "f", "f", "rw"),
        ("map", "m", "f", 4 * PAGE, "rw"),
        ("store", "m", 10, "first"),
        ("store", "m", 2 * PAGE - 3, "across"),
        ("msync", "m"),
        ("wait", "look"),
        ("store", "m", 3 * PAGE, "later"),
        ("unmap", "m"),
        ("fsync", "f"),
        answers={"look": lambda: seen.append((place.host / "f").read_bytes())},
    )
    expected = bytearray(4 * PAGE)
    expected[10:15] = b"first"
    expected[2 * PAGE - 3 : 2 * PAGE + 3] = b"across"
    assert seen == [bytes(expected)]
    expected[3 * PAGE : 3 * PAGE + 5] = b"later"
    assert (place.host / "f").read_bytes() == bytes(expected)


def test_a_mapping_and_the_files_own_reads_agree(place: Place) -> None:
    read = place.do(
        ("open", "f", "f", "rw,creat"),
        ("ftruncate", "f", PAGE),
        ("map", "m", "f", PAGE, "rw"),
        ("pwrite", "f", 0, "written"),
        ("store", "m", 7, " stored"),
        ("pread", "f", 0, 14),
    )
    assert read == b"written stored"


def test_a_file_unlinked_while_open_is_still_read_and_written(place: Place) -> None:
    (place.host / "f").write_bytes(b"contents")
    host: list[list[str]] = []
    values = place.steps(
        ("open", "f", "f", "rw"),
        ("unlink", "f"),
        ("wait", "look"),
        ("pread", "f", 0, 100),
        ("pwrite", "f", 8, " and more"),
        ("ftruncate", "f", 12),
        ("fsync", "f"),
        ("pread", "f", 0, 100),
        ("links", "f"),
        ("open", "g", "f", "r"),
        answers={"look": lambda: host.append(os.listdir(place.host))},
    )
    assert host == [[]]
    assert values[3:] == [b"contents", 9, None, None, b"contents and", 0, "ENOENT"]


def test_a_file_the_host_unlinked_while_open_is_still_read_and_written(place: Place) -> None:
    (place.host / "f").write_bytes(b"contents")
    values = place.steps(
        ("open", "f", "f", "rw"),
        ("wait", "unlink"),
        ("pwrite", "f", 0, "C"),
        ("pread", "f", 0, 100),
        answers={"unlink": (place.host / "f").unlink},
    )
    assert values[2:] == [1, b"Contents"]


def test_an_unlinked_file_is_let_go_at_the_last_close(place: Place) -> None:
    (place.host / "f").write_text("x")
    inodes = {(place.host / "f").stat().st_ino}
    held: list[set[int]] = []
    place.do(
        ("open", "f", "f", "rw"),
        ("unlink", "f"),
        ("wait", "look"),
        ("close", "f"),
        answers={"look": lambda: held.append(place.served.holds(inodes))},
    )
    assert held == [inodes]
    # RELEASE and FORGET come when the guest's kernel finds the time.
    assert devices.wait_until(lambda: not place.served.holds(inodes))


@guest_kernel.needs(6, 2, "O_TMPFILE over FUSE")
def test_a_file_without_a_name_is_given_one_later(place: Place) -> None:
    host: list[list[str]] = []
    values = place.steps(
        ("open", "f", ".", "rw,tmpfile", "640"),
        ("write", "f", "nameless"),
        ("links", "f"),
        ("wait", "look"),
        ("name", "f", "named"),
        ("links", "f"),
        answers={"look": lambda: host.append(os.listdir(place.host))},
    )
    assert values == [None, 8, 0, None, None, 1]
    assert host == [[]]
    assert (place.host / "named").read_bytes() == b"nameless"
    assert (place.host / "named").stat().st_mode == 0o100640


@pytest.fixture
def big(place: Place) -> Iterator[tuple[str, Path]]:
    yield "big", place.host / "big"
    (place.host / "big").unlink(missing_ok=True)


def test_a_large_file_of_the_host_arrives_whole(place: Place, probe: Path, big: tuple[str, Path]) -> None:
    name, path = big
    (_, expected) = probes.host(probe, ("fill", str(path), BIG, 1), ("sum", str(path)))
    assert place.do(("sum", name)) == expected


def test_a_large_file_of_the_guest_arrives_whole(place: Place, probe: Path, big: tuple[str, Path]) -> None:
    name, path = big
    assert place.do(("fill", name, BIG, 2)) is None
    assert path.stat().st_size == BIG
    # The same bytes, made on the host, and the guest's own reading, from the host again.
    place.output("echo 3 >/proc/sys/vm/drop_caches")
    seen = place.do(("sum", name))
    (written,) = probes.host(probe, ("sum", str(path)))
    (_, expected) = probes.host(probe, ("fill", str(path), BIG, 2), ("sum", str(path)))
    assert [seen, written] == [expected, expected]

# SPDX-License-Identifier: Apache-2.0
"""What a newer guest writes past its page cache (`--cache auto`), and what others who have the file see of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from shares import Place, directory_for_a_share, serve

from virtiofs.vm.kernel import newer_kernel

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(newer_kernel() is None, reason="no newer kernel for a guest: tools/trixie kernel"),
]
GUEST_OPTIONS = {"kernel": newer_kernel(), "cpus": 2}
MEBIBYTES = 32
CACHED = "awk '/^Cached:/ { print $2 }' /proc/meminfo"


def kept(place: Place, write: str) -> int:
    """KiB that the guest's page cache grew by while it wrote."""
    before = f"echo 3 > /proc/sys/vm/drop_caches; before=$({CACHED})"
    return int(place.output(f"{before}\n{write}\necho $(($({CACHED}) - before))"))


def test_what_is_only_written_takes_no_room_in_the_guests_page_cache(place: Place) -> None:
    assert kept(place, f"dd if=/dev/zero of=new bs=1M count={MEBIBYTES} 2>/dev/null") < MEBIBYTES * 256
    assert (place.host / "new").read_bytes() == bytes(MEBIBYTES << 20)


def test_what_is_written_through_a_handle_that_reads_is_kept(place: Place) -> None:
    assert kept(place, f"dd if=/dev/zero bs=1M count={MEBIBYTES} 2>/dev/null 1<>new") > MEBIBYTES * 768


def test_nothing_goes_past_a_cache_for_writing(probe: Path) -> None:
    with (
        directory_for_a_share() as directory,
        serve(directory, probe, ["--writeback"], **GUEST_OPTIONS) as served,
    ):
        (directory / "here").mkdir()
        place = Place(served, "here")
        assert kept(place, f"dd if=/dev/zero of=new bs=1M count={MEBIBYTES} 2>/dev/null") > MEBIBYTES * 768


def test_a_reader_who_follows_a_writer_reads_each_line_as_it_was_written(place: Place) -> None:
    lines = 1500
    place.output(
        f"""
        : > log; exec 3<log; exec 4>>log
        (n=0; while [ $n -lt {lines} ]; do n=$((n + 1)); echo "line $n of the writer" >&4; done) &
        n=0
        while [ $n -lt {lines} ]; do
            if read -r line <&3; then
                n=$((n + 1))
                [ "$line" = "line $n of the writer" ] || {{ echo "for line $n: $line" >&2; exit 1; }}
            elif [ -n "$line" ]; then
                echo "part of line $((n + 1)): $line" >&2; exit 1
            fi
        done
        """
    )


def test_a_page_that_was_read_before_is_read_again_after_a_write(place: Place) -> None:
    (place.host / "file").write_bytes(b"a" * 8192)
    said = place.output(
        """
        exec 3<file; exec 4<>file
        head -c 8192 <&3 >/dev/null
        printf new | dd of=file bs=1 seek=4096 conv=notrunc 2>/dev/null
        dd bs=4096 skip=1 count=1 <&4 2>/dev/null | head -c 4
        """
    )
    assert said == "newa"
    assert (place.host / "file").read_bytes() == b"a" * 4096 + b"new" + b"a" * 4093


def test_a_page_that_is_mapped_shows_what_is_written_without_the_cache(place: Place) -> None:
    (place.host / "file").write_bytes(b"a" * 4096)
    values = place.steps(
        ("open", "r", "file", "r"),
        ("open", "w", "file", "w"),
        ("map", "m", "r", 4096, "r"),
        ("load", "m", 100, 3),
        ("pwrite", "w", 100, "new"),
        ("load", "m", 100, 3),
    )
    assert values[3:] == [b"aaa", 3, b"new"]

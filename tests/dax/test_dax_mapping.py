# SPDX-License-Identifier: Apache-2.0
"""What is mapped, what a guest sees of it, and how it follows the file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from mapping import PAGE, RANGE, Mapped

import devices
from virtiofs.client.device import Device, WindowOptions
from virtiofs.client.session import Session
from virtiofs.fuse.abi import CONSTANTS, FUSE_ROOT_ID
from virtiofs.vhostuser import messages as m

DAX = CONSTANTS["FUSE_ATTR_DAX"]
FRONT_ENDS = {
    "as QEMU does": WindowOptions(),
    "without announcing": WindowOptions(announce=False),
    "older": WindowOptions(older_size=8 << 20, announce=False, without=m.PROTOCOL_F_SHMEM_MAP),
}


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes that differ from page to page."""
    page = bytes((i * 7 + seed) & 0xFF for i in range(PAGE))
    return b"".join(bytes([number & 0xFF]) + page[1:] for number in range((size + PAGE - 1) // PAGE))[:size]


def lengths(mapped: Mapped) -> dict[int, int]:
    return {offset: piece.length for offset, piece in sorted(mapped.window.pieces.items())}


@pytest.fixture(params=FRONT_ENDS)
def any_front_end(request: pytest.FixtureRequest, connect: Callable[..., Mapped]) -> Mapped:
    return connect(FRONT_ENDS[request.param])


def test_a_mapped_file_is_read_and_written_without_a_request(any_front_end: Mapped) -> None:
    mapped = any_front_end
    content = pattern(3 * PAGE)
    node = mapped.make("f", content)
    mapped.map(node)
    assert mapped.window.read(0, 3 * PAGE) == content
    mapped.window.write(PAGE + 5, b"stored")
    assert (mapped.host / "f").read_bytes()[PAGE + 5 : PAGE + 11] == b"stored"
    with open(mapped.host / "f", "r+b") as file:
        os.pwrite(file.fileno(), b"host", 0)
    assert mapped.window.read(0, 4) == b"host"
    mapped.session.removemapping(node, [(0, RANGE)])
    assert mapped.window.read(0, 4) == bytes(4)
    assert not mapped.window.pieces


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, RANGE - PAGE, RANGE, RANGE + PAGE, RANGE + 1])
def test_files_of_every_size_are_whole_in_the_window(mapped: Mapped, size: int) -> None:
    content = pattern(size)
    node = mapped.make(f"size-{size}", content)
    for number in range(2):
        mapped.map(node, number, number)
    assert mapped.window.read(0, size) == content
    assert mapped.window.read(size, 2 * RANGE - size) == bytes(2 * RANGE - size)
    assert (mapped.host / f"size-{size}").stat().st_size == size


def test_a_file_that_grows_is_whole_in_the_window(any_front_end: Mapped) -> None:
    """By whole pages and by parts of them, through the guest: the window follows before the reply."""
    mapped = any_front_end
    content = pattern(2 * PAGE)
    node = mapped.make("grows", content)
    fh = mapped.open(node)
    mapped.map(node)
    for number, size in enumerate((PAGE, 100, 50, PAGE - 150, 3 * PAGE + 1, 5)):
        added = pattern(size, number)
        assert mapped.session.write(node, fh, len(content), added) == size
        content += added
        assert mapped.window.read(0, len(content) + PAGE) == content + bytes(PAGE)
    assert (mapped.host / "grows").read_bytes() == content


def test_what_is_stored_in_the_last_page_reaches_the_file(mapped: Mapped) -> None:
    node = mapped.make("odd", b"a" * 100)
    fh = mapped.open(node)
    mapped.map(node)
    mapped.window.write(10, b"guest")
    with open(mapped.host / "odd", "r+b") as file:
        os.pwrite(file.fileno(), b"host", 50)
    mapped.session.fsync(node, fh)
    expected = b"a" * 10 + b"guest" + b"a" * 35 + b"host" + b"a" * 46
    assert (mapped.host / "odd").read_bytes() == expected
    assert mapped.window.read(0, 101) == expected + b"\0"
    mapped.window.write(0, b"more")
    assert mapped.session.read(node, fh, 0, 8) == b"moreaaaa"
    mapped.window.write(0, b"last")
    mapped.session.removemapping(node, [(0, RANGE)])
    assert (mapped.host / "odd").read_bytes()[:4] == b"last"


def test_what_the_host_appends_is_there_when_the_guest_learns_the_size(mapped: Mapped) -> None:
    node = mapped.make("host-grows", pattern(PAGE))
    mapped.map(node)
    with open(mapped.host / "host-grows", "ab") as file:
        file.write(pattern(2 * PAGE + 10, 9))
    size = mapped.session.getattr(node).size
    assert size == 3 * PAGE + 10
    assert mapped.window.read(PAGE, size - PAGE) == pattern(2 * PAGE + 10, 9)


def test_truncation_unmaps_what_is_behind_the_end(any_front_end: Mapped) -> None:
    mapped = any_front_end
    node = mapped.make("cut", pattern(RANGE + 3 * PAGE))
    mapped.map(node, 0, 0)
    mapped.map(node, 1, 1)
    mapped.session.setattr(node, size=RANGE)
    assert lengths(mapped) == {0: RANGE}
    mapped.session.setattr(node, size=10)
    assert mapped.window.read(0, 20) == pattern(10) + bytes(10)
    mapped.session.setattr(node, size=RANGE + PAGE)
    assert mapped.window.read(0, 2 * RANGE) == pattern(10) + bytes(2 * RANGE - 10)
    assert lengths(mapped)[RANGE] == PAGE
    mapped.session.open(node, os.O_RDWR | os.O_TRUNC)
    assert not mapped.window.pieces
    assert (mapped.host / "cut").stat().st_size == 0


@pytest.mark.parametrize("size", [0, PAGE, 10, RANGE, RANGE + PAGE + 1])
def test_what_the_host_cuts_off_is_unmapped_without_being_asked(any_front_end: Mapped, size: int) -> None:
    """The VMM would die of a touch behind the end."""
    mapped = any_front_end
    content = pattern(RANGE + 3 * PAGE)
    node = mapped.make("cut-by-host", content)
    fh = mapped.open(node)
    mapped.map(node, 0, 0)
    mapped.map(node, 1, 1)
    os.truncate(mapped.host / "cut-by-host", size)
    assert devices.wait_until(lambda: end(mapped, node, fh) == (size + PAGE - 1) // PAGE * PAGE, 20)
    assert mapped.window.read(0, 2 * RANGE) == content[:size] + bytes(2 * RANGE - size)
    with open(mapped.host / "cut-by-host", "r+b") as file:
        file.write(content)
    assert devices.wait_until(lambda: end(mapped, node, fh) == len(content), 20)
    assert mapped.window.read(0, 2 * RANGE) == content.ljust(2 * RANGE, b"\0")
    assert mapped.session.getattr(node).size == len(content)
    mapped.session.setattr(node, size=RANGE)
    assert mapped.window.read(0, RANGE) == content[:RANGE]


def end(mapped: Mapped, node: int, fh: int) -> int:
    """Where the last piece ends, once the device is through with what it was doing."""
    mapped.session.read(node, fh, 0, 1)
    return max((at + length for at, length in lengths(mapped).items()), default=0)


def test_another_guest_that_cuts_a_file_takes_it_from_the_window(
    daemon: devices.RunningDevice, mapped: Mapped
) -> None:
    node = mapped.make("cut-by-other", pattern(4 * PAGE))
    mapped.map(node)
    with devices.start_ours(daemon.directory) as other, Device.connect(other.socket) as device:
        session = Session(device)
        session.setattr(session.lookup(FUSE_ROOT_ID, "cut-by-other").nodeid, size=2 * PAGE)
        assert devices.wait_until(lambda: lengths(mapped) == {0: 2 * PAGE}, 20)
    assert mapped.window.read(0, 4 * PAGE) == pattern(2 * PAGE) + bytes(2 * PAGE)


def test_a_storm_of_cuts_by_the_host_leaves_the_window_as_long_as_the_file(mapped: Mapped) -> None:
    node = mapped.make("storm-of-cuts", pattern(8 * PAGE))
    fh = mapped.open(node)
    mapped.map(node)
    with open(mapped.host / "storm-of-cuts", "r+b") as file:
        for number in range(200):
            size = number * 7919 % (8 * PAGE)
            os.truncate(file.fileno(), size)
            os.pwrite(file.fileno(), pattern(8 * PAGE, number)[size:], size)
            if number % 10 == 0:
                mapped.session.write(node, fh, 8 * PAGE, b"appended")
        os.truncate(file.fileno(), 3 * PAGE)
    assert devices.wait_until(lambda: end(mapped, node, fh) <= 3 * PAGE, 20)
    assert mapped.session.getattr(node).size == 3 * PAGE
    # The host may have been faster than the front end, which refuses to map what is gone.
    mapped.window.troubles[:] = [text for text in mapped.window.troubles if "past the end" not in text]
    assert mapped.window.read(0, 9 * PAGE) == (mapped.host / "storm-of-cuts").read_bytes() + bytes(6 * PAGE)


def test_creating_over_a_mapped_file_is_looked_up_again(mapped: Mapped) -> None:
    """O_TRUNC in CREATE would cut a file whose node the request does not name; Linux repeats it as OPEN."""
    node = mapped.make("there", pattern(PAGE))
    mapped.map(node)
    with pytest.raises(OSError) as refused:
        mapped.session.create(FUSE_ROOT_ID, "there", os.O_RDWR | os.O_TRUNC)
    assert refused.value.errno == errno.ESTALE
    assert (mapped.host / "there").read_bytes() == pattern(PAGE)
    entry, _ = mapped.session.create(FUSE_ROOT_ID, "not-there", os.O_RDWR | os.O_TRUNC)
    assert entry.attr.size == 0


def test_other_ways_of_growing(mapped: Mapped) -> None:
    node = mapped.make("fallocate", pattern(PAGE))
    source = mapped.make("source", pattern(PAGE, 5))
    fh, from_ = mapped.open(node), mapped.open(source)
    mapped.map(node)
    mapped.session.fallocate(node, fh, 0, 4 * PAGE)
    mapped.session.copy_file_range(source, from_, 0, node, fh, 4 * PAGE, PAGE)
    assert mapped.window.read(0, 5 * PAGE) == pattern(PAGE) + bytes(3 * PAGE) + pattern(PAGE, 5)
    mapped.session.fallocate(node, fh, 0, PAGE, 0x3)  # punch a hole
    assert mapped.window.read(0, PAGE) == bytes(PAGE)


def test_unlink_and_rename_leave_a_mapping_alone(mapped: Mapped) -> None:
    node = mapped.make("old", pattern(PAGE))
    mapped.map(node)
    mapped.session.rename(FUSE_ROOT_ID, "old", FUSE_ROOT_ID, "new")
    mapped.window.write(0, b"!")
    assert (mapped.host / "new").read_bytes()[:1] == b"!"
    mapped.session.unlink(FUSE_ROOT_ID, "new")
    assert mapped.window.read(1, PAGE - 1) == pattern(PAGE)[1:]


def test_overlapping_ranges_replace_and_split(mapped: Mapped) -> None:
    """The device must allow it (virtio 1.3, section 5.11.6.2), although QEMU does not."""
    a, b = mapped.make("a", pattern(4 * PAGE, 1)), mapped.make("b", pattern(4 * PAGE, 2))
    mapped.session.setupmapping(a, 0, 4 * PAGE, 0)
    mapped.session.setupmapping(b, 0, PAGE, PAGE)
    expected = bytearray(pattern(4 * PAGE, 1))
    expected[PAGE : 2 * PAGE] = pattern(PAGE, 2)
    assert mapped.window.read(0, 4 * PAGE) == expected
    mapped.session.removemapping(a, [(2 * PAGE, PAGE)])
    expected[2 * PAGE : 3 * PAGE] = bytes(PAGE)
    assert mapped.window.read(0, 4 * PAGE) == expected
    mapped.session.setupmapping(b, 0, 4 * PAGE, 0)
    assert mapped.window.read(0, 4 * PAGE) == pattern(4 * PAGE, 2)
    assert lengths(mapped) == {0: 4 * PAGE}


def test_asking_again_for_what_is_mapped_maps_nothing_anew(mapped: Mapped) -> None:
    """Linux does, to write to what it mapped to be read."""
    node = mapped.make("twice", pattern(PAGE))
    mapped.map(node, writable=False)
    before = mapped.window.requests
    mapped.map(node)
    assert mapped.window.requests == before


def test_which_files_the_guest_is_told_to_map(mapped: Mapped) -> None:
    whole = mapped.session.getattr(mapped.make("whole", bytes(64 << 10)))
    odd = mapped.session.getattr(mapped.make("odd-size", bytes((64 << 10) + 1)))
    small = mapped.session.getattr(mapped.make("small", bytes(PAGE)))
    assert [bool(attr.flags & DAX) for attr in (whole, odd, small)] == [True, False, False]
    assert mapped.session.lookup(FUSE_ROOT_ID, "whole").attr.flags & DAX
    (mapped.host / "directory").mkdir()
    assert not mapped.session.lookup(FUSE_ROOT_ID, "directory").attr.flags & DAX


def test_a_file_that_is_read_again_and_again_through_too_small_a_window_loses_dax(mapped: Mapped) -> None:
    node = mapped.make("large", b"")
    os.truncate(mapped.host / "large", 16 * RANGE)
    slots = mapped.window.size // RANGE
    for number in range(16):
        mapped.map(node, number, number % slots)
    assert mapped.session.getattr(node).flags & DAX  # reading it once is no harm
    for number in range(2 * slots):
        mapped.map(node, number, number % slots)
    assert not mapped.session.getattr(node).flags & DAX


@pytest.mark.parametrize(
    ("foffset", "length", "moffset", "what"),
    [
        (0, 0, 0, errno.EINVAL),
        (1, PAGE, 0, errno.EINVAL),
        (0, PAGE + 1, 0, errno.EINVAL),
        (0, PAGE, 100, errno.EINVAL),
        (0, RANGE, 8 << 20, errno.EINVAL),
        (0, RANGE, (8 << 20) - PAGE, errno.EINVAL),
        (0, RANGE, (1 << 64) - PAGE, errno.EINVAL),
        ((1 << 63) - PAGE, RANGE, 0, errno.EINVAL),
        (0, 1 << 63, 1 << 63, errno.EINVAL),
    ],
)
def test_ranges_that_make_no_sense_are_refused(
    mapped: Mapped, foffset: int, length: int, moffset: int, what: int
) -> None:
    node = mapped.make("refused", pattern(PAGE))
    with pytest.raises(OSError) as refused:
        mapped.session.setupmapping(node, foffset, length, moffset)
    assert refused.value.errno == what
    assert not mapped.window.requests


def test_a_mapping_allows_no_more_than_its_handle(mapped: Mapped) -> None:
    """QEMU maps every page writable, so a handle for reading maps nothing (CVE-2026-24834)."""
    node = mapped.make("handle", pattern(PAGE))
    other = mapped.make("other", pattern(PAGE))
    for fh, what in (
        (mapped.session.open(node, os.O_RDONLY).fh, errno.EACCES),
        (mapped.session.open(node, os.O_WRONLY).fh, errno.EACCES),
        (mapped.open(other), errno.EBADF),
        (12345, errno.EBADF),
    ):
        for writable in (False, True):
            with pytest.raises(OSError) as refused:
                mapped.session.setupmapping(node, 0, RANGE, 0, writable, fh)
            assert refused.value.errno == what
    mapped.session.setupmapping(node, 0, RANGE, 0, True, mapped.open(node))
    assert lengths(mapped) == {0: PAGE}


def test_only_regular_files_are_mapped(mapped: Mapped) -> None:
    os.mkfifo(mapped.host / "fifo")
    (mapped.host / "link").symlink_to("/etc/passwd")
    for name in ("fifo", "link"):
        with pytest.raises(OSError):
            mapped.map(int(mapped.session.lookup(FUSE_ROOT_ID, name).nodeid))
    with pytest.raises(OSError):
        mapped.map(FUSE_ROOT_ID)
    assert not mapped.window.requests


def test_small_pieces_cannot_exhaust_the_front_end(mapped: Mapped) -> None:
    """QEMU dies of the 512th."""
    node = mapped.make("pieces", pattern(4 << 20))
    refused = []
    for page in range(600):
        try:
            mapped.session.setupmapping(node, page * PAGE, PAGE, page * PAGE)
        except OSError as error:
            refused.append(error.errno)
    assert set(refused) == {errno.ENOMEM}
    assert len(mapped.window.pieces) <= 480
    mapped.session.removemapping(node, [(page * PAGE, PAGE) for page in range(600)])
    assert not mapped.window.pieces


def test_a_storm_of_appends_stays_within_the_pieces(mapped: Mapped) -> None:
    node = mapped.make("storm", pattern(PAGE))
    fh = mapped.open(node)
    mapped.map(node)
    for number in range(1, 500):
        mapped.session.write(node, fh, number * PAGE, bytes([number & 0xFF]) * PAGE)
    assert len(mapped.window.pieces) <= 481
    assert mapped.window.read(0, 500 * PAGE) == (mapped.host / "storm").read_bytes()

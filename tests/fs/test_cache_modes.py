# SPDX-License-Identifier: Apache-2.0
"""What each cache mode tells the guest: how long to trust, what to keep, which features to use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.fuse.abi import CONSTANTS

DIRECT_IO, KEEP_CACHE, CACHE_DIR = (
    CONSTANTS["FOPEN_" + name] for name in ("DIRECT_IO", "KEEP_CACHE", "CACHE_DIR")
)
DAY = 86400

# mode: seconds, flags of files, flags of directories, READDIRPLUS, CACHE_SYMLINKS
MODES = {
    "never": (0, DIRECT_IO, 0, False, False),
    "metadata": (DAY, DIRECT_IO, KEEP_CACHE | CACHE_DIR, True, True),
    "auto": (1, 0, 0, True, False),
    "always": (DAY, KEEP_CACHE, KEEP_CACHE | CACHE_DIR, True, True),
}


@contextlib.contextmanager
def session(directory: Path, *options: str) -> Iterator[Session]:
    """A session with a daemon of ours that has these options."""
    with devices.start_ours(directory, options) as daemon, Device.connect(daemon.socket) as device:
        yield Session(device)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_says_how_long_to_trust_and_what_to_keep(tmp_path: Path, mode: str) -> None:
    valid, file_flags, directory_flags, readdirplus, symlinks = MODES[mode]
    (tmp_path / "f").write_text("x")
    with session(tmp_path, "--cache", mode) as guest:
        entry = guest.lookup(1, "f")
        assert (entry.entry_valid, entry.attr_valid) == (valid, valid)
        assert (entry.entry_valid_nsec, entry.attr_valid_nsec) == (0, 0)
        assert guest.attributes(entry.nodeid).attr_valid == valid
        assert guest.open(entry.nodeid).open_flags == file_flags
        made, opened = guest.create(1, "new")
        assert (made.entry_valid, opened.open_flags) == (valid, file_flags)
        assert guest.opendir(1).open_flags == directory_flags
        assert guest.has("DO_READDIRPLUS") is guest.has("READDIRPLUS_AUTO") is readdirplus
        assert guest.has("CACHE_SYMLINKS") is symlinks
        assert not guest.has("WRITEBACK_CACHE") and not guest.has("DIRECT_IO_ALLOW_MMAP")


def test_options_change_what_is_negotiated(tmp_path: Path) -> None:
    with session(tmp_path, "--cache", "never", "--allow-mmap", "--writeback") as guest:
        assert guest.has("DIRECT_IO_ALLOW_MMAP") and guest.has("WRITEBACK_CACHE")
    with session(tmp_path, "--no-readdirplus") as guest:
        assert not guest.has("DO_READDIRPLUS")


def test_with_writeback_a_handle_for_writing_can_be_read(tmp_path: Path) -> None:
    """The guest reads the rest of a page that it writes in part."""
    (tmp_path / "f").write_text("0123456789")
    with session(tmp_path, "--writeback") as guest:
        node = guest.lookup(1, "f").nodeid
        fh = guest.open(node, os.O_WRONLY).fh
        assert guest.read(node, fh, 0, 10) == b"0123456789"
        _, made = guest.create(1, "new", os.O_WRONLY)
        assert guest.read(node, made.fh, 0, 10) == b""
    with session(tmp_path) as guest:
        node = guest.lookup(1, "f").nodeid
        with pytest.raises(OSError):
            guest.read(node, guest.open(node, os.O_WRONLY).fh, 0, 10)


def test_with_writeback_a_page_goes_where_the_guest_says_though_the_file_is_open_for_appending(
    tmp_path: Path,
) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    flags = os.O_WRONLY | os.O_APPEND
    with session(tmp_path, "--writeback") as guest:
        node = guest.lookup(1, "f").nodeid
        guest.write(node, guest.open(node, flags).fh, 2, b"ab", flags)
    assert (tmp_path / "f").read_bytes() == b"01ab456789"
    with session(tmp_path) as guest:
        node = guest.lookup(1, "f").nodeid
        guest.write(node, guest.open(node, flags).fh, 2, b"ab", flags)
    assert (tmp_path / "f").read_bytes() == b"01ab456789ab"


def test_a_guest_that_does_not_want_writeback_gets_none(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"01")
    with devices.start_ours(tmp_path, ["--writeback"]) as daemon, Device.connect(daemon.socket) as device:
        guest = Session(device, flags=CONSTANTS["FUSE_INIT_EXT"])
        node = guest.lookup(1, "f").nodeid
        with pytest.raises(OSError):
            guest.read(node, guest.open(node, os.O_WRONLY).fh, 0, 2)


def open_flags_of(directory: Path, daemon: devices.RunningDevice) -> list[int]:
    """The flags of the descriptors that the daemon's worker has of files in `directory`, O_PATH ones left out."""
    found = []
    names = os.listdir(directory)  # the worker has another root
    for link in Path(f"/proc/{daemon.worker}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if Path(os.readlink(link)).name in names:
                info = Path(f"/proc/{daemon.worker}/fdinfo/{link.name}").read_text()
                found.append(int(info.split("flags:")[1].split()[0], 8))
    return [flags for flags in found if not flags & os.O_PATH]


@pytest.mark.parametrize("allowed", [False, True])
def test_direct_io_reaches_the_host_only_if_allowed(tmp_path: Path, allowed: bool) -> None:
    (tmp_path / "f").write_bytes(bytes(8192))
    try:
        os.close(os.open(tmp_path / "f", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    options = ["--allow-direct-io"] if allowed else []
    with devices.start_ours(tmp_path, options) as daemon, Device.connect(daemon.socket) as device:
        guest = Session(device)
        node = guest.lookup(1, "f").nodeid
        guest.open(node, os.O_RDONLY | os.O_DIRECT)
        (flags,) = open_flags_of(tmp_path, daemon)
        assert bool(flags & os.O_DIRECT) is allowed

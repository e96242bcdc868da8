# SPDX-License-Identifier: Apache-2.0
"""Hostile guests, and what an administrator asks for in vain."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mapping import OFFER_DAX, PAGE, RANGE, Mapped

import devices
from virtiofs.cli.ctl import ask
from virtiofs.client.device import Device, WindowOptions
from virtiofs.client.session import Session
from virtiofs.fuse import abi
from virtiofs.fuse.abi import CONSTANTS, FUSE_ROOT_ID
from virtiofs.vhostuser import messages as m

DAX = CONSTANTS["FUSE_ATTR_DAX"]
NUMBERS = st.one_of(
    st.sampled_from(
        [0, 1, PAGE - 1, PAGE, RANGE, 8 << 20, (8 << 20) - PAGE, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1]
    ),
    st.integers(0, 2047).map(lambda page: page * PAGE),
    st.integers(0, (1 << 64) - 1),
)
SETUP = st.tuples(
    st.sampled_from([(1 << 64) - 1, 0, 1 << 32 | 1]), NUMBERS, NUMBERS, st.integers(0, 7), NUMBERS
)
REMOVE = st.tuples(st.integers(0, 5), st.lists(st.tuples(NUMBERS, NUMBERS), max_size=4))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.one_of(SETUP, REMOVE), max_size=12))
def test_whatever_is_asked_the_front_end_is_never_asked_to_break_a_rule(
    mapped: Mapped, steps: list[tuple[object, ...]]
) -> None:
    """The oracle is the front end: it notes what breaks a rule.  The file is never changed."""
    node = mapped.make("hostile", b"h" * (3 * PAGE + 5))
    device = mapped.device
    for step in steps:
        if len(step) == 5:
            values = dict(zip(("fh", "foffset", "len", "flags", "moffset"), step, strict=True))
            reply = device.request("setupmapping", node, abi.FUSE_SETUPMAPPING_IN.pack(**values))
        else:
            count, ranges = step
            body = abi.FUSE_REMOVEMAPPING_IN.pack(count=count)
            for start, length in ranges:  # type: ignore[attr-defined]
                body += abi.FUSE_REMOVEMAPPING_ONE.pack(moffset=start, len=length)
            reply = device.request("removemapping", node, body)
        assert reply.error <= 0
    assert mapped.window.troubles == []
    assert (mapped.host / "hostile").stat().st_size == 3 * PAGE + 5
    mapped.session.removemapping(node, [(0, 8 << 20)])
    assert not mapped.window.pieces


def test_a_read_only_share_among_others_has_no_window(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "f").write_bytes(bytes(64 << 10))
    command = [sys.executable, "-m", "virtiofs", "serve", "--socket-dir", str(tmp_path), "--dax-window", "8M"]
    command += ["--share", f"ro={tmp_path}/share:ro", "--share", f"rw={tmp_path}/share"]
    process = subprocess.Popen([*command, "--control", f"{tmp_path}/control"])
    try:
        assert devices.wait_until(lambda: (tmp_path / "control").exists(), 20)
        with Device.connect(f"{tmp_path}/ro.sock", window=WindowOptions()) as device:
            assert device.window is None
            assert not device.front_end.offered_protocol_features & m.PROTOCOL_F_SHMEM_MAP
            session = Session(device, flags=OFFER_DAX)
            entry = session.lookup(FUSE_ROOT_ID, "f")
            assert not session.has("MAP_ALIGNMENT") and not entry.attr.flags & DAX
            with pytest.raises(OSError) as refused:
                session.setupmapping(entry.nodeid, 0, RANGE, 0, False)
            assert refused.value.errno == errno.ENOSYS
        with Device.connect(f"{tmp_path}/rw.sock", window=WindowOptions()) as device:
            assert device.window is not None
            session = Session(device, flags=OFFER_DAX)
            session.setupmapping(session.lookup(FUSE_ROOT_ID, "f").nodeid, 0, RANGE, 0)
            text = str(ask(f"{tmp_path}/control", {"do": "metrics"})["result"])
            assert 'virtiofs_dax_mappings{share="rw"} 1' in text
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--dax-window", "3M"], 1, "a power of two from 2M to 512M, not 3M"),
        (["--dax-window", "1G"], 1, "a power of two from 2M to 512M, not 1G"),
        (["--dax-window", "1M"], 1, "a power of two"),
        (["--dax-window", "big"], 1, "not 'big'"),
        (["--dax-window", "8M", "--readonly"], 1, "--readonly leaves nothing to --dax-window"),
        (["--dax", "always"], 2, "give its size too, as --dax-window 512M"),
    ],
)
def test_windows_that_cannot_be_are_refused(tmp_path: Path, words: list[str], status: int, said: str) -> None:
    command = [
        sys.executable,
        "-m",
        "virtiofs",
        "serve",
        str(tmp_path),
        "--socket",
        str(tmp_path / "s"),
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status and said in done.stderr


def test_a_file_that_is_read_at_random_beyond_the_window_is_offered_no_more(mapped: Mapped) -> None:
    """Measured elsewhere: 3 to 20 times slower than without DAX."""
    (mapped.host / "large").write_bytes(b"")
    with open(mapped.host / "large", "r+b") as file:
        file.truncate(6 * RANGE)
    node = int(mapped.session.lookup(FUSE_ROOT_ID, "large").nodeid)
    assert mapped.session.getattr(node).flags & DAX
    for number in range(24):  # four ranges of window for six of the file, in turn
        mapped.map(node, number % 6, number % 4)
    assert not mapped.session.getattr(node).flags & DAX
    other = mapped.make("other", bytes(64 << 10))
    assert mapped.session.getattr(other).flags & DAX

# SPDX-License-Identifier: Apache-2.0
"""The static probes (USDT) of the request path, as a tracer of this host's kernel finds and uses them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.fuse import session
from virtiofs.fuse.abi import FUSE_GETATTR_IN

TRACING = Path("/sys/kernel/tracing")
GETATTR = 3
NOBODY = 0x7E57_0000_1234  # a node id that no guest was given
ARGUMENTS = {
    "request": ("opcode", "unique", "nodeid", "size"),
    "reply": ("opcode", "unique", "error", "size"),
}
REGISTER = re.compile(r"%[er]?([abcd]x|[sd]i|[sb]p|r\d+)d?")
NOTE = re.compile(r"Name: (\w+)\s+Location: 0x(\w+),.*\s+Arguments: (.*)")
SEGMENT = re.compile(r"LOAD\s+0x(\w+) 0x(\w+) 0x\w+\s+0x(\w+)")


class Probe(NamedTuple):
    offset: int  # in the file
    arguments: list[str]  # such as "-4@%ebp": size, negative if signed, and where it is


@pytest.fixture(scope="module")
def probes() -> dict[str, Probe]:
    """The probes that the module was built with."""
    if shutil.which("readelf") is None:
        pytest.skip("no readelf: install binutils")
    notes = subprocess.run(
        ["readelf", "-nlW", session.__file__], capture_output=True, text=True, check=True
    ).stdout
    segments = [[int(word, 16) for word in found] for found in SEGMENT.findall(notes)]
    found = {}
    for name, where, arguments in NOTE.findall(notes):
        address = int(where, 16)
        [offset] = [o + address - start for o, start, size in segments if start <= address < start + size]
        found[name] = Probe(offset, arguments.split())
    if not found:
        pytest.skip("built without <sys/sdt.h>: install systemtap-sdt-dev and build anew")
    return found


def fetched(argument: str) -> str:
    """A probe's argument in the words of the kernel's Documentation/trace/uprobetracer.rst."""
    size, _, where = argument.partition("@")
    kind = f"{'s' if size.startswith('-') else 'u'}{8 * abs(int(size))}"
    place = re.fullmatch(rf"(-?\d*)\({REGISTER.pattern}\)", where)
    if place:
        return f"{int(place[1] or 0):+}(%{place[2]}):{kind}"
    register = REGISTER.fullmatch(where)
    if register is None:
        pytest.skip(f"the compiler left an argument at {where}, which this test can not fetch")
    return f"%{register[1]}:{kind}"


def add(event: str) -> None:
    """Add an event to the kernel's, or take it away; the file refuses what Python's own "a" does first, to seek."""
    fd = os.open(TRACING / "uprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, event.encode() + b"\n")
    finally:
        os.close(fd)


@pytest.fixture
def trace(probes: dict[str, Probe]) -> Iterator[Path]:
    """A trace of the kernel's, to which both probes write their arguments."""
    if os.geteuid() != 0 or not (TRACING / "uprobe_events").exists():
        pytest.skip("no root, or a kernel without uprobes")
    group = f"virtiofs{os.getpid()}"
    instance = TRACING / "instances" / group
    made: list[str] = []
    instance.mkdir()
    try:
        for name, probe in probes.items():
            words = [f"{a}={fetched(b)}" for a, b in zip(ARGUMENTS[name], probe.arguments, strict=True)]
            add(f"p:{group}/{name} {session.__file__}:{probe.offset:#x} {' '.join(words)}")
            made.append(name)
        (instance / "events" / group / "enable").write_text("1")
        yield instance / "trace"
    finally:
        instance.rmdir()  # and with it what it has enabled
        for name in made:
            add(f"-:{group}/{name}")


def test_there_is_one_for_requests_and_one_for_replies(probes: dict[str, Probe]) -> None:
    assert {name: len(probe.arguments) for name, probe in probes.items()} == {"request": 4, "reply": 4}


def test_a_tracer_sees_what_was_asked_and_what_came_of_it(trace: Path, tmp_path: Path) -> None:
    with devices.start_ours(tmp_path) as running, Device.connect(running.socket) as device:
        Session(device)
        assert device.request("getattr", NOBODY, FUSE_GETATTR_IN.pack(), 256).error != 0
    hits = [
        (task, name, {key: int(value) for key, value in re.findall(r"(\w+)=(-?\d+)", rest)})
        for task, name, rest in re.findall(
            r"-(\d+) +\[\d+\].*\b(request|reply): \(\S+\) (.*)", trace.read_text()
        )
    ]
    # Other daemons of these sources may run at the same time.
    [(task, asked)] = [(t, v) for t, name, v in hits if name == "request" and v["nodeid"] == NOBODY]
    assert (asked["opcode"], asked["size"]) == (GETATTR, 40 + FUSE_GETATTR_IN.size)
    [reply] = [v for t, name, v in hits if (t, name, v["unique"]) == (task, "reply", asked["unique"])]
    assert (reply["opcode"], reply["error"], reply["size"]) == (GETATTR, -116, 0)

# SPDX-License-Identifier: Apache-2.0
"""Real guests on shares of our daemon.

A module boots one guest (`served`), each of its tests has a directory of its own in the share (`place`), which it sees
from both sides.  A module says what it needs in DAEMON_OPTIONS (words of `virtiofs serve`) and GUEST_OPTIONS
(arguments of Guest).  After every test the daemon must live and have nothing to complain of, and the guest's kernel
neither; a failed test shows what both said.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import probe as probes
import pytest
from shares import Place, Served, directory_for_a_share, serve

from virtiofs.vm.errors import GuestError, MissingPart
from virtiofs.vm.kernel import find_kernel
from virtiofs.vm.qemu import find_qemu
from virtiofs.vm.ramdisk import find_busybox

TROUBLE = re.compile(r"\b(BUG|WARNING|Oops|Call Trace|hung_task|blocked for|virtio-fs|virtiofs|fuse)\b")

_number = itertools.count(
    1
)  # a name that was never used before: the guest may remember the old one for a while


@pytest.fixture(scope="session", autouse=True)
def everything_is_there() -> None:
    """Skip all that needs a guest where one cannot be made."""
    try:
        find_qemu(), find_busybox(), find_kernel()
    except MissingPart as missing:
        pytest.skip(str(missing))
    if os.geteuid() != 0:
        pytest.skip("shares for several users need root")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the guest's test program with")
    os.umask(0o022)


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of probe.c, for the host; guests have it as /bin/probe."""
    return probes.build(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, probe: Path) -> Iterator[Served]:
    """One daemon and one guest for the module: what a test does to them must not matter to the next."""
    daemon_options = getattr(request.module, "DAEMON_OPTIONS", ())
    guest_options = getattr(request.module, "GUEST_OPTIONS", {})
    with (
        directory_for_a_share() as directory,
        serve(directory, probe, daemon_options, **guest_options) as served,
    ):
        served.guest.run("dmesg -c >/dev/null")
        yield served


@pytest.fixture
def place(request: pytest.FixtureRequest, served: Served) -> Iterator[Place]:
    """A directory for one test, writable for everybody.  Both sides must be well at the end."""
    place = Place(served, f"test-{next(_number)}")
    place.host.mkdir()
    place.host.chmod(0o777)
    said = len(served.daemon.log)
    yield place
    assert served.daemon.alive
    assert served.daemon.log[said:] == []
    try:
        kernel = served.guest.run("dmesg -c").text
    except GuestError:  # a command timed out; the next test shall not suffer from it
        served.guest.reboot()
    else:
        assert [line for line in kernel.splitlines() if TROUBLE.search(line)] == []
    shutil.rmtree(place.host)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    served = getattr(item, "funcargs", {}).get("served")
    if isinstance(served, Served) and report.failed:
        report.sections.append(("repeat it with", f"{sys.executable} -m pytest '{item.nodeid}'"))
        report.sections.append(("guest's kernel", served.guest.console(30)))
        report.sections.append(("daemon", "\n".join(served.daemon.log[-30:])))
    return report

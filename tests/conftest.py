# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures for all tests: `--device` chooses the daemons that behaviours are tested against."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import devices


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("all", *devices.KINDS),
        default="all",
        help="what to test: ours, ours-policy (with a policy that allows all), ours-unprivileged (run by an ordinary"
        " user), c (virtiofsd of QEMU 7.2), rust (that of Debian 13, for what is mounted), mount (`virtiofs mount`),"
        " relay (`virtiofs mount --socket` of ours), or all"
        " that can run here",
    )
    parser.addoption(
        "--mountpoint", metavar="DIR", help="test this directory with tests/posix, instead of a daemon"
    )
    parser.addoption(
        "--host-directory", metavar="DIR", help="what the host knows the directory of --mountpoint as"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "mounted: needs the kernel's FUSE client, which checks permissions and applies the umask",
    )
    config.addinivalue_line("markers", "also_rust: is for the daemon in Rust as well")
    config.addinivalue_line(
        "markers",
        "c_differs(reason, run=True): the daemon in C does otherwise; run=False: it would die of the test",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Requests are for daemons only; what a program can see is carried by mounts as well."""
    chosen = metafunc.config.getoption("--device")
    for fixture, kinds in (("kind", devices.DAEMONS), ("carrier", devices.KINDS)):
        if fixture in metafunc.fixturenames:
            if not metafunc.definition.get_closest_marker("also_rust"):
                kinds = tuple(kind for kind in kinds if kind != "rust")
            if fixture == "kind" and "place" not in metafunc.fixturenames:
                # Only there the test acts as the daemon's user, too.
                kinds = tuple(kind for kind in kinds if kind != "ours-unprivileged")
            if fixture == "carrier" and metafunc.definition.get_closest_marker("mounted"):
                kinds = devices.MOUNTS
            if fixture == "carrier" and metafunc.config.getoption("--mountpoint"):
                kinds = ("mountpoint",)
            elif chosen != "all":
                kinds = tuple(kind for kind in kinds if kind == chosen)
            unfit = pytest.mark.skip(reason=f"not for --device {chosen}")
            metafunc.parametrize(fixture, kinds or [pytest.param("none", marks=unfit)], scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A difference of the daemon in C is an expected failure: strict, so that the list stays true.

    What an ordinary user's daemon can not do is skipped, with the reason of `devices.NEEDS_PRIVILEGE`.
    """
    for item in items:
        callspec = getattr(item, "callspec", None)
        kind = callspec.params.get("kind") or callspec.params.get("carrier") if callspec else None
        difference = item.get_closest_marker("c_differs")
        if difference and kind == "c":
            run = difference.kwargs.get("run", True)
            item.add_marker(pytest.mark.xfail(reason=difference.args[0], run=run, strict=True))
        privilege = devices.NEEDS_PRIVILEGE.get(getattr(item, "originalname", ""))
        if privilege and kind == "ours-unprivileged":
            item.add_marker(pytest.mark.skip(reason=privilege))


@pytest.fixture(scope="module")
def running(kind: str) -> Iterator[devices.RunningDevice]:
    """A daemon of each chosen kind, serving an empty directory, for the tests of one module."""
    reason = devices.available(kind)
    if reason:
        pytest.skip(reason)
    with devices.share_for(kind) as share, devices.start(kind, share) as device:
        yield device

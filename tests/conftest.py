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
        help="what to test: our daemon, the one in C (QEMU 7.2), `virtiofs mount`, or all that can run here",
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
    config.addinivalue_line(
        "markers",
        "c_differs(reason, run=True): the daemon in C does otherwise; run=False: it would die of the test",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Requests are for daemons only; what a program can see is carried by mounts as well."""
    chosen = metafunc.config.getoption("--device")
    for fixture, kinds in (("kind", devices.DAEMONS), ("carrier", devices.KINDS)):
        if fixture in metafunc.fixturenames:
            if fixture == "carrier" and metafunc.definition.get_closest_marker("mounted"):
                kinds = devices.MOUNTS
            if fixture == "carrier" and metafunc.config.getoption("--mountpoint"):
                kinds = ("mountpoint",)
            elif chosen != "all":
                kinds = tuple(kind for kind in kinds if kind == chosen)
            unfit = pytest.mark.skip(reason=f"not for --device {chosen}")
            metafunc.parametrize(fixture, kinds or [pytest.param("none", marks=unfit)], scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A difference of the daemon in C is an expected failure: strict, so that the list stays true."""
    for item in items:
        difference = item.get_closest_marker("c_differs")
        callspec = getattr(item, "callspec", None)
        if difference and callspec and "c" in (callspec.params.get("kind"), callspec.params.get("carrier")):
            run = difference.kwargs.get("run", True)
            item.add_marker(pytest.mark.xfail(reason=difference.args[0], run=run, strict=True))


@pytest.fixture(scope="module")
def running(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[devices.RunningDevice]:
    """A daemon of each chosen kind, serving an empty directory, for the tests of one module."""
    reason = devices.available(kind)
    if reason:
        pytest.skip(reason)
    with devices.start(kind, tmp_path_factory.mktemp("share")) as device:
        yield device

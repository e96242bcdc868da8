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
        help="daemons to test: ours, c (virtiofsd of QEMU 7.2), or all that can run here",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "c_differs(reason, run=True): the daemon in C does otherwise; run=False: it would die of the test",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--device")
        kinds = devices.KINDS if chosen == "all" else (chosen,)
        metafunc.parametrize("kind", kinds, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A difference of the daemon in C is an expected failure: strict, so that the list stays true."""
    for item in items:
        difference = item.get_closest_marker("c_differs")
        callspec = getattr(item, "callspec", None)
        if difference and callspec and callspec.params.get("kind") == "c":
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

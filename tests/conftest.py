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
        help="daemons to test: ours, ours-unprivileged (run by an ordinary user), c (virtiofsd of QEMU 7.2), or all"
        " that can run here",
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
        if "place" not in metafunc.fixturenames:  # only there the test acts as the daemon's user, too
            kinds = tuple(kind for kind in kinds if kind != "ours-unprivileged")
        metafunc.parametrize("kind", kinds, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A difference of the daemon in C is an expected failure: strict, so that the list stays true.

    What an ordinary user's daemon can not do is skipped, with the reason of `devices.NEEDS_PRIVILEGE`.
    """
    for item in items:
        callspec = getattr(item, "callspec", None)
        kind = callspec.params.get("kind") if callspec else None
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

# SPDX-License-Identifier: Apache-2.0
"""`virtiofs bench --dax`: that it measures in a guest what it says, and what its tables hold."""

from __future__ import annotations

import os

import pytest

from virtiofs.cli import benchdax
from virtiofs.vm.errors import MissingPart
from virtiofs.vm.kernel import newer_kernel
from virtiofs.vm.qemu import find_dax_qemu

pytestmark = pytest.mark.guest


def test_each_place_has_its_row_and_mapped_pages_cost_the_daemon_nothing() -> None:
    try:
        find_dax_qemu()
    except MissingPart as missing:
        pytest.skip(str(missing))
    if newer_kernel() is None or not os.path.exists(benchdax.FIO):
        pytest.skip(
            "no newer kernel for a guest with DAX, or no fio: run `make testbed` as root, and `make heavy`"
        )
    results = benchdax.measure(0.5, 1, works=benchdax.WORKS[1:2])
    rows = {row["place"]: row for row in results["rows"]}
    assert set(rows) == {place.name for place in benchdax.PLACES}
    assert all(row["mib_per_second"]["median"] > 0 for row in rows.values())
    large = rows[f"DAX, window {benchdax.LARGE}"]
    assert large["cpu"] < rows[benchdax.WITHOUT]["cpu"]
    page = benchdax.markdown(results)
    for text in (benchdax.terminal(results), page):
        assert all(place.name in text for place in benchdax.PLACES)
    assert page.count("| 1.00x |") >= 2

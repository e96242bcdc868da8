# SPDX-License-Identifier: Apache-2.0
"""The results of a benchmark (`bench.measure_all`) as tables: for a terminal and as Markdown."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

Results = dict[str, Any]

HEADINGS = ("", "operations/s", "MiB/s", "p50 us", "p99 us", "daemon CPU us/op", "wakes/op")
PEER_HEADINGS = ("", "version", "accepts, ms", "first reply, ms", "private MiB", "after the runs")


def _number(value: float) -> str:
    """Three significant digits, with thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(summary: dict[str, float]) -> str:
    """A median, with how far the repeats lie from it."""
    median = summary["median"]
    if not median:
        return "0"
    apart = max(summary["most"] - median, median - summary["least"]) / median
    return f"{_number(median)} ±{apart:.0%}"


def _rows(results: Results, workload: str, mode: str) -> list[list[str]]:
    rows = []
    for result in results["results"]:
        if (result["workload"], result["mode"]) == (workload, mode):
            rows.append(
                [
                    result["peer"],
                    _spread(result["operations_per_second"]),
                    _number(result["mib_per_second"]["median"]) if "mib_per_second" in result else "",
                    _number(result["p50_us"]["median"]),
                    _number(result["p99_us"]["median"]),
                    _spread(result["cpu_us"]),
                    _number(result["wakes_per_operation"]),
                ]
            )
    return rows


def _peer_rows(results: Results) -> list[list[str]]:
    return [
        [
            peer["name"],
            peer["version"],
            _spread(peer["accepts_ms"]),
            _spread(peer["first_reply_ms"]),
            _number(peer["private_mib_idle"]),
            _number(peer["private_mib_after"]),
        ]
        for peer in results["peers"]
    ]


def conditions(results: Results) -> str:
    """One paragraph: on what and how this was measured."""
    machine, how = results["machine"], results["conditions"]
    where = f"{machine['processors']} x {machine['processor']}" + (
        " (a virtual machine)" if machine["virtual"] else ""
    )
    pinned = (
        f"driver on processor {how['driver_cpu']}, daemons on processor {how['daemon_cpu']}"
        if how["driver_cpu"] is not None
        else "no processor was reserved for anybody"
    )
    return (
        f"{results['date']}, {where}, Linux {machine['kernel']}, Python {machine['python']}; {pinned}; one queue of"
        f" {how['queue_size']}, depth {how['depth']}, {how['repeats']} interleaved repeats of {how['seconds']:g} s."
        " Medians; ± is the largest distance of a repeat from its median."
    )


def _sections(results: Results) -> Iterable[tuple[str, Sequence[str], list[list[str]]]]:
    seen = dict.fromkeys((result["workload"], result["mode"]) for result in results["results"])
    for workload, mode in seen:
        yield f"{workload}, {mode}", HEADINGS, _rows(results, workload, mode)
    yield "Start-up and memory", PEER_HEADINGS, _peer_rows(results)


def terminal(results: Results) -> str:
    """Aligned tables."""
    lines = [conditions(results)]
    for title, headings, rows in _sections(results):
        table = [list(headings), *rows]
        keep = [i for i in range(len(headings)) if i == 0 or any(row[i] for row in rows)]
        widths = {i: max(len(row[i]) for row in table) for i in keep}
        lines += ["", title]
        for row in table:
            cells = [row[i].ljust(widths[i]) if i == 0 else row[i].rjust(widths[i]) for i in keep]
            lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """The same as a Markdown page."""
    lines = ["# Benchmark", "", conditions(results), ""]
    for title, headings, rows in _sections(results):
        keep = [i for i in range(len(headings)) if i == 0 or any(row[i] for row in rows)]
        lines += [f"## {title}", ""]
        lines.append("| " + " | ".join(headings[i] for i in keep) + " |")
        lines.append("|" + "|".join("---" if i == 0 else "--:" for i in keep) + "|")
        lines += ["| " + " | ".join(row[i] for i in keep) + " |" for row in rows]
        lines.append("")
    lines += ["Commands:", ""]
    for peer in results["peers"]:
        # Where our interpreter lies on this machine is nobody's business.
        words = [os.path.basename(word) if word == sys.executable else word for word in peer["command"]]
        lines.append(f"- {peer['name']}: `{' '.join(words)}`")
    return "\n".join(lines) + "\n"

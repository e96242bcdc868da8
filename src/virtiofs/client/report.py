# SPDX-License-Identifier: Apache-2.0
"""The results of a benchmark (`bench.measure_all`) as tables, for a terminal and as Markdown.

A report begins with what is asked first: how many times as fast as the best other daemon is ours, row by row, and
where is it behind.  `page.py` draws the same as a page with plots.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Results = dict[str, Any]

HEADINGS = (
    *("", "operations/s", "to the best", "MiB/s", "p50 us", "p99 us", "daemon CPU us/op"),
    *("system calls/op", "kicks/op", "interrupts/op"),
)
RATIO_HEADINGS = ("", "ours", "the best other", "its", "ratio", "p50", "p99", "CPU")
PEER_HEADINGS = ("", "version", "accepts, ms", "first reply, ms", "private MiB", "after the runs")
QUEUE_HEADINGS = ("", "queues", "operations/s", "to one queue")
PACE_HEADINGS = ("", "one GETATTR every, us", "daemon CPU us/op", "of one processor")
INODE_HEADINGS = ("", "inodes", "bytes/inode", "descriptors", "us/LOOKUP")
OURS = "virtiofs"
REFERENCE = "bare "  # what names of rows begin with that are no daemon's
FIGURES = {"operations_per_second": "operations/s", "p99_us": "p99 us"}


class Comparison(NamedTuple):
    """Our row beside the best other daemon's.  Ratios above 1 are in our favour; `clear`: the repeats of the two do
    not overlap."""

    workload: str
    mode: str
    by: str
    ours: dict[str, Any]
    best: dict[str, Any]
    ratio: float
    clear: bool


def better(by: str) -> bool:
    """Whether more of a figure is better."""
    return not by.endswith("_us")


def ratio(ours: dict[str, Any], other: dict[str, Any], by: str) -> float:
    """How many times as good ours is, by the medians."""
    one, two = ours[by]["median"], other[by]["median"]
    one, two = (one, two) if better(by) else (two, one)
    return one / two if two else math.inf


def compare(results: Results) -> list[Comparison]:
    """Each workload and mode that we and another daemon ran."""
    found = []
    for workload, mode in dict.fromkeys((row["workload"], row["mode"]) for row in results["results"]):
        rows = [row for row in rows_of(results, workload, mode) if not row["peer"].startswith(REFERENCE)]
        ours = next((row for row in rows if row["peer"] == OURS), None)
        others = [row for row in rows if row["peer"] != OURS]
        if ours is None or not others:
            continue
        by = ours["by"]
        best = min(others, key=lambda row: ratio(ours, row, by))
        one, two = ours[by], best[by]
        clear = one["least"] > two["most"] or two["least"] > one["most"]
        found.append(Comparison(workload, mode, by, ours, best, ratio(ours, best, by), clear))
    return found


def rows_of(results: Results, workload: str, mode: str) -> list[dict[str, Any]]:
    """The rows of one table."""
    return [row for row in results["results"] if (row["workload"], row["mode"]) == (workload, mode)]


def behind(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Where another daemon is ahead, the worst first."""
    return sorted((one for one in comparisons if one.ratio < 1), key=lambda one: one.ratio)


def mean(comparisons: Sequence[Comparison], mode: str) -> float | None:
    """The geometric mean of a mode's ratios."""
    logs = [math.log(one.ratio) for one in comparisons if one.mode == mode and math.isfinite(one.ratio)]
    return math.exp(sum(logs) / len(logs)) if logs else None


def number(value: float) -> str:
    """Three significant digits, with thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(summary: dict[str, float]) -> str:
    """A median, with how far the repeats lie from it."""
    median = summary["median"]
    if not median:
        return "0"
    apart = max(summary["most"] - median, median - summary["least"]) / median
    return f"{number(median)} ±{apart:.0%}"


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.2f}x"


def _table(results: Results, workload: str, mode: str) -> list[list[str]]:
    rows = rows_of(results, workload, mode)
    daemons = [row for row in rows if not row["peer"].startswith(REFERENCE)]
    table = []
    for row in rows:
        by = row["by"]
        best = (max if better(by) else min)(one[by]["median"] for one in daemons)
        to_best = row[by]["median"] / best if best and better(by) else best / (row[by]["median"] or math.inf)
        calls = row["calls_per_operation"]
        table.append(
            [
                row["peer"],
                spread(row["operations_per_second"]),
                times(to_best),
                number(row["mib_per_second"]["median"]) if "mib_per_second" in row else "",
                number(row["p50_us"]["median"]),
                number(row["p99_us"]["median"]),
                spread(row["cpu_us"]),
                number(calls) if calls is not None else "",
                number(row["kicks_per_operation"]),
                number(row["interrupts_per_operation"]),
            ]
        )
    return table


def _ratios(comparisons: Sequence[Comparison], mode: str) -> list[list[str]]:
    return [
        [
            one.workload + ("" if one.by == "operations_per_second" else f" ({FIGURES[one.by]})"),
            number(one.ours[one.by]["median"]),
            one.best["peer"],
            number(one.best[one.by]["median"]),
            times(one.ratio) + ("" if one.clear else " ~"),
            *(times(ratio(one.ours, one.best, figure)) for figure in ("p50_us", "p99_us", "cpu_us")),
        ]
        for one in comparisons
        if one.mode == mode
    ]


def _peer_rows(results: Results) -> list[list[str]]:
    return [
        [
            peer["name"],
            peer["version"],
            spread(peer["accepts_ms"]),
            spread(peer["first_reply_ms"]),
            number(peer["private_mib_idle"]),
            number(peer["private_mib_after"]),
        ]
        for peer in results["peers"]
    ]


def _queue_rows(results: Results, workload: str) -> list[list[str]]:
    table = []
    alone: dict[str, float] = {}
    for row in results["queues"]:
        if row["workload"] != workload:
            continue
        if "failed" in row:
            table.append([row["peer"], str(row["queues"]), row["failed"], ""])
            continue
        rate = row["operations_per_second"]["median"]
        alone.setdefault(row["peer"], rate)
        only = " (it has one)" if row["queues"] == row["offered"] == 1 and row["peer"] != OURS else ""
        table.append(
            [
                row["peer"],
                f"{row['queues']}{only}",
                spread(row["operations_per_second"]),
                times(rate / alone[row["peer"]]),
            ]
        )
    return table


def _inode_rows(results: Results) -> list[list[str]]:
    return [
        [row["peer"], f"{row['inodes']:,}", row["failed"], "", ""]
        if "failed" in row
        else [
            row["peer"],
            f"{row['inodes']:,}",
            number(row["bytes_per_inode"]),
            f"{row['descriptors']:,}",
            number(row["us_per_lookup"]),
        ]
        for row in results["inodes"]
    ]


def _pace_rows(results: Results) -> list[list[str]]:
    return [
        [row["peer"], f"{row['interval'] * 1e6:,.0f}", row["failed"], ""]
        if "failed" in row
        else [
            row["peer"],
            number(row["interval_us"]),
            number(row["cpu_us"]),
            f"{row['cpu_share']:.1%}",
        ]
        for row in results["paces"]
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
    depth = f", depth {how['depth']}" if how["depth"] else ""
    return (
        f"{results['date']}, {where}, Linux {machine['kernel']}, files on {machine['file_system']},"
        f" Python {machine['python']}, at most {how['descriptors']:,} descriptors for a daemon; {pinned}; one queue"
        f" of {how['queue_size']}{depth}, {how['repeats']} interleaved repeats of {how['seconds']:g} s."
        " Medians; ± is the largest distance of a repeat from its median."
    )


def lead(results: Results) -> list[str]:
    """The first sentences: ours beside the best other daemon of each row, and where it is behind."""
    comparisons = compare(results)
    lines = []
    for mode in dict.fromkeys(one.mode for one in comparisons):
        mine = [one for one in comparisons if one.mode == mode]
        lines.append(
            f"{mode}: {times(mean(comparisons, mode) or 0)} of the best other daemon's speed (geometric mean of"
            f" {len(mine)} workloads), ahead in {sum(one.ratio >= 1 for one in mine)}."
        )
    lost = behind(comparisons)
    if lost:
        places = (
            f"{one.workload}, {one.mode}: {times(one.ratio)} of {one.best['peer']}"
            + ("" if one.clear else " (within the spread)")
            for one in lost
        )
        lines.append(f"Behind in {len(lost)} rows: " + "; ".join(places) + ".")
    elif comparisons:
        lines.append("Behind nowhere.")
    return lines


def absent(results: Results) -> list[str]:
    """One line for each workload that a daemon did not run."""
    return [
        f"{row['peer']}: {row['workload']}: {'FAILED: ' if row['failed'] else ''}{row['reason']}"
        for row in results["absent"]
    ]


def sections(results: Results) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """All tables: title, headings, rows; empty columns are left out."""
    comparisons = compare(results)
    for mode in dict.fromkeys(one.mode for one in comparisons):
        yield _packed(f"To the best other daemon, {mode}", RATIO_HEADINGS, _ratios(comparisons, mode))
    for workload, mode in dict.fromkeys((row["workload"], row["mode"]) for row in results["results"]):
        yield _packed(f"{workload}, {mode}", HEADINGS, _table(results, workload, mode))
    for workload in dict.fromkeys(row["workload"] for row in results["queues"]):
        yield _packed(
            f"{workload}, a driver thread for each queue", QUEUE_HEADINGS, _queue_rows(results, workload)
        )
    if results["paces"]:
        yield _packed(
            "What polling and waking cost a guest that asks now and then", PACE_HEADINGS, _pace_rows(results)
        )
    if results["inodes"]:
        yield _packed("Inodes that a guest holds", INODE_HEADINGS, _inode_rows(results))
    yield _packed("Start-up and memory", PEER_HEADINGS, _peer_rows(results))


def _packed(
    title: str, headings: Sequence[str], rows: list[list[str]]
) -> tuple[str, Sequence[str], list[list[str]]]:
    keep = [i for i in range(len(headings)) if i == 0 or any(row[i] for row in rows)]
    return title, [headings[i] for i in keep], [[row[i] for i in keep] for row in rows]


def commands(results: Results) -> list[tuple[str, str]]:
    """Each daemon's name and command line; where programs of ours lie on this machine is nobody's business."""
    found = []
    for peer in results["peers"]:
        words = [os.path.basename(word) if word == sys.executable else word for word in peer["command"]]
        home = os.path.expanduser("~")
        found.append((peer["name"], " ".join(words).replace(home + "/", "~/")))
    return found


NOTE = (
    "Ratios are ours to the best other daemon of the row, above 1 in our favour (for p50, p99 and CPU: to that same"
    " daemon); ~ marks rows whose repeats overlap.  Latency is that of single requests, those without a reply left out."
)


def terminal(results: Results) -> str:
    """Aligned tables."""
    lines = [conditions(results), "", *lead(results), NOTE]
    for title, headings, rows in sections(results):
        table = [list(headings), *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(headings))]
        lines += ["", title]
        for row in table:
            cells = [
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  " + "  ".join(cells).rstrip())
    if results["absent"]:
        lines += ["", "Not measured", *("  " + line for line in absent(results))]
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """The same as a Markdown page."""
    lines = [
        "# Benchmark",
        "",
        conditions(results),
        "",
        *(f"- {line}" for line in lead(results)),
        "",
        NOTE,
        "",
    ]
    for title, headings, rows in sections(results):
        lines += [f"## {title}", ""]
        lines.append("| " + " | ".join(headings) + " |")
        lines.append("|" + "|".join("---" if i == 0 else "--:" for i in range(len(headings))) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    if results["absent"]:
        lines += ["## Not measured", "", *(f"- {line}" for line in absent(results)), ""]
    lines += ["Commands:", ""]
    lines += [f"- {name}: `{command}`" for name, command in commands(results)]
    return "\n".join(lines) + "\n"

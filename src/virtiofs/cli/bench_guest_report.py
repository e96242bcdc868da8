# SPDX-License-Identifier: Apache-2.0
"""What `virtiofs bench-guest` measured, as text, Markdown and one HTML page."""

from __future__ import annotations

import math
import statistics
from html import escape
from typing import Any

from virtiofs.client.page import STYLE

__all__ = ["markdown", "medians", "page", "terminal"]

Results = dict[str, Any]


def medians(results: Results) -> dict[str, dict[str, float]]:
    """Work -> target -> the median of its seconds; what failed is missing."""
    seen: dict[str, dict[str, list[float]]] = {}
    for row in results["rows"]:
        if "seconds" in row:
            seen.setdefault(row["work"], {}).setdefault(row["target"], []).append(row["seconds"])
    return {
        name: {target: statistics.median(values) for target, values in seen[name].items()}
        for name in results["works"]
        if name in seen
    }


def ours(results: Results) -> list[str]:
    """The targets that are ours: what they compare with is themselves."""
    return [target for target in results["targets"] if results["beside"][target] == target]


def others(results: Results) -> list[str]:
    """The other targets."""
    return [target for target in results["targets"] if results["beside"][target] != target]


def ratios(results: Results) -> dict[str, dict[str, float]]:
    """Work -> other target -> how many times as long it takes as the one of ours that it compares with."""
    return {
        name: {
            target: row[target] / row[results["beside"][target]]
            for target in others(results)
            if target in row and results["beside"][target] in row
        }
        for name, row in medians(results).items()
    }


def conditions(results: Results) -> str:
    """One paragraph: on what and how this was measured."""
    machine, sizes = results["machine"], results["machine"]["sizes"]
    rounds = 1 + max((row["round"] for row in results["rows"]), default=0)
    return (
        f"One guest, {machine['accelerator'].upper()}, Linux {machine['kernel']}, on {machine['processors']} x"
        f" {machine['processor']}; medians of {rounds} rounds; {sizes['files']} files made, a large file of"
        f" {sizes['mebibytes']} MiB, {sizes['random']} random requests. 9p and the disk image are QEMU's own threads,"
        " the daemons are processes; NFS goes through QEMU's user network."
    )


def failures(results: Results) -> list[str]:
    """One line for each work that failed on a target, and for each target that could not be had."""
    failed = (row for row in results["rows"] if "failed" in row)
    lines = {f"{row['target']}, {row['work'] or 'mount'}: {row['failed']}" for row in failed}
    return [*sorted(lines), *results["absent"]]


def _rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """The headings and rows of one table: seconds of ours, then times as long for the others."""
    times = ratios(results)
    rows = []
    for name, row in medians(results).items():
        cells = [name, *(f"{row[target]:.3f}" if target in row else "" for target in ours(results))]
        cells += [f"{times[name][target]:.2f}" if target in times[name] else "" for target in others(results)]
        rows.append(cells)
    mean = ["geometric mean", *("" for _ in ours(results))]
    for target in others(results):
        values = [row[target] for row in times.values() if target in row]
        mean.append(f"{math.exp(statistics.fmean(map(math.log, values))):.2f}" if values else "")
    return ["work", *(f"{target}, s" for target in ours(results)), *others(results)], [*rows, mean]


def note(results: Results) -> str:
    """What the figures of the table are."""
    pairs: dict[str, list[str]] = {}
    for target in others(results):
        pairs.setdefault(results["beside"][target], []).append(target)
    beside = "; ".join(f"{', '.join(names)} with {name}" for name, names in pairs.items())
    text = "Seconds of ours; for each other, how many times as long it takes: above 1 ours is ahead."
    return (
        f"{text} Each compares with the one of ours that lets the guest keep as much: {beside}."
        if pairs
        else text
    )


def terminal(results: Results) -> str:
    """The table, for a terminal."""
    headings, rows = _rows(results)
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    lines = [conditions(results), note(results), ""]
    for row in [headings, *rows]:
        lines.append(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
    return "\n".join([*lines, "", *failures(results)])


def markdown(results: Results) -> str:
    """The same as a page of Markdown."""
    headings, rows = _rows(results)
    lines = ["# What a guest can have its files by", "", conditions(results), "", note(results), ""]
    lines += [f"| {' | '.join(headings)} |", f"|---|{'--:|' * (len(headings) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {line}" for line in failures(results))]
    return "\n".join(lines).rstrip() + "\n"


def page(results: Results) -> str:
    """The same as a page that needs nothing else, with a plot for each other target."""
    headings, rows = _rows(results)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>What a guest can have its files by</title><style>{STYLE}</style>",
        f"<h1>What a guest can have its files by</h1><p class=small>{escape(conditions(results))}</p>",
        f"<p>{escape(note(results))}</p><div class=wide><table><tr>{head}</tr>{body}</table></div>",
    ]
    for target in others(results):
        title = f"{target}, compared with {results['beside'][target]}"
        parts.append(f"<h2>{escape(title)}</h2>{_plot(results, target)}")
    lines = "".join(f"<li>{escape(line)}" for line in failures(results))
    if lines:
        parts.append(f"<h2>Not measured</h2><ul>{lines}</ul>")
    return "\n".join(parts) + "</html>\n"


def _plot(results: Results, target: str) -> str:
    """A bar for each work on a scale of doublings: to the right of the line ours is ahead."""
    times = {name: row[target] for name, row in ratios(results).items() if target in row}
    reach = max([1.0, *(abs(math.log2(value)) for value in times.values())])
    height, middle, unit = 22 * len(times) + 4, 540.0, 180.0 / reach
    parts = [f"<line x1={middle} x2={middle} y1=0 y2={height} stroke='var(--line)' stroke-width=2 />"]
    for i, (name, value) in enumerate(times.items()):
        length, y = math.log2(value) * unit, 22 * i
        colour = "var(--good)" if value >= 1 else "var(--bad)"
        at, anchor = (middle + length + 5, "start") if length >= 0 else (middle + length - 5, "end")
        parts.append(
            f"<text x=330 y={y + 14} text-anchor=end>{escape(name)}</text>"
            f"<rect x={middle + min(length, 0):.1f} y={y + 2} width={max(abs(length), 1):.1f} height=16"
            f" fill='{colour}' />"
            f"<text class=soft x={at:.1f} y={y + 14} text-anchor={anchor}>{value:.2f}</text>"
        )
    return f"<svg role=img aria-label='{escape(target)}' viewBox='0 0 760 {height}' width=760>{''.join(parts)}</svg>"

# SPDX-License-Identifier: Apache-2.0
"""The results of a benchmark as one HTML page that needs nothing else: plots are SVG inside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from virtiofs.client import report
from virtiofs.client.report import Comparison, Results, number, times

WIDTH = 760
NAME_WIDTH = 330
BAR, GAP = 16, 6
COLOURS = ("#2563eb", "#e08a1e", "#c2571a", "#6b8e4e", "#3f6b4a", "#8b5fbf", "#777777")
STYLE = """
:root { color-scheme: light dark; --back: #fff; --fore: #1c2430; --soft: #5b6675; --line: #d9dee5; --good: #1f8a4c;
  --bad: #c0392b; --card: #f5f7fa }
@media (prefers-color-scheme: dark) { :root { --back: #14181e; --fore: #e6e9ee; --soft: #9aa5b4; --line: #333c48;
  --good: #4cc27a; --bad: #ef6a5b; --card: #1d232b } }
body { background: var(--back); color: var(--fore); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem }
h1 { margin-bottom: .2rem } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line) }
h3 { margin: 1.4rem 0 .2rem }
p.small, footer { color: var(--soft); font-size: 13px }
.cards { display: flex; gap: 1rem; flex-wrap: wrap; margin: 1rem 0 }
.card { background: var(--card); border-radius: 8px; padding: .7rem 1.1rem; min-width: 11rem }
.card b { font-size: 26px; display: block } .good { color: var(--good) } .bad { color: var(--bad) }
table { border-collapse: collapse; font-size: 13px; margin: .4rem 0 1rem }
td, th { padding: 2px 10px; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) td { background: var(--card) }
th { border-bottom: 1px solid var(--line); font-weight: 600 }
svg { display: block; max-width: 100% } svg text { fill: var(--fore); font: 12px system-ui, sans-serif }
svg text.soft { fill: var(--soft) } .key { font-size: 13px } .key i { display: inline-block; width: 11px; height: 11px;
  margin: 0 4px 0 14px } details summary { cursor: pointer; color: var(--soft); font-size: 13px }
.wide { overflow-x: auto }
code { font-size: 12px }
"""


def page(results: Results) -> str:
    """The whole page."""
    comparisons = report.compare(results)
    names = [peer["name"] for peer in results["peers"]]
    names += [row["peer"] for row in results["results"] if row["peer"] not in names]
    colours = {name: COLOURS[min(i, len(COLOURS) - 1)] for i, name in enumerate(dict.fromkeys(names))}
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'><title>virtio-fs daemons, side by side</title>",
        f"<style>{STYLE}</style><h1>virtio-fs daemons, side by side</h1>",
        f"<p class=small>{escape(report.conditions(results))}</p>",
        _cards(comparisons),
        _behind(comparisons),
    ]
    for mode in dict.fromkeys(one.mode for one in comparisons):
        parts.append(f"<h2>Ours to the best other daemon: {escape(mode)}</h2>")
        parts.append(_ratio_plot([one for one in comparisons if one.mode == mode]))
    if comparisons:
        parts.append(f"<p class=small>{escape(report.NOTE)} Pale bars: the repeats overlap.</p>")
    parts.append("<h2>All daemons</h2>")
    key = "".join(f"<i style='background:{colour}'></i>{escape(name)}" for name, colour in colours.items())
    parts.append(f"<p class=key>{key}</p>")
    tables = list(report.sections(results))
    for workload in dict.fromkeys(row["workload"] for row in results["results"]):
        parts.append(f"<h3>{escape(workload)}</h3>")
        for mode in dict.fromkeys(row["mode"] for row in results["results"] if row["workload"] == workload):
            parts.append(_bars(report.rows_of(results, workload, mode), mode, colours))
        inside = "".join(
            f"<p class=small>{escape(title)}</p>" + _table(headings, rows)
            for title, headings, rows in tables
            if title.startswith(workload + ", ") and "driver thread" not in title
        )
        parts.append(f"<details><summary>figures</summary>{inside}</details>")
    for title, headings, rows in tables:
        if "driver thread" in title or title.startswith(("Inodes", "Start-up")):
            parts.append(f"<h2>{escape(title)}</h2>" + _table(headings, rows))
    if results["absent"]:
        lines = "".join(f"<li>{escape(line)}" for line in report.absent(results))
        parts.append(f"<h2>Not measured</h2><ul>{lines}</ul>")
    listed = "".join(
        f"<li>{escape(name)}: <code>{escape(command)}</code>" for name, command in report.commands(results)
    )
    parts.append(f"<footer><h2>Commands</h2><ul>{listed}</ul></footer></html>")
    return "\n".join(parts) + "\n"


def _cards(comparisons: Sequence[Comparison]) -> str:
    cards = []
    for mode in dict.fromkeys(one.mode for one in comparisons):
        mine = [one for one in comparisons if one.mode == mode]
        value = report.mean(comparisons, mode) or 0.0
        ahead = sum(one.ratio >= 1 for one in mine)
        kind = "good" if value >= 1 else "bad"
        cards.append(
            f"<div class=card>{escape(mode)}<b class={kind}>{times(value)}</b>"
            f"ahead in {ahead} of {len(mine)} workloads</div>"
        )
    return f"<div class=cards>{''.join(cards)}</div>"


def _behind(comparisons: Sequence[Comparison]) -> str:
    lost = report.behind(comparisons)
    if not comparisons:
        return ""
    if not lost:
        return "<p>Behind the best other daemon in no row.</p>"
    rows = "".join(
        f"<li>{escape(one.workload)}, {escape(one.mode)}: <b class=bad>{times(one.ratio)}</b> of"
        f" {escape(one.best['peer'])}{'' if one.clear else ' (within the spread)'}"
        for one in lost
    )
    return f"<p>Behind the best other daemon in {len(lost)} of {len(comparisons)} rows:</p><ul>{rows}</ul>"


def _svg(height: float, inside: Sequence[str], what: str) -> str:
    return (
        f"<svg role=img aria-label='{escape(what)}' viewBox='0 0 {WIDTH} {height:g}' width={WIDTH}"
        f" height={height:g}>{''.join(inside)}</svg>"
    )


def _ratio_plot(comparisons: Sequence[Comparison]) -> str:
    """One bar a workload on a scale of doublings: to the right of the line we are ahead."""
    reach = max(1.0, *(abs(math.log2(min(max(one.ratio, 1 / 64), 64))) for one in comparisons))
    left, right = NAME_WIDTH + 45.0, WIDTH - 45.0
    middle = (left + right) / 2
    unit = (right - left) / 2 / reach
    height = len(comparisons) * (BAR + GAP) + 24
    parts = []
    for doubling in range(-math.floor(reach), math.floor(reach) + 1):
        x = middle + doubling * unit
        label = f"{2**doubling}x" if doubling >= 0 else f"1/{2**-doubling}"
        parts.append(
            f"<line x1={x:.1f} x2={x:.1f} y1=0 y2={height - 20} stroke='var(--line)'"
            f" stroke-width={2 if doubling == 0 else 1} />"
            f"<text class=soft x={x:.1f} y={height - 4} text-anchor=middle>{label}</text>"
        )
    for i, one in enumerate(comparisons):
        y = i * (BAR + GAP)
        length = math.log2(min(max(one.ratio, 1 / 64), 64)) * unit
        x, width = (middle, length) if length >= 0 else (middle + length, -length)
        colour = "var(--good)" if length >= 0 else "var(--bad)"
        anchor, at = ("start", x + width + 5) if length >= 0 else ("end", x - 5)
        name = one.workload + ("" if one.by == "operations_per_second" else ", p99")
        parts.append(
            f"<text x={NAME_WIDTH} y={y + 13} text-anchor=end>{escape(name)}</text>"
            f"<rect x={x:.1f} y={y} width={max(width, 1):.1f} height={BAR} fill='{colour}'"
            f" opacity={1 if one.clear else 0.45}><title>{escape(one.workload)}: {times(one.ratio)} of"
            f" {escape(one.best['peer'])}</title></rect>"
            f"<text x={at:.1f} y={y + 13} text-anchor={anchor}>{times(one.ratio)}</text>"
        )
    return _svg(height, parts, "ratios to the best other daemon")


def _bars(rows: Sequence[dict[str, Any]], mode: str, colours: dict[str, str]) -> str:
    """One mode's rows: a bar each with the reach of the repeats."""
    by = rows[0]["by"]
    most = max(row[by]["most"] for row in rows) or 1
    left, room = 110.0, WIDTH - 110 - 190.0
    height = len(rows) * (BAR - 2) + 10
    parts = [f"<text class=soft x=0 y=12>{escape(mode)}</text>"]
    for i, row in enumerate(rows):
        y = i * (BAR - 2)
        value = row[by]
        length, least, reach = (value[key] / most * room for key in ("median", "least", "most"))
        label = f"{number(value['median'])} {'us p99' if by == 'p99_us' else '/s'}"
        if row["unit"] and by != "p99_us":
            label = (
                f"{number(value['median'])} {'entries' if row['unit'] == 'entry' else row['unit'] + 's'}/s"
            )
        if "mib_per_second" in row and by != "p99_us":
            label += f", {number(row['mib_per_second']['median'])} MiB/s"
        middle = y + (BAR - 5) / 2
        parts.append(
            f"<rect x={left} y={y} width={max(length, 1):.1f} height={BAR - 5} fill='{colours[row['peer']]}'>"
            f"<title>{escape(row['peer'])}: {escape(report.spread(value))}</title></rect>"
            f"<line x1={left + least:.1f} x2={left + reach:.1f} y1={middle} y2={middle} stroke='var(--fore)' />"
            f"<text x={left + reach + 6:.1f} y={y + 10}>{label}</text>"
        )
    return _svg(height, parts, f"{rows[0]['workload']}, {mode}")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}" for cell in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    return f"<div class=wide><table><tr>{head}{body}</table></div>"

# SPDX-License-Identifier: Apache-2.0
"""Reports of checks: lines for a terminal, and one table of several devices in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from virtiofs.client.check.case import FAILED, LEVELS, MUST, OMITTED, PASSED, SAFE, SHOULD, Outcome
from virtiofs.client.check.run import Report

MARKS = {PASSED: "ok", FAILED: "FAILED", OMITTED: "-"}


def line(outcome: Outcome) -> str:
    """One check's outcome."""
    check = outcome.check
    detail = f": {outcome.detail}" if outcome.detail else ""
    where = f" ({check.source})" if outcome.result == FAILED else ""
    return f"{MARKS[outcome.result]:<7}{check.level:<7}{check.group:<11}{check.sentence}{detail}{where}"


def summary(report: Report) -> str:
    """What the device offers, and the counts."""
    counts = [
        f"{report.count(PASSED)} passed",
        *(
            f"{report.count(FAILED, [level])} failed ({level})"
            for level in LEVELS
            if report.count(FAILED, [level])
        ),
        f"{report.count(OMITTED)} not applicable",
    ]
    return "\n".join(
        [
            f"{report.name}{': ' + report.version if report.version else ''}",
            f"  offers: {_list(report.features + report.protocol_features)}",
            f"  INIT agreed on: {_list(report.init_flags)}",
            f"  not served (ENOSYS): {_list(report.unserved)}",
            f"  {', '.join(counts)}",
        ]
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def markdown(reports: Sequence[Report], title: str = "Conformance") -> str:
    """A page: counts of each device, a table of all checks, then the failures in words."""
    names = [report.name for report in reports]
    lines = [f"# {title}", "", "Written by `virtiofs check --markdown`.", ""]
    lines += [f"- {report.name}: {report.version or 'version unknown'}" for report in reports]
    lines += [
        "",
        f"A check is *{MUST}* where a text or a Linux guest relies on it, *{SAFE}* where a hostile guest or front end "
        f"could do harm otherwise, *{SHOULD}* where a device is better for it.  A dash: the device does not offer what "
        "the check is about.",
        "",
        _row(["", *names]),
        _row(["---", *["---:"] * len(reports)]),
        _row(["passed", *[str(report.count(PASSED)) for report in reports]]),
    ]
    for level in LEVELS:
        lines.append(_row([f"failed, {level}", *[str(report.count(FAILED, [level])) for report in reports]]))
    lines.append(_row(["not applicable", *[str(report.count(OMITTED)) for report in reports]]))
    group = ""
    for outcomes in zip(*(report.outcomes for report in reports), strict=True):
        check = outcomes[0].check
        if check.group != group:
            group = check.group
            lines += ["", f"## {group.capitalize()}", "", _row(["check", "level", *names])]
            lines.append(_row(["---", "---", *["---"] * len(reports)]))
        lines.append(_row([check.sentence, check.level, *[MARKS[outcome.result] for outcome in outcomes]]))
    for report in reports:
        lines += ["", f"## What {report.name} does", ""]
        lines += [f"- not served (ENOSYS): {_list(report.unserved)}"]
        lines += [f"- INIT agreed on: {_list(report.init_flags)}"]
        lines += [
            f"- {outcome.check.sentence} ({outcome.check.source}): **{outcome.result}**, {outcome.detail}"
            for outcome in report.outcomes
            if outcome.result != PASSED
        ]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

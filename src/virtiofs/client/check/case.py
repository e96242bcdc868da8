# SPDX-License-Identifier: Apache-2.0
"""What a check is: one sentence that a device keeps or breaks, how grave that is, and where it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from virtiofs.client.check.subject import Subject

MUST = "must"  # a text or a Linux guest relies on it
SAFE = "safe"  # a hostile guest or front end could do harm otherwise
SHOULD = "should"  # better so; a device without it is still of use
LEVELS = (MUST, SAFE, SHOULD)

PASSED, FAILED, OMITTED = "passed", "failed", "not applicable"


class Failed(Exception):
    """The device broke the sentence; the text says what it did instead."""


class NotApplicable(Exception):
    """The device does not offer what the check is about, or the check cannot be made here; the text says why."""


class Check(NamedTuple):
    """`act(subject)` returns, or raises `Failed`, `NotApplicable`, or what the client raises for a bad device."""

    group: str
    level: str
    sentence: str
    source: str
    act: Callable[[Subject], None]


class Outcome(NamedTuple):
    """What came of a check; `detail` says why it failed or was not made."""

    check: Check
    result: str
    detail: str = ""


Act = Callable[["Subject"], None]


def checker(group: str, found: list[Check]) -> Callable[[str, str, str], Callable[[Act], Act]]:
    """A decorator for the checks of one group: `@check(level, sentence, source)`; they are collected in `found`."""

    def check(level: str, sentence: str, source: str) -> Callable[[Act], Act]:
        def collect(act: Act) -> Act:
            found.append(Check(group, level, sentence, source, act))
            return act

        return collect

    return check


def expect(condition: object, otherwise: str) -> None:
    """Raise `Failed(otherwise)` unless the condition holds."""
    if not condition:
        raise Failed(otherwise)

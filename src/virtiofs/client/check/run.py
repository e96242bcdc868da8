# SPDX-License-Identifier: Apache-2.0
"""All checks on one device, in order: what it offers, and one outcome for each check.

A check that leaves a session in disorder, or a device that is gone, costs the next check a new connection and
nothing else.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from virtiofs.client.check import errors, handshake, operations, requests, rings
from virtiofs.client.check.case import FAILED, LEVELS, OMITTED, PASSED, Check, Failed, NotApplicable, Outcome
from virtiofs.client.check.subject import Subject
from virtiofs.client.session import ReplyError
from virtiofs.vhostuser import messages
from virtiofs.vhostuser.frontend import FrontEndError
from virtiofs.virtqueue.driver import DriverError

# Well-behaved checks first: a device that ends with a connection has then shown what it can.
CHECKS: tuple[Check, ...] = (
    *operations.CHECKS,
    *errors.CHECKS,
    *requests.CHECKS,
    *handshake.CHECKS,
    *rings.CHECKS,
)
GROUPS = tuple(dict.fromkeys(check.group for check in CHECKS))
# Why a check of a tree that somebody writes as he likes cannot be made.
LACKING = {errno.ENOSYS: "it has no method for that", errno.EROFS: "it can not be changed"}


class Report(NamedTuple):
    """What was found out about one device."""

    name: str
    version: str
    features: list[str]  # virtio and vhost-user features it offers
    protocol_features: list[str]
    init_flags: list[str]  # agreed on at INIT
    unserved: list[str]  # operations that are ENOSYS
    outcomes: list[Outcome]

    def count(self, result: str, levels: Sequence[str] = LEVELS) -> int:
        """How many checks of these levels ended so."""
        return sum(outcome.result == result and outcome.check.level in levels for outcome in self.outcomes)

    def data(self) -> dict[str, Any]:
        """What `--json` writes."""
        fields = self._asdict()
        fields["outcomes"] = [
            {
                "group": outcome.check.group,
                "level": outcome.check.level,
                "check": outcome.check.sentence,
                "source": outcome.check.source,
                "result": outcome.result,
                "detail": outcome.detail,
            }
            for outcome in self.outcomes
        ]
        return fields


def run(
    subject: Subject,
    version: str = "",
    checks: Sequence[Check] = CHECKS,
    progress: Callable[[Outcome], None] = lambda _outcome: None,
) -> Report:
    """Make the checks.  Raises `TransportError` or `FrontEndError` for a device that cannot be had at all."""
    with subject.front_end() as front_end:
        front_end.negotiate()
        features = _names("VIRTIO_", front_end.offered_features) + _names(
            "VHOST_", front_end.offered_features
        )
        protocol_features = _names("PROTOCOL_F_", front_end.offered_protocol_features)
    subject.learn_whether_it_stays()
    flags: list[str] = []
    unserved: list[str] = []
    with contextlib.suppress(OSError, ReplyError, FrontEndError, DriverError):
        flags = operations.agreed(subject.session)
        unserved = operations.unserved(subject.session)
    outcomes = []
    for check in checks:
        outcome = _one(subject, check)
        outcomes.append(outcome)
        progress(outcome)
    return Report(subject.name, version, features, protocol_features, flags, unserved, outcomes)


def _names(prefix: str, bits: int) -> list[str]:
    return [
        name
        for name, value in vars(messages).items()
        if name.startswith(prefix) and "_F_" in name and isinstance(value, int) and bits & value
    ]


def _one(subject: Subject, check: Check) -> Outcome:
    result, detail = FAILED, ""
    try:
        check.act(subject)
        result = PASSED
    except NotApplicable as reason:
        result, detail = OMITTED, str(reason)
    except OSError as error:
        if subject.own_tree and error.errno in LACKING:
            return Outcome(check, OMITTED, LACKING[error.errno])
        code = errno.errorcode.get(error.errno or 0, "")
        detail = f"{code + ': ' if code else ''}{error.strerror or error}"
    except (Failed, ReplyError, FrontEndError, DriverError) as reason:
        detail = str(reason)
        lacking = [why for code, why in LACKING.items() if errno.errorcode[code] in detail]
        if subject.own_tree and lacking:
            return Outcome(check, OMITTED, lacking[0])
    if crash := subject.crash(disorder=result == FAILED):
        return Outcome(check, FAILED, f"{detail}; {crash}" if detail and crash not in detail else crash)
    return Outcome(check, result, detail)

# SPDX-License-Identifier: Apache-2.0
"""A policy that is read again while it is in force: by the supervisor, which may read its file, for workers, which can
open nothing.

What goes to a worker is data: the lists and numbers of the policy, as JSON.  Who is asked is what the worker has had
since it started.
"""

from __future__ import annotations

import json

from virtiofs.fs.policy import rules
from virtiofs.fs.policy.rules import Owner, Policy

LISTS = ("hide", "deny", "read_only", "ask_about", "hidden_files", "denied_files", "read_only_files")
NUMBERS = ("scan", "patience", "keep_answers")


class PolicyFile:
    """The policy that `text` on a command line names, as it was read last.  Raises `ValueError`."""

    def __init__(self, text: str):
        self.text = text
        self.policy = rules.load(text)
        self._asks = bool(self.policy.ask_about)

    @property
    def asks(self) -> bool:
        """Whether workers have to be ready to ask."""
        return self._asks

    def again(self) -> Policy:
        """What it says now, checked wholly.  Raises `ValueError` with the line and the reason."""
        from virtiofs.fs.policy.matcher import Matcher

        policy = rules.load(self.text, self.policy)
        if policy.ask_about and not self._asks:
            raise ValueError(
                f"{self.text}: what starts to ask needs another worker, so that takes another start of the daemon"
            )
        Matcher(rules.patterns_of(policy))
        return policy


class Received(Policy):
    """A policy as it came from the supervisor, in place of `before`, whose function goes on answering."""

    def __init__(self, before: Policy):
        self._asked: Policy = before._asked if isinstance(before, Received) else before

    def ask(self, path: str) -> object:
        return self._asked.ask(path)


def encode(policy: Policy) -> bytes:
    """The data of a policy."""
    said: dict[str, object] = {name: list(getattr(policy, name)) for name in LISTS}
    said |= {name: getattr(policy, name) for name in NUMBERS}
    said["owners"] = [[list(owner.patterns), owner.uid, owner.gid] for owner in policy.owners]
    return json.dumps(said).encode()


def decode(data: bytes, before: Policy) -> Policy:
    """The policy of `encode`, in place of `before`."""
    said = json.loads(data)
    policy = Received(before)
    policy.owners = [Owner(patterns, uid, gid) for patterns, uid, gid in said.pop("owners")]
    for name in (*LISTS, *NUMBERS):
        setattr(policy, name, said[name])
    return policy

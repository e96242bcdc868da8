# SPDX-License-Identifier: Apache-2.0
"""What a policy says: a class with lists of patterns, or the same from a TOML file.

docs/policy.md says what each list does to a guest.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from virtiofs.fs.policy.patterns import Pattern, parse

# The bits of a verdict; those of owners follow.
HIDE, DENY, READ_ONLY, ASK = 1, 2, 4, 8
LISTS = ("hide", "deny", "read-only", "ask")
FIRST_OWNER = len(LISTS)
MOST_OWNERS = 64 - FIRST_OWNER
MOST_ID = 0xFFFFFFFE
MOST_PATIENCE = 60.0


class PolicyError(ValueError):
    """What a policy says makes no sense.  `words`: what stands in the line of its file that is to blame."""

    def __init__(self, reason: str, *words: str):
        super().__init__(reason)
        self.words = words


class Owner(NamedTuple):
    """Whose the files of some patterns are shown to be; None leaves an id as it is."""

    patterns: Sequence[str]
    uid: int | None = None
    gid: int | None = None


class Policy:
    """What a guest may see and do of a shared directory.  Derive from it, and give the class to `--policy`.

    The lists hold patterns of gitignore(5), relative to the shared directory.  `hidden_files`, `denied_files` and
    `read_only_files` name files whose rule follows them to every name they have, by path.  `scan`: look through the
    whole tree at the start for files with several names, so that the strictest name counts before the guest meets it.
    """

    hide: Sequence[str] = ()
    deny: Sequence[str] = ()
    read_only: Sequence[str] = ()
    ask_about: Sequence[str] = ()
    owners: Sequence[Owner] = ()
    hidden_files: Sequence[str] = ()
    denied_files: Sequence[str] = ()
    read_only_files: Sequence[str] = ()
    scan: bool = False
    patience: float = 5.0
    keep_answers: float = 1.0
    # Noted when it is loaded: what the class opened, the files that it was read from, what its file calls ask-with, and
    # the attributes it had before its file's were added.
    descriptors: Sequence[int] = ()
    sources: Sequence[str] = ()
    asked_with: str | None = None
    made: Mapping[str, Any] = MappingProxyType({})

    def ask(self, path: str) -> object:
        """What the guest may do with `path`, which a pattern of `ask_about` matches: "allow", "read-only" or "deny".

        Or a pair of that and the seconds for which the answer holds (else `keep_answers`).  `path` is relative to the
        shared directory.  Called before the first use of the file, on a thread of its own, so several calls may run at
        a time.  An `OSError` is its errno for the guest; anything else that is raised, any other answer, and none
        within `patience` seconds are logged, and EIO for the guest.
        """
        raise NotImplementedError


# What the keys of a file are called in the class.
KEYS = {
    "hide": "hide",
    "deny": "deny",
    "read-only": "read_only",
    "ask": "ask_about",
    "scan": "scan",
    "patience": "patience",
    "keep-answers": "keep_answers",
}
FILE_KEYS = {"hide": "hidden_files", "deny": "denied_files", "read-only": "read_only_files"}


def load(text: str, before: Policy | None = None) -> Policy:
    """The policy of "file.toml", "module:Class" or "file.py:Class".  Raises `ValueError` with the line and the reason.

    `before`: what the same text was when it was loaded the last time.  Nothing is imported again, so a class can not
    be loaded again.
    """
    from virtiofs.fs.python.loading import names_class

    if names_class(text):
        if before is not None:
            raise ValueError(
                f"{text} is a class, which is loaded at the start only; what is to change belongs into a TOML file"
            )
        return load_class(text)
    try:
        with open(text, encoding="utf-8") as file:
            content = file.read()
    except OSError as error:
        raise ValueError(f"cannot read the policy {text}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"the policy {text} is not UTF-8") from None
    try:
        policy = from_toml(content, os.path.dirname(os.path.abspath(text)), before)
        check(policy)
    except ValueError as error:
        raise ValueError(f"{text}: {line_of(content, error)}{error}") from None
    policy.sources = (*policy.sources, text) if before is None else before.sources
    return policy


def line_of(content: str, error: ValueError) -> str:
    """Where in a file the reason for an error is, as it is put before that; "" where that can not be told."""
    words = error.words if isinstance(error, PolicyError) else ()
    for number, line in enumerate(content.splitlines(), 1):
        if words and not line.lstrip().startswith("#") and all(word in line for word in words):
            return f"line {number}: "
    return ""


def load_class(text: str) -> Policy:
    """The policy of "module:Class" or "file.py:Class".  Raises `ValueError`."""
    from virtiofs.fs.python.loading import import_file, import_module, opened

    fds: list[int] = []
    where, _, name = text.rpartition(":")
    module = import_file(where) if where.endswith(".py") else import_module(where)
    cls = getattr(module, name, None)
    if not isinstance(cls, type) or not issubclass(cls, Policy):
        raise ValueError(f"{where} has no class {name} that is derived from virtiofs.Policy")
    try:
        with opened(fds):
            policy = cls()
    except Exception as error:
        raise ValueError(f"{text} can not be made: {type(error).__name__}: {error}") from error
    check(policy)
    policy.descriptors = tuple(fds)
    policy.sources = tuple(filter(None, (getattr(module, "__file__", None),)))
    return policy


def from_toml(content: str, directory: str = ".", before: Policy | None = None) -> Policy:
    """The policy in the text of a TOML file that lies in `directory`; `before` as for `load`.  Raises `ValueError`."""
    import tomllib

    found: dict[str, Any] = tomllib.loads(content)
    asker = found.pop("ask-with", None)
    if asker is not None and not isinstance(asker, str):
        raise PolicyError("ask-with names a class, as file.py:Class", "ask-with")
    if before is None:
        policy = Policy() if asker is None else load_class(below(directory, asker))
        policy.made = dict(vars(policy))
    elif asker == before.asked_with:
        policy = copy.copy(before)
        vars(policy).clear()
        vars(policy).update(before.made, made=before.made)
    else:
        raise PolicyError(
            "who is asked is loaded at the start only: leave ask-with as it was, or start the daemon again",
            "ask-with",
        )
    policy.asked_with = asker
    owners = found.pop("owner", [])
    files = found.pop("inode", {})
    for key, value in found.items():
        if key not in KEYS:
            known = ", ".join((*KEYS, "ask-with", "[[owner]]", "[inode]"))
            raise PolicyError(f"there is no key {key!r}; there are {known}", key)
        setattr(policy, KEYS[key], value)
    if not isinstance(owners, list) or not all(isinstance(owner, dict) for owner in owners):
        raise PolicyError("owners are tables: [[owner]]", "owner")
    made = []
    for owner in owners:
        unknown = set(owner) - {"patterns", "uid", "gid"}
        if unknown:
            raise PolicyError("an [[owner]] has the keys patterns, uid and gid", min(unknown))
        made.append(Owner(owner.get("patterns", ()), owner.get("uid"), owner.get("gid")))
    if made:
        policy.owners = made
    if not isinstance(files, dict) or set(files) - set(FILE_KEYS):
        raise PolicyError(f"[inode] has the keys {', '.join(FILE_KEYS)}", "[inode]")
    for key, value in files.items():
        setattr(policy, FILE_KEYS[key], value)
    return policy


def below(directory: str, text: str) -> str:
    """A class whose file is named from where the policy lies."""
    where, _, name = text.rpartition(":")
    return f"{os.path.join(directory, where)}:{name}" if where.endswith(".py") else text


def check(policy: Policy) -> None:
    """Raises `ValueError` for what makes no sense."""
    patterns_of(policy)
    for key, attribute in FILE_KEYS.items():
        for path in strings(getattr(policy, attribute), f"of [inode], {key}"):
            if any(part in ("", ".", "..") for part in path.strip("/").split("/")):
                raise PolicyError(
                    f"a file is named by its path below the shared directory, not {path!r}", path
                )
    for owner in policy.owners:
        for key, one in (("uid", owner.uid), ("gid", owner.gid)):
            if one is not None and (
                isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= MOST_ID
            ):
                raise PolicyError(f"an owner is a number from 0 to {MOST_ID}, not {one!r}", key, str(one))
        if owner.uid is None and owner.gid is None:
            raise PolicyError("an owner has a uid, a gid, or both", "[[owner]]")
    if not isinstance(policy.scan, bool):
        raise PolicyError(f"scan is true or false, not {policy.scan!r}", "scan")
    for name, most in (("patience", MOST_PATIENCE), ("keep_answers", float("inf"))):
        number = getattr(policy, name)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= most:
            key = name.replace("_", "-")
            raise PolicyError(f"{key} is a number of seconds, not {number!r}", key)
    if policy.ask_about and type(policy).ask is Policy.ask:
        raise PolicyError("who is to be asked? ask needs ask-with, a class with a method `ask`", "ask")


def strings(value: object, what: str) -> Sequence[str]:
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(x, str) for x in value)
    ):
        raise PolicyError(f"{what} is a list of strings, not {value!r}", what.split()[-1])
    return value


def patterns_of(policy: Policy) -> list[list[Pattern]]:
    """The patterns of each list, in the order of the bits of a verdict.  Raises `ValueError`."""
    if len(policy.owners) > MOST_OWNERS:
        raise ValueError(f"a policy has at most {MOST_OWNERS} owners, not {len(policy.owners)}")
    lists: list[tuple[str, object]] = [(key, getattr(policy, KEYS[key])) for key in LISTS]
    lists += [("an owner's patterns", owner.patterns) for owner in policy.owners]
    found: list[list[Pattern]] = []
    for name, texts in lists:
        found.append([])
        for text in strings(texts, name):
            try:
                pattern = parse(text)
            except ValueError as error:
                raise PolicyError(str(error), text) from None
            if pattern is not None:
                found[-1].append(pattern)
    return found


def explain(policy: Policy, path: str, directory: bool) -> list[tuple[str, str]]:
    """What holds for a path of the share, by its names alone: pairs of a rule and the pattern that decides it."""
    from virtiofs.fs.policy.matcher import Matcher

    lists = patterns_of(policy)
    flat = [pattern for patterns in lists for pattern in patterns]
    matcher = Matcher(lists)
    name = os.fsencode(path)
    verdict = matcher.verdict(name, directory)
    found = []
    for index in range(len(lists)):
        deciding = matcher.deciding(name, directory, index)
        if deciding < 0:
            continue
        rule = LISTS[index] if index < FIRST_OWNER else shown_owner(policy.owners[index - FIRST_OWNER])
        found.append((rule if verdict >> index & 1 else f"not {rule}", flat[deciding].text))
    return found


def shown_owner(owner: Owner) -> str:
    ids = (("uid", owner.uid), ("gid", owner.gid))
    return "owner " + " ".join(f"{name} {value}" for name, value in ids if value is not None)

# SPDX-License-Identifier: Apache-2.0
"""Rules that map the guest's names of extended attributes to the host's: from text to a list.

A rule is `:TYPE:SCOPE:KEY:PREPEND:`, where the first character that is not a space is the separator of that
rule.  The syntax and its meaning are those of virtiofsd's --xattrmap, so that its rules can be used as they are
(see docs/xattrs.md).  The oracle of the parser: a list of rules that ends in one for every name, or `ValueError`.
"""

from __future__ import annotations

from typing import NamedTuple

# The longest name Linux has for an attribute (XATTR_NAME_MAX).
MAX_NAME = 255
MAX_RULES = 1024
TYPES = ("prefix", "ok", "bad", "unsupported")
SCOPES = {"client": 1, "server": 2, "all": 3}


class Rule(NamedTuple):
    """`scope` is a mask: 1 for names that come from the guest, 2 for names that come from the host.

    A name from the guest is matched by its beginning with `key`, one from the host by `prepend`.
    """

    type: str
    scope: int
    key: bytes = b""
    prepend: bytes = b""


# What does not act on the host passes; a guest is told that there is nothing else.
USER_ONLY = [Rule("ok", 3, b"user.", b"user."), Rule("unsupported", 3)]
EVERYTHING = [Rule("ok", 3)]


def parse_xattr_rules(text: str) -> list[Rule]:
    """The rules in `text`.  Raises `ValueError` saying what is wrong, and in which rule."""
    rules: list[Rule] = []
    rest = text.lstrip()
    ended = False
    number = 0
    while rest:
        number += 1
        where = f"attribute rule {number}"
        if ended:
            raise ValueError(f"{where}: nothing may follow a map rule")
        separator, rest = rest[0], rest[1:]
        kind, rest = _field(rest, separator, where, "type")
        if kind == "map":
            key, rest = _name(rest, separator, where, "key")
            prepend, rest = _name(rest, separator, where, "prefix")
            rules += _expand(key, prepend, where)
            ended = True
        elif kind in TYPES:
            scope, rest = _field(rest, separator, where, "scope")
            if scope not in SCOPES:
                raise ValueError(f"{where}: the scope is client, server or all, not {scope!r}")
            key, rest = _name(rest, separator, where, "key")
            prepend, rest = _name(rest, separator, where, "prefix")
            rules.append(Rule(kind, SCOPES[scope], key, prepend))
        else:
            raise ValueError(f"{where}: the type is {', '.join(TYPES)} or map, not {kind!r}")
        rest = rest.lstrip()
    if len(rules) > MAX_RULES:
        raise ValueError(f"{len(rules)} attribute rules are too many; {MAX_RULES} are allowed")
    for mask, field, side in ((1, "key", "guest"), (2, "prepend", "host")):
        if not any(rule.scope & mask and not getattr(rule, field) for rule in rules):
            raise ValueError(
                f"no attribute rule is for every name of the {side}; end the list with one such as :bad:all:::"
            )
    return rules


def _field(rest: str, separator: str, where: str, what: str) -> tuple[str, str]:
    field, found, rest = rest.partition(separator)
    if not found:
        raise ValueError(f"{where}: {separator!r} is missing after the {what}")
    return field, rest


def _name(rest: str, separator: str, where: str, what: str) -> tuple[bytes, str]:
    field, rest = _field(rest, separator, where, what)
    try:
        name = field.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{where}: the {what} is not text") from None
    if len(name) > MAX_NAME or b"\0" in name:
        raise ValueError(f"{where}: the {what} has more than {MAX_NAME} bytes, or a NUL")
    return name, rest


def _expand(key: bytes, prepend: bytes, where: str) -> list[Rule]:
    """What a map rule stands for: names that begin with `key` are kept with a prefix, others are left alone.

    Neither side sees through it: the guest can not name what is kept under the prefix, nor does it see the
    host's own attributes that begin with `key`.
    """
    if not prepend:
        raise ValueError(f"{where}: a map rule needs a prefix")
    if not key:
        return [Rule("prefix", 3, b"", prepend), Rule("bad", 3)]
    return [
        Rule("prefix", 3, key, prepend),
        Rule("bad", 2, b"", key),
        Rule("bad", 1, prepend),
        Rule("ok", 3),
    ]

# SPDX-License-Identifier: Apache-2.0
"""Try a policy (docs/policy.md): the rules that `virtiofs serve --policy FILE` would apply.

    virtiofs policy check FILE                 whether it can be read
    virtiofs policy check FILE DIR             and what it says of every file in DIR that it says something of
    virtiofs policy explain FILE PATH...       what holds for a path of the share, and which pattern says so

A daemon that has a policy in force reads it again on SIGHUP, or on `virtiofs ctl PATH reload-policy`.

A PATH is relative to the shared directory, and need not exist; one that ends in a slash is a directory.  FILE is a TOML
file, or module:Class.  Exit status of check: 0, or 1 for a policy that can not be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.fs.policy.rules import Policy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs policy`."""
    commands = parser.add_subparsers(dest="do", metavar="COMMAND", required=True)
    check = commands.add_parser("check", help="whether a policy can be used, and what it says of a directory")
    check.add_argument("policy", metavar="FILE")
    check.add_argument("directory", metavar="DIR", nargs="?")
    explain = commands.add_parser("explain", help="what holds for a path, and why")
    explain.add_argument("policy", metavar="FILE")
    explain.add_argument("paths", metavar="PATH", nargs="+")


def main(options: argparse.Namespace) -> int:
    """Check or explain; the exit status."""
    from virtiofs.fs.policy.rules import load

    try:
        policy = load(options.policy)
        if options.do == "explain":
            return explain_paths(policy, options.paths)
        return check(policy, options.directory)
    except (ValueError, OSError) as error:
        print(f"virtiofs policy: {error}", file=sys.stderr)
        return 1


def explain_paths(policy: Policy, paths: list[str]) -> int:
    from virtiofs.fs.policy.rules import explain

    for path in paths:
        found = explain(policy, path.strip("/"), path.endswith("/"))
        for rule, pattern in found:
            print(f"{path}: {rule}, by {pattern}")
        if not found:
            print(f"{path}: no rule")
    return 0


def check(policy: Policy, directory: str | None) -> int:
    """Say what the policy has, and what it says of each file of a directory."""
    from virtiofs.fs.policy.matcher import Matcher
    from virtiofs.fs.policy.rules import HIDE, LISTS, patterns_of, shown_owner

    lists = patterns_of(policy)
    names = [*LISTS, *map(shown_owner, policy.owners)]
    if directory is None:
        for name, patterns in zip(names, lists, strict=True):
            if patterns:
                print(f"{name}: {len(patterns)} pattern{'s' if len(patterns) > 1 else ''}")
        return 0
    matcher = Matcher(lists)
    above = {"": 0}
    for path, is_directory in walk(directory):
        verdict = matcher.verdict(os.fsencode(path), is_directory)
        inherited = above[os.path.dirname(path)]
        if is_directory:
            above[path] = verdict
        if inherited & HIDE or verdict == inherited:
            continue
        rules = [names[index] for index in range(len(lists)) if verdict >> index & 1]
        print(f"{', '.join(rules)}\t{path}{'/' if is_directory else ''}")
    return 0


def walk(directory: str) -> Iterator[tuple[str, bool]]:
    """Every path below a directory, relative to it, and whether it is a directory; what is above comes first."""

    def fail(error: OSError) -> None:
        raise error

    for where, directories, files in os.walk(directory, onerror=fail):
        directories.sort()
        place = os.path.relpath(where, directory)
        prefix = "" if place == "." else f"{place}/"
        for name in directories:
            yield prefix + name, not os.path.islink(os.path.join(where, name))
        for name in sorted(files):
            yield prefix + name, False

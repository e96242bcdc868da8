# SPDX-License-Identifier: Apache-2.0
"""Look at what `virtiofs serve --audit FILE` wrote (docs/audit.md).

    virtiofs audit verify FILE...              whether nothing was changed, left out or added
    virtiofs audit verify --has HASH FILE      and whether a record is there that was there before
    virtiofs audit show FILE                   its records, for people

Files that continue each other (after the log was rotated) are given oldest first.  Exit status of verify: 0 for a chain
that is whole, 1 for one that is not, with the line where it breaks.
"""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs audit`."""
    commands = parser.add_subparsers(dest="do", metavar="COMMAND", required=True)
    verify = commands.add_parser("verify", help="whether the chain is whole")
    verify.add_argument("files", metavar="FILE", nargs="+")
    verify.add_argument("--has", metavar="HASH", help="a hash that some record must have, noted earlier")
    show = commands.add_parser("show", help="print the records")
    show.add_argument("files", metavar="FILE", nargs="+")


def main(options: argparse.Namespace) -> int:
    """Verify or show; the exit status."""
    from virtiofs.daemon import chain

    before: str | None = None
    count = torn = lost = 0
    found = getattr(options, "has", None) is None
    digest = chain.BEGINNING
    for path in options.files:
        try:
            with open(path, "rb") as file:
                for record, digest in chain.read(file, before):
                    note = record.get("note")
                    count += note != "unfinished"
                    torn += note in ("torn", "unfinished")
                    lost += record.get("count", 0) if note == "lost" else 0
                    found = found or digest == options.has
                    if options.do == "show":
                        print(line_of(record))
        except OSError as error:
            print(f"virtiofs audit: {path}: {error.strerror}", file=sys.stderr)
            return 1
        except chain.ChainError as error:
            print(f"virtiofs audit: {path}: {error}", file=sys.stderr)
            return 1
        before = digest
    if options.do == "show":
        return 0
    if not found:
        print(f"virtiofs audit: no record has the hash {options.has}: the end is missing", file=sys.stderr)
        return 1
    more = f", {torn} torn line{'s' if torn > 1 else ''}" if torn else ""
    more += f", {lost} records lost, as noted" if lost else ""
    print(f"{count} records, whole{more}; the last has the hash {digest}")
    return 0


def line_of(record: dict[str, object]) -> str:
    if "note" in record:
        rest = " ".join(f"{key}={value}" for key, value in record.items() if key not in ("n", "note"))
        return f"-- {record['note']} {rest}".rstrip()
    words = [str(record[key]) for key in ("time", "share", "operation", "result")]
    words.append(f"uid={record['uid']} pid={record['pid']}")
    if "bytes" in record:
        words.append(f"bytes={record['bytes']}")
    words.append(repr(record["path"]) if record["path"] is not None else f"node {record['node']}")
    if "to" in record:
        words.append(f"-> {record['to']!r}")
    return " ".join(words)

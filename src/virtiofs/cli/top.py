# SPDX-License-Identifier: Apache-2.0
"""Watch what guests do with shares, over the control sockets of running daemons (`virtiofs serve --control PATH`).

    virtiofs top /run/vm/control                    # until q or Ctrl-C
    virtiofs top /run/vm/*.control --interval 5
    virtiofs top /run/vm/control --once             # the rates of one interval, as text; --json for programs

For each share and each operation: requests and errors a second, the mean time of one and what 99 of 100 stay
below (estimated from one request in 17, in steps of a factor of two), and the share's files, queues and threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from virtiofs.cli.ctl import ask, describe, table

FIRST_BUCKET_NS = 1024  # fuse/serving.py
MIN_INTERVAL, MAX_INTERVAL = 0.1, 3600.0
CLEAR = "\x1b[H\x1b[J"
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # a screen of its own, without a cursor
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
SHARE_HEAD = (
    "SHARE",
    "PID",
    "REQ/S",
    "ERR/S",
    "FILES",
    "OPEN",
    "FDS",
    "EVICT/S",
    "DEPTH",
    "WAIT",
    "POOL",
    "LOOKS/S",
    "VAIN",
    "SLEEPS/S",
    "NOTIFY/S",
)
OPERATION_HEAD = ("SHARE", "OPERATION", "REQ/S", "ERR/S", "MEAN us", "P99 us <", "TOTAL")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `virtiofs top`."""
    parser.set_defaults(parser=parser)
    parser.add_argument(
        "control", metavar="PATH", nargs="+", help="a daemon's control socket; several may be given"
    )
    parser.add_argument(
        "--interval",
        metavar="S",
        type=float,
        default=2.0,
        help="seconds from one look to the next (%(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="print the rates of one interval and end")
    parser.add_argument(
        "--json", action="store_true", help="print an object a line and share instead, each interval"
    )


def main(options: argparse.Namespace) -> int:
    """Look until told to end."""
    if not MIN_INTERVAL <= options.interval <= MAX_INTERVAL:
        options.parser.error(
            f"--interval takes {MIN_INTERVAL} to {MAX_INTERVAL:.0f} seconds, not {options.interval:g}"
        )
    try:
        before = look(options.control)
        on_screen = sys.stdout.isatty() and not options.once and not options.json
        with screen() if on_screen else contextlib.nullcontext():
            while not wait(options.interval, on_screen):
                after = look(options.control)
                rates = [compare(before.get(key), share) for key, share in after.items()]
                if options.json:
                    print("\n".join(json.dumps(rate) for rate in rates), flush=True)
                else:
                    show(rates, on_screen)
                if options.once:
                    break
                before = after
    except (OSError, ValueError) as error:
        print(f"virtiofs top: {describe(error)}", file=sys.stderr)
        return 1
    except (LookupError, TypeError, AttributeError) as error:  # of another version, or a worker that lies
        print(f"virtiofs top: the answer of a daemon makes no sense: {error!r}", file=sys.stderr)
        return 1
    return 0


def look(paths: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """What each daemon says of each of its shares, with the moment.  Raises `OSError` and `ValueError`."""
    found = {}
    for path in paths:
        try:
            answer = ask(path, {"do": "counters"})
        except OSError as error:
            raise ValueError(f"{path}: {describe(error)}") from None
        if "error" in answer:
            raise ValueError(f"{path}: {answer['error']}")
        for share in answer["result"]:
            found[path, share["tag"]] = {**share, "moment": time.monotonic()}
    return found


@contextlib.contextmanager
def screen() -> Iterator[None]:
    """A screen of our own, and keys as they are pressed; as it was afterwards."""
    import termios
    import tty

    saved = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    if saved is not None:
        tty.setcbreak(sys.stdin)
    sys.stdout.write(ENTER)
    try:
        yield
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        if saved is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def wait(seconds: float, on_screen: bool) -> bool:
    """Whether the user wants to end, before the time is over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not on_screen or not sys.stdin.isatty():
            time.sleep(left)
        elif select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in ("q", "Q", ""):
            return True
    return False


def compare(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, Any]:
    """A share's rates, a second, since the look before; zeros where there was none."""
    was: dict[str, Any] = before or {"operations": {}, "queues": {}, "filesystem": {}}
    seconds = after["moment"] - was["moment"] if before else 0.0

    def rate(now: float, then: float) -> float:
        # Counters of a connection begin again with the next.
        return max(0.0, now - then) / seconds if seconds else 0.0

    operations = []
    for name, row in after["operations"].items():
        then = was["operations"].get(name, [0] * len(row))
        requests, errors, nanoseconds, *buckets = (max(0, a - b) for a, b in zip(row, then, strict=True))
        timed = sum(buckets)
        operations.append(
            {
                "operation": name,
                "requests": requests / seconds if seconds else 0.0,
                "errors": errors / seconds if seconds else 0.0,
                "mean_microseconds": nanoseconds / timed / 1000 if timed else None,
                "p99_microseconds": quantile(buckets, 0.99),
                "total": row[0],
            }
        )
    operations.sort(key=lambda one: (-one["requests"], -one["total"], one["operation"]))

    def of_queues(share: dict[str, Any], key: str) -> int:
        return sum(queue[key] for queue in share["queues"].values())

    report: dict[str, Any] = {
        "share": after["tag"],
        "directory": after["directory"],
        "connected": after["connected"],
        "seconds": round(seconds, 3),
        "requests": sum(one["requests"] for one in operations),
        "errors": sum(one["errors"] for one in operations),
    }
    for key in ("inodes", "handles", "descriptors"):
        report[key] = after["filesystem"].get(key)
    evictions = after["filesystem"].get("evictions", 0)
    report["evictions"] = rate(evictions, was["filesystem"].get("evictions", 0))
    for key in ("depth", "waiting"):
        report[key] = of_queues(after, key)
    report["pool_jobs"] = after["pool"].get("jobs", 0)
    report["pool_busy"] = after["pool"].get("busy", 0)
    for key in ("looks", "vain_looks", "sleeps", "kicks", "notifications"):
        report[key] = rate(of_queues(after, key), of_queues(was, key))
    return {**report, "operations": operations}


def quantile(buckets: list[int], part: float) -> float | None:
    """The upper end, in microseconds, of the bucket that this part of all lies in; None for none, and for the last."""
    wanted, seen = part * sum(buckets), 0
    for index, count in enumerate(buckets[:-1]):
        seen += count
        if count and seen >= wanted:
            return (FIRST_BUCKET_NS << index) / 1000
    return None


def show(rates: list[dict[str, Any]], on_screen: bool) -> None:
    """Two tables; on a screen no more than fits."""
    shares = table(SHARE_HEAD, [share_row(share) for share in rates]).split("\n")
    rows = [operation_row(share["share"], one) for share in rates for one in share["operations"]]
    lines = [*shares, "", *table(OPERATION_HEAD, rows).split("\n")]
    if on_screen:
        size = shutil.get_terminal_size()
        lines = [line[: size.columns] for line in lines[: size.lines - 1]]
        for number, line in enumerate(lines):
            if number in (0, len(shares) + 1):
                lines[number] = f"{BOLD}{line}{PLAIN}"
        sys.stdout.write(CLEAR)
    print("\n".join(lines), flush=True)


def share_row(share: dict[str, Any]) -> list[str]:
    def number(key: str) -> str:
        return "-" if share[key] is None else str(share[key])

    vain = share["vain_looks"] / share["looks"] if share["looks"] else None
    return [
        share["share"],
        str(share["connected"] or "-"),
        f"{share['requests']:.0f}",
        f"{share['errors']:.0f}",
        number("inodes"),
        number("handles"),
        number("descriptors"),
        f"{share['evictions']:.0f}",
        number("depth"),
        number("waiting"),
        f"{share['pool_busy']}/{share['pool_jobs']}",
        f"{share['looks']:.0f}",
        "-" if vain is None else f"{vain:.0%}",
        f"{share['sleeps']:.0f}",
        f"{share['notifications']:.0f}",
    ]


def operation_row(tag: str, one: dict[str, Any]) -> list[str]:
    def time_of(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    return [
        tag,
        one["operation"],
        f"{one['requests']:.0f}",
        f"{one['errors']:.0f}",
        time_of(one["mean_microseconds"]),
        time_of(one["p99_microseconds"]),
        str(one["total"]),
    ]

# SPDX-License-Identifier: Apache-2.0
"""How stale a mount's view gets in each cache mode, and what that saves: measured through the real kernel client.

A file of a shared directory grows by one byte: through the mount that looks at it, through a second mount, or on the
host.  Meanwhile a program looks at it through the first mount, all the time, so the kernel knows its attributes.
How long until the new size shows is the staleness.  How many requests that looking costs is counted as the messages
that our own daemon reads from /dev/fuse.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from virtiofs.client.peers import Peer

READY_SECONDS = 20.0
LIMIT_SECONDS = 3.0  # what has not been seen by then counts as never
LOOK_SECONDS = 0.02  # between two looks of the program
WATCHER_SECONDS = 2.0  # for the watcher of the host to begin
FILES, ROUNDS = 100, 20
STAT_FILES = 10_000
GIT_FILES, GIT_RUNS = 50_000, 6
BLIND_REPEATS = 2  # of a change that is never seen
WRITERS = ("the same guest", "another guest", "the host")


class Way(NamedTuple):
    """A cache mode of a daemon: the words of `virtiofs mount`, or the command of a device to mount by its socket."""

    daemon: str
    mode: str
    words: tuple[str, ...] = ()
    device: tuple[str, ...] = ()


def ways(found: list[Peer]) -> list[Way]:
    """All modes of ours, and those of the other daemons that are there."""
    all_ways = [Way("virtiofs", mode, ("--cache", mode)) for mode in ("never", "metadata", "auto", "always")]
    all_ways.append(Way("virtiofs", "adaptive", ("--cache", "adaptive", "--metadata-table")))
    all_ways.append(Way("virtiofs", "table", ("--metadata-table",)))
    names = {"virtiofsd-c": ("none", "auto", "always"), "virtiofsd-rust": ("never", "auto", "always")}
    for peer in found:
        for mode in names.get(peer.name, ()):
            command = tuple(word.replace("cache=auto", f"cache={mode}") for word in peer.command)
            all_ways.append(Way(peer.name, "never" if mode == "none" else mode, device=command))
    return all_ways


class Mount:
    """A running `virtiofs mount`."""

    def __init__(self, place: Path, process: subprocess.Popen[bytes]):
        self.place = place
        self._process = process

    def requests(self) -> int:
        """Messages that were read from /dev/fuse so far, and a few other reads."""
        for pid in _descendants(self._process.pid):
            with contextlib.suppress(OSError):
                if any(os.readlink(fd.path) == "/dev/fuse" for fd in os.scandir(f"/proc/{pid}/fd")):
                    text = Path(f"/proc/{pid}/io").read_text()
                    return int(text.partition("syscr: ")[2].split()[0])
        raise OSError("the mount has ended")


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _descendants(int(child))


@contextlib.contextmanager
def mounted(way: Way, share: Path, base: Path, name: str) -> Iterator[Mount]:
    """`share`, mounted at base/`name` in one way.  Raises `OSError` with what the command says."""
    with contextlib.ExitStack() as stack:
        place = base / name
        place.mkdir(exist_ok=True)
        what: tuple[str, ...] = (str(share),)
        if way.device:
            socket = str(base / f"{name}.sock")
            words = [word.replace("{socket}", socket).replace("{dir}", str(share)) for word in way.device]
            device = stack.enter_context(
                subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(device.terminate)
            deadline = time.monotonic() + READY_SECONDS
            while not os.path.exists(socket) and time.monotonic() < deadline and device.poll() is None:
                time.sleep(LOOK_SECONDS)
            time.sleep(LOOK_SECONDS)  # the C daemon's socket is there a moment before it listens
            what = ("--socket", socket)
        ready, told = os.pipe()
        stack.callback(os.close, ready)
        command = [sys.executable, "-m", "virtiofs", "mount", *what, str(place), *way.words]
        process = stack.enter_context(
            subprocess.Popen(
                [*command, "--ready-fd", str(told)],
                pass_fds=[told],
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
            )
        )
        stack.callback(process.terminate)
        os.close(told)
        if not select.select([ready], [], [], READY_SECONDS)[0] or not os.read(ready, 64):
            process.kill()
            said = process.stderr.read().decode().strip() if process.stderr else ""
            raise OSError(f"it can not be mounted: {said}")
        yield Mount(place, process)


def staleness(reader: Path, writer: Path, random_: random.Random) -> float | None:
    """Seconds until what is appended to `writer` shows in `reader`'s size; None: not within LIMIT_SECONDS."""
    until = time.monotonic() + 0.2 + random_.random()  # at any time in a second of validity
    while time.monotonic() < until:
        os.stat(reader)
        time.sleep(LOOK_SECONDS)
    with open(writer, "ab", buffering=0) as file:
        file.write(b"x")
        size = os.fstat(file.fileno()).st_size
        began = time.monotonic()
        while os.stat(reader).st_size < size:
            if time.monotonic() - began > LIMIT_SECONDS:
                return None
    return time.monotonic() - began


def measure(way: Way, repeats: int, told: Callable[[str], None]) -> dict[str, Any]:
    """What one mode does.  Raises `OSError`."""
    random_ = random.Random(1)
    result: dict[str, Any] = {"daemon": way.daemon, "mode": way.mode, "staleness": {}}
    with (
        tempfile.TemporaryDirectory(prefix="virtiofs-coherence-") as directory,
        contextlib.ExitStack() as stack,
    ):
        base = Path(directory)
        base.chmod(0o755)
        share = base / "share"
        share.mkdir()
        for number in range(FILES):
            (share / str(number)).write_bytes(b"")
        one = stack.enter_context(mounted(way, share, base, "one"))
        other = stack.enter_context(mounted(way, share, base, "other"))
        if "--metadata-table" in way.words:
            time.sleep(WATCHER_SECONDS)
        for writer, place in zip(WRITERS, (one.place, other.place, share), strict=True):
            told(f"{way.daemon}, {way.mode}: changes by {writer}")
            seen: list[float | None] = []
            for number in range(repeats):
                if seen.count(None) < BLIND_REPEATS:
                    # A file each: what was never seen must not be taken for the next.
                    seen.append(staleness(one.place / str(number), place / str(number), random_))
            result["staleness"][writer] = summary(seen)
        if not way.device:
            told(f"{way.daemon}, {way.mode}: requests")
            before = one.requests()
            for _ in range(ROUNDS):
                for number in range(FILES):
                    os.stat(one.place / str(number))
                time.sleep(LOOK_SECONDS)
            result["requests"] = (one.requests() - before) / (ROUNDS * FILES)
    return result


def summary(seen: list[float | None]) -> dict[str, Any]:
    """Median, 99th percentile and worst, in seconds, of changes that were seen, and how many were not."""
    times = sorted(one for one in seen if one is not None)
    if not times:
        return {"changes": len(seen), "never": len(seen)}
    return {
        "changes": len(seen),
        "never": seen.count(None),
        "p50": times[len(times) // 2],
        "p99": times[min(len(times) - 1, len(times) * 99 // 100)],
        "worst": times[-1],
    }


def cell(found: dict[str, Any]) -> str:
    """A summary for people: p50 / p99 / worst."""
    if "p50" not in found:
        return f"not within {LIMIT_SECONDS:g} s"
    text = " / ".join(_time(found[key]) for key in ("p50", "p99", "worst"))
    return text + (f", {found['never']} of {found['changes']} not seen" if found["never"] else "")


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


HEADINGS = ("daemon", "mode", *(f"a change by {writer}" for writer in WRITERS), "requests per stat")


def rows(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table, without its headings."""
    return [
        (
            one["daemon"],
            one["mode"],
            *(cell(one["staleness"][writer]) for writer in WRITERS),
            f"{one['requests']:.3f}" if "requests" in one else "-",
        )
        for one in results
    ]


def markdown(results: list[dict[str, Any]]) -> str:
    """The table for a document."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(results)]
    return "\n".join(lines) + "\n"


def terminal(results: list[dict[str, Any]]) -> str:
    """The table for a terminal."""
    table = [HEADINGS, *rows(results)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in table
    )


# --- asking again ---


def known_again(peer: Peer, base: Path, told: Callable[[str], None]) -> dict[str, Any]:
    """A stat of each of many files through the tree API, again and again: microseconds and requests each.

    Ours with what its versions allow to be kept; every other daemon is asked each time.
    """
    from virtiofs.client.device import UNIQUE_STEP
    from virtiofs.client.peers import RunningPeer
    from virtiofs.client.tree import Tree

    told(f"{peer.name}: stat of {STAT_FILES} files through the tree API")
    ours = peer.name == "virtiofs"
    command = (*peer.command, "--metadata-table") if ours else peer.command
    share = base / f"stat-{peer.name}"
    share.mkdir()
    paths = [f"file{number}" for number in range(STAT_FILES)]
    for path in paths:
        (share / path).touch()
    with RunningPeer(peer._replace(command=command), share, versions=ours) as running:
        device, tree = running.device, Tree(running.session)
        rounds: list[tuple[float, float]] = []
        deadline = time.monotonic() + READY_SECONDS
        while len(rounds) < 3 and time.monotonic() < deadline:
            before, began = device.unique(), time.perf_counter()
            for path in paths:
                tree.stat(path)
            used = time.perf_counter() - began
            asked = (device.unique() - before) // UNIQUE_STEP - 1
            if not ours or not asked:  # its watcher may only just have begun
                rounds.append((used / STAT_FILES * 1e6, asked / STAT_FILES))
        if not rounds:
            raise OSError("what is known is asked for again and again")
    return {"daemon": peer.name, "microseconds": min(rounds)[0], "requests": min(rounds)[1]}


def git_status(base: Path, files: int, told: Callable[[str], None]) -> dict[str, Any]:
    """`git status` of a tree of so many files, warm: seconds here, and through a mount with a table."""
    told(f"git status of {files} files")
    share = base / "share"
    share.mkdir()
    for number in range(files):
        path = share / f"d{number // 100}" / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % number)
    git = ["git", "-c", "safe.directory=*", "-c", "user.name=a", "-c", "user.email=b", "-c", "gc.auto=0"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=share, check=True, capture_output=True)
    result: dict[str, Any] = {"files": files}
    with mounted(Way("virtiofs", "table", ("--metadata-table",)), share, base, "place") as mount:
        time.sleep(WATCHER_SECONDS)
        for name, place in (("local", share), ("mount", mount.place)):
            times = []
            before = 0
            for _ in range(GIT_RUNS):
                before, began = mount.requests(), time.perf_counter()
                subprocess.run(
                    [*git, "--no-optional-locks", "status", "--porcelain"],
                    cwd=place,
                    check=True,
                    capture_output=True,
                )
                times.append(time.perf_counter() - began)
            result[name] = min(times[1:])
            if name == "mount":
                result["requests"] = mount.requests() - before
    return result


def again_text(known: list[dict[str, Any]], git: dict[str, Any] | None) -> str:
    """Both as lines of text."""
    lines = [
        f"stat of {STAT_FILES} files through the tree API, again, {one['daemon']}: {one['microseconds']:.2f} us and"
        f" {one['requests']:.2f} requests each"
        for one in known
    ]
    if git is not None:
        lines.append(
            f"git status of {git['files']} files, warm: {git['local']:.3f} s on the local file system,"
            f" {git['mount']:.3f} s ({git['mount'] / git['local']:.2f} times) and {git['requests']} requests through"
            " a mount with a table"
        )
    return "\n".join(lines)

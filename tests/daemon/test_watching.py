# SPDX-License-Identifier: Apache-2.0
"""What the host does to a share enters its metadata table, whatever becomes of the daemons, and is told to who asks."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_many_shares import Daemon, serving

import devices
from virtiofs.cli.ctl import ask
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.metadata import registry, watch_calls
from virtiofs.metadata.watch_inotify import EVENT, IN_ATTRIB, IN_CLOSE_WRITE, IN_MODIFY

DEADLINE = 20.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def state(daemon: Daemon, tag: str = "a") -> str:
    return str(daemon.share(tag)["watcher"]["state"])


def wait_for(daemon: Daemon, settled: str) -> bool:
    return devices.wait_until(lambda: state(daemon) == settled, DEADLINE)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "f").write_text("before")
    return tree


@contextlib.contextmanager
def watching(place: Path, tree: Path, settled: str = "complete") -> Iterator[Daemon]:
    with serving(place, [f"a={tree}"], "--metadata-table") as daemon:
        assert wait_for(daemon, settled), (place / "log").read_text()
        yield daemon


@pytest.fixture
def daemon(tmp_path: Path, tree: Path) -> Iterator[Daemon]:
    with watching(tmp_path / "run", tree) as daemon:
        yield daemon


class Listener:
    """A client that is told of changes."""

    def __init__(self, daemon: Daemon, **arguments: str):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(daemon.place / "control"))
        self.socket.settimeout(DEADLINE)
        self.socket.sendall(json.dumps({"do": "events", **arguments}).encode() + b"\n")
        self.lines = self.socket.makefile("rb")
        self.answer = json.loads(self.lines.readline())

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.socket.close()

    def next(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.lines.readline())
        return event

    def until(self, is_last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The events up to one that is the last."""
        events = [self.next()]
        while not is_last(events[-1]):
            events.append(self.next())
        return events


def named(path: str, kind: str = "entry") -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["kind"] == kind and event.get("path") == path


# --- the watcher's life ---


def test_a_daemon_without_a_table_has_no_watcher(tmp_path: Path, tree: Path) -> None:
    with serving(tmp_path / "run", [f"a={tree}"]) as daemon:
        assert daemon.share("a")["watcher"] is None
        assert "--metadata-table" in daemon.refusal("events")


def test_status_and_metrics_show_the_watcher(daemon: Daemon, tree: Path) -> None:
    (tree / "new").touch()
    assert devices.wait_until(lambda: daemon.share("a")["watcher"]["bumps"] > 0, DEADLINE)
    kind = daemon.share("a")["watcher"]["kind"]
    assert f'virtiofs_watcher_complete{{share="a",kind="{kind}"}} 1' in daemon.ask("metrics")
    command = [sys.executable, "-m", "virtiofs", "ctl", str(daemon.place / "control"), "status"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    assert f"a: host watcher: complete, {kind}" in text


@needs_root
def test_the_watcher_keeps_one_privilege_only(daemon: Daemon) -> None:
    pid = daemon.share("a")["watcher"]["process"]
    status = Path(f"/proc/{pid}/status").read_text()
    held = {line.split()[0]: int(line.split()[1], 16) for line in status.splitlines() if line[:3] == "Cap"}
    dac_read_search = 1 << 2
    assert held["CapPrm:"] == held["CapEff:"] == dac_read_search and held["CapInh:"] == 0
    assert "NoNewPrivs:\t1" in status


def test_another_daemon_takes_over_when_the_one_that_watches_is_killed(tmp_path: Path, tree: Path) -> None:
    table = registry.attach(str(tree))
    try:
        with (
            watching(tmp_path / "first", tree) as first,
            watching(tmp_path / "second", tree, settled="waiting") as second,
        ):
            before = table.everything
            first.process.kill()
            assert wait_for(second, "complete")
            assert table.everything != before
            slot = table.slot(tree.stat().st_dev, tree.stat().st_ino)
            word = table.word(slot)
            (tree / "new").touch()
            assert devices.wait_until(lambda: table.word(slot) != word, DEADLINE)
    finally:
        table.close()


def test_a_watcher_that_is_killed_is_replaced(daemon: Daemon, tree: Path) -> None:
    pid = daemon.share("a")["watcher"]["process"]
    os.kill(pid, signal.SIGKILL)
    assert devices.wait_until(lambda: daemon.share("a")["watcher"]["process"] not in (pid, None), DEADLINE)
    assert wait_for(daemon, "complete")
    with Listener(daemon) as listener:
        (tree / "new").touch()
        listener.until(named("new"))


def test_the_table_goes_with_the_last_daemon(tmp_path: Path, tree: Path) -> None:
    with watching(tmp_path / "run", tree):
        table = registry.attach(str(tree))
        path = Path(table.path)
        table.close()
        assert path.exists()
    assert not path.exists()


@needs_root
def test_what_is_mounted_in_the_tree_is_watched_and_can_be_unmounted(daemon: Daemon, tree: Path) -> None:
    place = tree / "mnt"
    place.mkdir()
    with Listener(daemon) as listener:
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        try:
            listener.until(lambda event: event["kind"] == "everything")
            # The watcher before may say for a moment that it sees all.
            assert devices.wait_until(lambda: daemon.share("a")["watcher"]["watches"] >= 2, DEADLINE)
            assert wait_for(daemon, "complete")
            (place / "f").touch()
            listener.until(named("mnt/f"))
            (place / "f").write_text("x")
            listener.until(named("mnt/f", "data"))
        finally:
            subprocess.run(["umount", place], check=True)
        listener.until(lambda event: event["kind"] == "everything")


@pytest.mark.parametrize("who", ["daemon's worker", "host program"])
def test_only_what_workers_do_is_left_out(tmp_path: Path, tree: Path, who: str) -> None:
    """A process that is noted as a worker changes the table by itself."""
    if os.geteuid() != 0:
        pytest.skip("only fanotify, which takes root, tells who it was")
    with watching(tmp_path / "run", tree) as daemon:
        table = registry.attach(str(tree))
        script = f"import sys; sys.stdin.read(1); open({str(tree / 'd' / 'f')!r}, 'w').write('after')"
        with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            if who == "daemon's worker":
                table.set_worker(process.pid)
            with Listener(daemon) as listener:
                process.communicate(b"x")
                (tree / "end").touch()
                seen = listener.until(named("end"))
        table.close()
        assert any(event.get("path") == "d/f" for event in seen) == (who == "host program")


@needs_root
@pytest.mark.parametrize("closed", [False, True])
def test_an_ordinary_user_watches_by_inotify_and_says_what_is_not_seen(closed: bool) -> None:
    with devices.share_for("ours-unprivileged") as share, devices.share_for("ours-unprivileged") as place:
        (share / "d").mkdir()
        if closed:
            (share / "closed").mkdir(mode=0o700)  # root's
        control = str(place / "control")
        options = ["--metadata-table", "--control", control]
        with devices.start_ours(share, options, devices.NOBODY) as running:

            def watcher() -> dict[str, Any]:
                found: dict[str, Any] = ask(control, {"do": "status"})["result"][0]["watcher"]
                return found

            settled = "incomplete" if closed else "complete"
            assert devices.wait_until(
                lambda: watcher()["watches"] == 2 and watcher()["state"] == settled, DEADLINE
            )
            assert watcher()["kind"] == "inotify" and watcher()["unwatched"] == int(closed)
            assert any("what happens in closed is not seen" in line for line in running.log) == closed
            before = watcher()["bumps"]
            (share / "d" / "f").touch()
            assert devices.wait_until(lambda: watcher()["bumps"] > before, DEADLINE)


# --- the stream ---


def test_the_stream_tells_paths_in_the_order_of_the_changes(daemon: Daemon, tree: Path) -> None:
    with Listener(daemon, tag="a") as listener:
        assert listener.answer == {"result": {"watched": True}}
        seen = []
        for act, last in (
            (lambda: (tree / "d" / "f").write_text("after"), named("d/f", "data")),
            (lambda: (tree / "d" / "new").mkdir(), named("d/new")),
            (lambda: (tree / "d" / "new" / "g").touch(), named("d/new/g")),
            (lambda: (tree / "d" / "new").rename(tree / "moved"), named("moved")),
            (lambda: (tree / "moved" / "g").unlink(), named("moved/g", "gone")),
        ):
            act()
            seen += listener.until(last)
    assert ("gone", "d/new") in [(event["kind"], event["path"]) for event in seen]
    assert all(event["by"] == "host" and event["sequence"] >= 0 for event in seen)
    assert [event["sequence"] for event in seen] == sorted(event["sequence"] for event in seen)


def test_paths_are_found_of_directories_that_nobody_told_of(daemon: Daemon, tree: Path) -> None:
    os.makedirs(tree / "one" / "two" / "three")
    (tree / "one" / "two" / "three" / "f").touch()
    with Listener(daemon) as listener:
        (tree / "one" / "two" / "three" / "f").write_text("x")
        listener.until(named("one/two/three/f", "data"))
        (tree / "one" / "two").rename(tree / "two")
        (tree / "two" / "three" / "f").write_text("y")
        listener.until(named("two/three/f", "data"))


def test_names_that_are_no_text_survive(daemon: Daemon, tree: Path) -> None:
    name = os.fsdecode(b'\xff\n"')
    with Listener(daemon) as listener:
        (tree / name).touch()
        assert listener.until(named(name))


def test_a_client_that_does_not_read_holds_up_nobody_and_is_told_that_it_lagged(
    daemon: Daemon, tree: Path
) -> None:
    path = tree / "d" / "f"
    with Listener(daemon) as slow, Listener(daemon) as quick:
        for turn in range(12):
            for number in range(1000):
                path = path.rename(tree / "d" / f"{turn}-{number}-{'x' * 200}")
            (tree / f"end-{turn}").touch()
            # Whoever reads gets there, be it by everything.
            quick.until(lambda event, turn=turn: named(f"end-{turn}")(event) or event["kind"] == "everything")
        assert daemon.ask("list")
        assert slow.until(lambda event: event["kind"] == "everything")


def test_listeners_that_go_leave_no_process(daemon: Daemon) -> None:
    def processes() -> int:
        return len(Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split())

    before = processes()
    for _ in range(3):
        with Listener(daemon):
            assert processes() == before + 1
        assert devices.wait_until(lambda: processes() == before, DEADLINE)


def test_of_a_single_file_nothing_else_is_told(tmp_path: Path, tree: Path) -> None:
    (tree / "only").write_text("x")
    with serving(tmp_path / "run", [f"a={tree}/only"], "--metadata-table") as daemon:
        assert wait_for(daemon, "complete")
        with Listener(daemon) as listener:
            (tree / "other").touch()
            (tree / "d" / "f").write_text("y")
            (tree / "only").write_text("z")
            assert listener.next()["path"] == "only"


def test_the_command_prints_lines_until_the_daemon_ends(tmp_path: Path, tree: Path) -> None:
    command = [sys.executable, "-m", "virtiofs", "events", str(tmp_path / "run" / "control"), "--by", "host"]
    with watching(tmp_path / "run", tree):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None

        def told() -> bool:
            (tree / "new").touch()
            return bool(select.select([process.stdout], [], [], 0.2)[0])

        assert devices.wait_until(told, DEADLINE)
        assert json.loads(process.stdout.readline())["path"] == "new"
    _, complaint = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1 and "the daemon ended" in complaint


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["nowhere"], "no such socket"), (["control", "b"], "there is no share 'b'")],
)
def test_the_command_says_what_is_wrong(daemon: Daemon, words: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "virtiofs", "events", str(daemon.place / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1 and complaint in done.stderr


def test_a_replay_wakes_file_watchers_and_changes_nothing(tree: Path) -> None:
    os.utime(tree / "d" / "f", ns=(1, 2))
    events = [{"kind": "data", "path": "d/f"}, {"kind": "gone", "path": "d/gone"}, {"kind": "everything"}]
    script = Path(__file__).parents[2] / "examples" / "replay_events.py"
    watches = watch_calls.new_inotify(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        watch_calls.add_watch(watches, os.fsencode(tree / "d"), IN_ATTRIB | IN_CLOSE_WRITE | IN_MODIFY)
        lines = "".join(json.dumps(event) + "\n" for event in events)
        subprocess.run([sys.executable, script, tree], input=lines, text=True, timeout=20, check=True)
        masks, data = [], os.read(watches, 4096)
    finally:
        os.close(watches)
    while data:
        _, mask, _, size = EVENT.unpack_from(data)
        masks.append((mask & 0xFFF, data[EVENT.size : EVENT.size + size].rstrip(b"\0")))
        data = data[EVENT.size + size :]
    assert masks == [(IN_ATTRIB, b"f"), (IN_CLOSE_WRITE, b"f"), (IN_ATTRIB, b"")]
    found = (tree / "d" / "f").stat()
    assert (found.st_mtime_ns, found.st_size) == (2, len("before"))


def test_the_guest_is_not_disturbed(daemon: Daemon, tree: Path) -> None:
    with daemon.connect("a") as device, Listener(daemon) as listener:
        guest = Tree(Session(device))
        assert guest.listdir("/") == ["d"]
        guest.write_file("/by-guest", b"x")
        (tree / "by-host").touch()
        listener.until(named("by-host"))
        assert sorted(guest.listdir("/")) == ["by-guest", "by-host", "d"]

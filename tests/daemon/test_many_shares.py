# SPDX-License-Identifier: Apache-2.0
"""One daemon, many shares: each on a socket of its own, none hearing of the others; files as shares."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import devices
from virtiofs.cli.ctl import ask
from virtiofs.cli.shares import parse_share
from virtiofs.client.device import Device, DeviceGone
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.vhostuser.frontend import FrontEndError


class Daemon:
    """A running `virtiofs serve --socket-dir`, its sockets and its control socket in `place`."""

    def __init__(self, place: Path, process: subprocess.Popen[str]):
        self.place = place
        self.process = process

    def ask(self, do: str, **arguments: object):
        answer = ask(str(self.place / "control"), {"do": do, **arguments})
        assert "error" not in answer, answer
        return answer["result"]

    def refusal(self, do: str, **arguments: object) -> str:
        return str(ask(str(self.place / "control"), {"do": do, **arguments})["error"])

    def connect(self, tag: str) -> Device:
        return Device.connect(str(self.place / f"{tag}.sock"))

    def share(self, tag: str) -> dict:
        return next(share for share in self.ask("status") if share["tag"] == tag)


@contextlib.contextmanager
def serving(place: Path, shares: Sequence[str], *options: str) -> Iterator[Daemon]:
    place.mkdir(exist_ok=True)
    ready, ready_end = os.pipe()
    command = [
        sys.executable,
        "-m",
        "virtiofs",
        "serve",
        "--socket-dir",
        str(place),
        "--ready-fd",
        str(ready_end),
    ]
    command += ["--control", str(place / "control"), "--log-level", "info", *options]
    for share in shares:
        command += ["--share", share]
    with open(place / "log", "w") as log:
        process = subprocess.Popen(command, stderr=log, text=True, pass_fds=[ready_end])
    os.close(ready_end)
    try:
        assert select.select([ready], [], [], devices.READY_SECONDS)[0] and os.read(ready, 16), (
            place / "log"
        ).read_text()
        yield Daemon(place, process)
    finally:
        os.close(ready)
        process.terminate()
        assert process.wait(devices.END_SECONDS) in (0, 1, -signal.SIGKILL)  # a test may have killed it


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Daemon]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in-{name}").write_text(name)
    with serving(tmp_path / "run", [f"a={tmp_path}/a", f"b={tmp_path}/b:ro"]) as daemon:
        yield daemon


def test_each_share_has_its_socket_its_tag_and_its_tree(two: Daemon) -> None:
    with two.connect("a") as first, two.connect("b") as second:
        assert (first.tag, second.tag) == ("a", "b")
        a, b = Tree(Session(first)), Tree(Session(second))
        assert (a.listdir("/"), b.listdir("/")) == (["in-a"], ["in-b"])
        a.write_file("/new", b"x")
        with pytest.raises(OSError) as refused:
            b.write_file("/new", b"x")
        assert refused.value.errno == errno.EROFS


def test_the_death_of_a_worker_ends_only_its_own_connection(two: Daemon) -> None:
    with two.connect("b") as other:
        survivor = Tree(Session(other))
        with two.connect("a") as device:
            session = Session(device)
            os.kill(devices.family_of(two.share("a")["worker"])[-1], signal.SIGKILL)
            with pytest.raises((DeviceGone, FrontEndError, OSError)):
                session.lookup(1, "in-a")
        assert survivor.listdir("/") == ["in-b"]
        with two.connect("a") as again:
            assert Tree(Session(again)).listdir("/") == ["in-a"]
        assert survivor.listdir("/") == ["in-b"]
    assert two.process.poll() is None


def test_a_worker_that_dies_idle_is_replaced_for_the_next_front_end(two: Daemon) -> None:
    os.kill(two.share("a")["worker"], signal.SIGKILL)
    assert devices.wait_until(lambda: two.share("a")["worker"] is None)
    with two.connect("a") as device:
        assert Tree(Session(device)).listdir("/") == ["in-a"]


def test_a_worker_has_no_descriptor_of_another_share(two: Daemon) -> None:
    """Neither its guest's memory and eventfds nor its sockets: only the standard ones and its own channel and tree."""
    with two.connect("a") as first, two.connect("b") as second:
        Session(first), Session(second)
        held = {}
        for share in two.ask("status"):
            worker = devices.family_of(share["worker"])[-1]
            links = (os.readlink(link) for link in Path(f"/proc/{worker}/fd").iterdir())
            held[share["tag"]] = {name for name in links if name.startswith(("socket:", "/memfd"))}
        assert not {name for name in held["a"] if name.startswith("socket:")} & held["b"]
        assert all(
            len([name for name in names if name.startswith("socket:")]) == 1 for names in held.values()
        )


def test_the_guest_of_one_share_may_come_and_go_while_another_is_connected(two: Daemon) -> None:
    with two.connect("b") as other:
        survivor = Tree(Session(other))
        for _ in range(3):
            with two.connect("a") as device:
                assert Tree(Session(device)).listdir("/") == ["in-a"]
            assert survivor.listdir("/") == ["in-b"]
        assert two.share("a")["connections"] >= 2


def test_a_share_that_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    base = [sys.executable, "-m", "virtiofs", "serve", "--socket-dir", str(tmp_path)]
    for shares, says in (
        ([f"a={tmp_path}/none"], "there is no directory"),
        ([f"a={tmp_path}/link"], "symbolic link"),
        ([f"a={tmp_path}/d", f"a={tmp_path}/d"], "there is a share a already"),
        (["nonsense"], "TAG=DIR"),
        ([f"a/b={tmp_path}/d"], "slash"),
        ([f"{'x' * 37}={tmp_path}/d"], "a tag has"),
    ):
        command = [*base, *(word for share in shares for word in ("--share", share))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 1 and says in done.stderr, done.stderr
        assert not list(tmp_path.glob("*.sock"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["d"],
        ["--share", "a=d"],
        ["d", "--socket-dir", "x"],
        ["--socket-dir", "x", "--tag", "t"],
        ["--socket-dir", "x", "--share", "a=d", "--reload"],
    ],
)
def test_a_command_line_is_one_of_the_two_forms(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "virtiofs", "serve", *words], capture_output=True, timeout=20, check=False
    )
    assert done.returncode == 2


def test_what_share_takes() -> None:
    assert parse_share("a=/x") == ("a", "/x", False, 0, "")
    assert parse_share("a=/x:ro") == ("a", "/x", True, 0, "")
    assert parse_share("a=/x:ro:rw") == ("a", "/x:ro", False, 0, "")
    assert parse_share("a=/x=y:z") == ("a", "/x=y:z", False, 0, "")
    assert parse_share("a=/x:quota=2M") == ("a", "/x", False, 2 << 20, "")
    assert parse_share("a=/x:ro:rw:quota=2M") == ("a", "/x:ro", False, 2 << 20, "")
    assert parse_share("a=/x:ro:quota=2M:rw") == ("a", "/x:ro", False, 2 << 20, "")
    assert parse_share("a=/x:policy=p.toml:ro") == ("a", "/x", True, 0, "p.toml")
    assert parse_share("a=/x:quota=2M:policy=g.py:Guard") == ("a", "/x", False, 2 << 20, "g.py:Guard")
    for text in ("a=/x:ro:quota=2M", "a=/x:quota=2M:ro", "a=/x:quota=", "a=/x:quota=1K"):
        with pytest.raises(ValueError, match=r"read-only|K, M, G or T|1M or more"):
            parse_share(text)


class TestASingleFile:
    @pytest.fixture
    def guest(self, tmp_path: Path) -> Iterator[Session]:
        (tmp_path / "conf").write_text("setting")
        (tmp_path / "secret").write_text("secret")
        (tmp_path / "deep").mkdir()
        with (
            serving(tmp_path / "run", [f"f={tmp_path}/conf"]) as daemon,
            daemon.connect("f") as device,
        ):
            yield Session(device)

    def test_it_is_all_there_is(self, guest: Session, tmp_path: Path) -> None:
        tree = Tree(guest)
        assert tree.listdir("/") == ["conf"]
        assert tree.read_file("/conf") == b"setting"
        for name in ("secret", "deep", "run", "con", "conf2"):
            with pytest.raises(FileNotFoundError):
                tree.stat("/" + name)

    def test_it_can_be_written_and_its_attributes_changed(self, guest: Session, tmp_path: Path) -> None:
        tree = Tree(guest)
        tree.write_file("/conf", b"other")
        tree.chmod("/conf", 0o600)
        assert (tmp_path / "conf").read_text() == "other"
        assert (tmp_path / "conf").stat().st_mode & 0o777 == 0o600

    def test_nothing_else_can_be_made_removed_or_changed(self, guest: Session, tmp_path: Path) -> None:
        node = guest.lookup(1, "conf").nodeid
        before = (tmp_path.stat().st_mode, sorted(os.listdir(tmp_path)))
        for act in (
            lambda: guest.create(1, "conf2"),
            lambda: guest.create(1, "conf"),
            lambda: guest.mkdir(1, "d"),
            lambda: guest.mknod(1, "n", 0o100600),
            lambda: guest.symlink(1, "s", "x"),
            lambda: guest.link(node, 1, "l"),
            lambda: guest.unlink(1, "conf"),
            lambda: guest.rmdir(1, "deep"),
            lambda: guest.rename(1, "conf", 1, "x"),
            lambda: guest.rename(1, "secret", 1, "x", 0),
            lambda: guest.rename(node, "secret", 1, "conf"),
            lambda: guest.tmpfile(1),
            lambda: guest.setattr(1, mode=0o777),
            lambda: guest.setxattr(1, "user.x", b"1"),
        ):
            with pytest.raises(OSError) as refused:
                act()
            assert refused.value.errno in (errno.EPERM, errno.EOPNOTSUPP)
        assert (tmp_path.stat().st_mode, sorted(os.listdir(tmp_path))) == before

    def test_its_directory_is_listed_without_the_others_by_whatever_node_it_is_asked_for(
        self, guest: Session
    ) -> None:
        node = guest.lookup(1, "conf").nodeid
        fh = guest.opendir(1).fh
        assert {entry.name for entry in guest.readdir(node, fh, 0, 4096)} == {b".", b"..", b"conf"}
        with pytest.raises(OSError) as refused:
            guest.readdirplus(node, fh, 0, 4096)
        assert refused.value.errno == errno.ENOSYS
        assert not guest.has("DO_READDIRPLUS")

    def test_it_is_followed_when_the_host_replaces_it(self, guest: Session, tmp_path: Path) -> None:
        (tmp_path / "next").write_text("replaced")
        (tmp_path / "next").rename(tmp_path / "conf")
        assert Tree(guest).read_file("/conf") == b"replaced"

    @pytest.mark.parametrize("instead", ["directory", "link"])
    def test_nothing_but_a_file_is_shown_under_its_name(
        self, guest: Session, tmp_path: Path, instead: str
    ) -> None:
        (tmp_path / "conf").unlink()
        if instead == "directory":
            (tmp_path / "deep").rename(tmp_path / "conf")
        else:
            (tmp_path / "conf").symlink_to("secret")
        with pytest.raises(FileNotFoundError):
            guest.lookup(1, "conf")


def test_a_file_whose_reader_need_not_open_it_shows_only_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("contents")
    (tmp_path / "other").write_text("secret")
    with (
        serving(tmp_path / "run", [f"file={tmp_path}/file:ro"], "--cache", "always") as daemon,
        daemon.connect("file") as device,
    ):
        session = Session(device)
        tree = Tree(session)
        assert session.has("NO_OPEN_SUPPORT") and session.has("NO_OPENDIR_SUPPORT")
        assert tree.listdir() == ["file"] and tree.read_file("file") == b"contents"
        with pytest.raises(IsADirectoryError):
            session.read(1, 0, 0, 100)

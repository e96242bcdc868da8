# SPDX-License-Identifier: Apache-2.0
"""A policy that is read again while a guest works: what holds for whom, from when on."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_many_shares import Daemon, serving

import devices
from sharing import ROOT, failure
from virtiofs.cli.shares import parse_share
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.fs.policy.rules import Policy

NAMES = [f"{kind}{i}" for i in range(50) for kind in ("even", "odd")]
HIDES = {kind: f'hide = ["{kind}*"]\n' for kind in ("even", "odd")}
# A function that answers when a byte comes through a pipe that its class opened.
WAITING = """
import os
import virtiofs

class Guard(virtiofs.Policy):
    patience = 60.0
    keep_answers = 0.0

    def __init__(self):
        self.pipe = os.open(os.environ["ANSWERS"], os.O_RDWR)

    def ask(self, path):
        os.read(self.pipe, 1)
        return "allow"
"""
ASKING = 'ask = ["/asked*"]\nask-with = "guard.py:Guard"\n'


class Ruled:
    """A daemon with two shares, a and b, of one policy each, and the file of a's."""

    def __init__(self, daemon: Daemon, place: Path):
        self.daemon = daemon
        self.place = place
        self.policy = place / "a.toml"

    def say(self, rules: str, tag: str = "a") -> list[str]:
        """Put other rules in force."""
        (self.place / f"{tag}.toml").write_text(rules)
        return self.daemon.ask("reload-policy", tag=tag)  # type: ignore[no-any-return]

    def log(self) -> str:
        return (self.daemon.place / "log").read_text()


@pytest.fixture
def ruled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ruled]:
    os.mkfifo(tmp_path / "answers")
    monkeypatch.setenv("ANSWERS", str(tmp_path / "answers"))
    (tmp_path / "guard.py").write_text(WAITING)
    for tag in ("a", "b"):
        (tmp_path / tag / "d").mkdir(parents=True)
        for name in (*NAMES, "d/inside", "asked", "asked too"):
            (tmp_path / tag / name).write_text(name)
    (tmp_path / "a.toml").write_text(ASKING)
    (tmp_path / "b.toml").write_text("")
    with serving(
        tmp_path / "run", [f"{tag}={tmp_path}/{tag}:policy={tmp_path}/{tag}.toml" for tag in ("a", "b")]
    ) as daemon:
        yield Ruled(daemon, tmp_path)
        assert daemon.process.poll() is None


def test_other_rules_hold_at_once_for_what_the_guest_knows(ruled: Ruled) -> None:
    with ruled.daemon.connect("a") as device:
        session = Session(device)
        tree = Tree(session)
        known = session.lookup(ROOT, "even1").nodeid
        other = session.lookup(ROOT, "odd1").nodeid
        inside = session.lookup(session.lookup(ROOT, "d").nodeid, "inside").nodeid
        directory = session.lookup(ROOT, "d").nodeid
        handle = session.open(known).fh
        assert ruled.say(
            ASKING + HIDES["even"] + 'read-only = ["/d/"]\n[[owner]]\npatterns = ["odd1"]\nuid = 33\n'
        ) == ["a"]
        assert failure(session.getattr, known) == errno.ESTALE
        assert failure(session.lookup, ROOT, "even1") == errno.ENOENT
        assert session.read(known, handle, 0, 100) == b"even1"  # it was opened when it could be
        assert session.getattr(known, handle).size == 5
        assert failure(session.getattr, known, session.open(other).fh) == errno.ESTALE
        assert session.getattr(other).uid == 33
        assert failure(session.open, inside, os.O_RDWR) == errno.EROFS
        assert failure(session.unlink, directory, "inside") == errno.EROFS
        assert session.read(inside, session.open(inside).fh, 0, 100) == b"d/inside"
        assert not any(name.startswith("even") for name in tree.listdir())
        ruled.say(ASKING)
        assert session.getattr(known).size == 5
        assert session.getattr(other).uid == 0
        session.open(inside, os.O_RDWR)
        assert set(NAMES) <= set(tree.listdir())


def test_a_file_without_a_name_is_judged_by_its_last_one(ruled: Ruled) -> None:
    with ruled.daemon.connect("a") as device:
        session = Session(device)
        held = {}
        for name in ("even1", "odd1"):
            node = session.lookup(ROOT, name).nodeid
            held[name] = node, session.open(node, os.O_RDWR).fh
            session.unlink(ROOT, name)
        ruled.say(ASKING + 'deny = ["odd*"]\n')
        for name, (node, handle) in held.items():
            assert session.getattr(node, handle).nlink == 0
            assert session.read(node, handle, 0, 100) == name.encode()
        session.open(held["even1"][0])
        assert failure(session.open, held["odd1"][0]) == errno.EACCES


def test_a_file_that_the_host_moved_is_looked_up_again(ruled: Ruled) -> None:
    with ruled.daemon.connect("a") as device:
        session = Session(device)
        moved = session.lookup(ROOT, "even1").nodeid
        out = session.lookup(ROOT, "odd1").nodeid
        os.rename(ruled.place / "a/even1", ruled.place / "a/d/kept")
        os.rename(ruled.place / "a/odd1", ruled.place / "gone")
        ruled.say(ASKING + 'read-only = ["/d/kept"]\n')
        assert failure(session.open, moved, os.O_RDWR) == errno.EROFS
        assert failure(session.getattr, out) == errno.ESTALE


def test_the_next_guest_has_the_rules_of_the_last_reading(ruled: Ruled) -> None:
    ruled.say(ASKING + HIDES["even"])
    with ruled.daemon.connect("a") as device:
        assert "even1" not in Tree(Session(device)).listdir()
    with ruled.daemon.connect("a") as device:
        assert "even1" not in Tree(Session(device)).listdir()
    with ruled.daemon.connect("b") as device:  # whose rules are its own
        assert "even1" in Tree(Session(device)).listdir()


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ('hide = ["even*"]\ndeny = [\n', r"a.toml: .*at end of document"),
        ('hide = ["even*"]\nhidden = ["x"]\n', r"a.toml: line 2: there is no key 'hidden'"),
        ('hide = ["even*"]\n\ndeny = ["ok",\n "a[b"]\n', r"a.toml: line 4: the pattern 'a\[b' can not match"),
        ('hide = ["even*"]\n[[owner]]\npatterns = []\nuid = -7\n', r"a.toml: line 4: an owner is a number"),
        ('hide = ["even*"]\nscan = 3\n', r"a.toml: line 2: scan is true or false"),
        ('hide = "even*"\n', r"a.toml: line 1: hide is a list of strings"),
        ('hide = ["even*"]\n', r"a.toml: who is asked is loaded at the start only"),
        (
            'ask-with = "guard.py:Other"\nhide = ["even*"]\n',
            r"a.toml: line 1: who is asked is loaded at the start",
        ),
        (ASKING + 'hide = ["even*"]\n[inode]\nhide = ["not there"]\n', r"names not there, which is no file"),
    ],
)
def test_a_file_that_can_not_be_used_leaves_the_old_rules(ruled: Ruled, rules: str, reason: str) -> None:
    tag = "a" if "who is asked" in reason or "ask" in rules else "b"
    with ruled.daemon.connect(tag) as device:
        session = Session(device)
        session.lookup(ROOT, "even1")
        (ruled.place / f"{tag}.toml").write_text(rules)
        assert re.search(
            reason.replace("a.toml", f"{tag}.toml"), ruled.daemon.refusal("reload-policy", tag=tag)
        )
        assert "even1" in Tree(session).listdir()
    with ruled.daemon.connect(tag) as device:
        assert "even1" in Tree(Session(device)).listdir()


def test_what_one_share_refuses_holds_in_none(ruled: Ruled) -> None:
    ruled.policy.write_text(ASKING + HIDES["even"])
    (ruled.place / "b.toml").write_text("hide = [")
    assert "b.toml" in ruled.daemon.refusal("reload-policy")
    (ruled.place / "b.toml").write_text('[inode]\nhide = ["none"]')
    assert "none" in ruled.daemon.refusal("reload-policy")
    with ruled.daemon.connect("a") as device:
        assert "even1" in Tree(Session(device)).listdir()
    (ruled.place / "b.toml").write_text('[inode]\nhide = ["odd1"]')
    assert ruled.daemon.ask("reload-policy") == ["a", "b"]
    with ruled.daemon.connect("a") as a, ruled.daemon.connect("b") as b:
        assert "even1" not in Tree(Session(a)).listdir()
        assert "odd1" not in Tree(Session(b)).listdir()


def test_rules_that_look_through_the_tree_do_so_again(ruled: Ruled) -> None:
    os.link(ruled.place / "a/d/inside", ruled.place / "a/plain")
    with ruled.daemon.connect("a") as device:
        session = Session(device)
        node = session.lookup(ROOT, "plain").nodeid
        ruled.say(ASKING + 'hide = ["/d/inside"]\nscan = true\n')
        assert failure(session.getattr, node) == errno.ESTALE
        assert failure(session.lookup, ROOT, "plain") == errno.ENOENT


def test_a_request_that_began_before_ends_by_the_rules_it_began_with(ruled: Ruled) -> None:
    with ruled.daemon.connect("a") as device:
        session = Session(device)
        node = session.lookup(ROOT, "asked").nodeid

        def asked() -> int:
            return int(ruled.daemon.share("a")["filesystem"]["policy_asked"])

        begun = session.begin("open", node, flags=os.O_RDONLY)
        assert devices.wait_until(lambda: asked() == 1)
        ruled.say('deny = ["/asked*"]\n' + ASKING)
        assert failure(session.open, node) == errno.EACCES
        with open(ruled.place / "answers", "wb", buffering=0) as answers:
            answers.write(b"x")
        assert session.finish(begun, "open").fh
        assert failure(session.open, node) == errno.EACCES


def test_there_is_room_for_a_few_policies_that_are_still_worked_by(ruled: Ruled) -> None:
    with ruled.daemon.connect("a") as device:
        session = Session(device)
        node = session.lookup(ROOT, "asked").nodeid
        begun = []
        for number in range(3):
            begun.append(session.begin("open", node, flags=os.O_RDONLY))
            assert devices.wait_until(
                lambda: ruled.daemon.share("a")["filesystem"]["policy_asked"] == 1, 20.0
            ), number
            ruled.say(ASKING + f"keep-answers = {number}\n")
        begun.append(session.begin("open", node, flags=os.O_RDONLY))
        assert devices.wait_until(lambda: ruled.daemon.share("a")["filesystem"]["policy_asked"] == 1, 20.0)
        ruled.policy.write_text(ASKING + HIDES["even"])
        (ruled.place / "b.toml").write_text(HIDES["even"])
        assert "not done yet" in ruled.daemon.refusal("reload-policy")
        assert "even1" in Tree(session).listdir()
        with ruled.daemon.connect("b") as other:
            assert "even1" in Tree(Session(other)).listdir()
        with open(ruled.place / "answers", "wb", buffering=0) as answers:
            answers.write(b"xxxx")
        for one in begun:
            assert session.finish(one, "open").fh
        assert ruled.say(ASKING + HIDES["even"]) == ["a"]
        assert "even1" not in Tree(session).listdir()


def test_a_listing_is_of_one_policy_whole(ruled: Ruled) -> None:
    """A READDIRPLUS of a hundred names, while their rules change to and fro: never some of each."""
    ending = threading.Event()
    said = []

    def change() -> None:
        while not ending.is_set():
            for kind in HIDES:
                ruled.say(ASKING + HIDES[kind])
                said.append(kind)

    ruled.say(ASKING + HIDES["even"])
    changing = threading.Thread(target=change)
    with ruled.daemon.connect("a") as device:
        session = Session(device)
        handle = session.opendir(ROOT).fh
        changing.start()
        try:
            seen = set()
            while len(said) < 60 or len(seen) < 2:
                kinds = {
                    entry.name.rstrip(b"0123456789")
                    for entry in session.readdirplus(ROOT, handle, 0, 65536)
                    if entry.name.startswith((b"even", b"odd"))
                }
                assert kinds in ({b"even"}, {b"odd"})
                seen |= kinds
        finally:
            ending.set()
            changing.join()


def test_sighup_reads_policies_again(ruled: Ruled) -> None:
    with ruled.daemon.connect("a") as device:
        tree = Tree(Session(device))
        ruled.policy.write_text(ASKING + HIDES["even"])
        ruled.daemon.process.send_signal(signal.SIGHUP)
        assert devices.wait_until(lambda: "even1" not in tree.listdir())
        ruled.policy.write_text("hide = [\n")
        ruled.daemon.process.send_signal(signal.SIGHUP)
        assert devices.wait_until(lambda: "what was in force still is" in ruled.log())
        assert "even1" not in tree.listdir() and "odd1" in tree.listdir()


def test_a_daemon_ends_with_its_terminal_whatever_its_policy(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "p.toml").write_text("")
    pid, terminal = pty.fork()
    if pid == 0:
        words = [f"{tmp_path}/share", "--socket", f"{tmp_path}/s", "--policy", f"{tmp_path}/p.toml"]
        os.execv(sys.executable, [sys.executable, "-m", "virtiofs", "serve", *words, "--ready-fd", "1"])
    assert b"READY" in os.read(terminal, 100)
    os.close(terminal)  # hangs up
    assert os.waitpid(pid, 0)[1] == 0


def test_without_a_policy_there_is_nothing_to_read_again(tmp_path: Path) -> None:
    for tag in ("a", "b"):
        (tmp_path / tag).mkdir()
    (tmp_path / "p.toml").write_text("")
    shares = [f"a={tmp_path}/a", f"b={tmp_path}/b:policy={tmp_path}/p.toml"]
    with serving(tmp_path / "run", shares) as daemon:
        assert "a has no policy" in daemon.refusal("reload-policy", tag="a")
        assert daemon.ask("reload-policy") == ["b"]
    with serving(tmp_path / "run", shares[:1]) as daemon:
        assert "no share here has a policy" in daemon.refusal("reload-policy")


def test_shares_of_one_file_go_together_and_new_ones_can_have_one(tmp_path: Path) -> None:
    for tag in ("a", "b", "c"):
        (tmp_path / tag).mkdir()
        (tmp_path / tag / "x").touch()
    (tmp_path / "p.toml").write_text("")
    of_all = ["--policy", str(tmp_path / "p.toml")]
    with serving(tmp_path / "run", [f"a={tmp_path}/a", f"b={tmp_path}/b"], *of_all) as daemon:
        control = str(daemon.place / "control")
        (tmp_path / "c.toml").write_text('hide = ["x"]')
        words = [sys.executable, "-m", "virtiofs", "ctl", control]
        added = [*words, "add", "c=c:policy=c.toml"]
        done = subprocess.run(added, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.stdout == f"{daemon.place}/c.sock\n", done.stderr
        (tmp_path / "p.toml").write_text('hide = ["x"]')
        done = subprocess.run([*words, "reload-policy", "a"], check=True, capture_output=True, text=True)
        assert done.stdout == "a\nb\n"
        for tag in ("a", "b", "c"):
            with daemon.connect(tag) as device:
                assert Tree(Session(device)).listdir() == []
        assert daemon.share("c")["policy"] == str(tmp_path / "c.toml")


def test_a_class_is_not_loaded_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "mine.py").write_text('import virtiofs\nclass Mine(virtiofs.Policy):\n    hide = ["x"]\n')
    share = f"a={tmp_path}/a:policy={tmp_path}/mine.py:Mine"
    assert parse_share(share).policy == f"{tmp_path}/mine.py:Mine"
    with serving(tmp_path / "run", [share]) as daemon:
        assert "is a class, which is loaded at the start only" in daemon.refusal("reload-policy")


def test_what_comes_to_a_worker_is_what_was_sent() -> None:
    from virtiofs.fs.policy.reloading import decode, encode
    from virtiofs.fs.policy.rules import FILE_KEYS, KEYS, Owner, patterns_of

    class Full(Policy):
        hide = ["a", "\udcff*"]
        deny = ["b"]
        read_only = ["c"]
        ask_about = ["d"]
        owners = (Owner(("e",), 1), Owner(["f"], None, 2))
        hidden_files = ("g",)
        scan = True
        patience = 7

        def ask(self, path: str) -> str:
            return path

    sent = Full()
    got = decode(encode(sent), sent)
    assert patterns_of(got) == patterns_of(sent)
    for name in (*KEYS.values(), *FILE_KEYS.values()):
        found, expected = getattr(got, name), getattr(sent, name)
        assert (list(found) == list(expected)) if isinstance(found, list) else found == expected
    assert [tuple(owner) for owner in got.owners] == [(["e"], 1, None), (["f"], None, 2)]
    assert decode(encode(sent), got).ask("x") == "x"


GREEDY = """
import virtiofs

class Guard(virtiofs.Policy):
    def ask(self, path):
        sum(range(10**13))  # lets go of the interpreter only at the end
        return "allow"
"""


def test_what_another_policy_allows_needs_no_interpreter(tmp_path: Path) -> None:
    (tmp_path / "guard.py").write_text(GREEDY)
    (tmp_path / "p.toml").write_text(ASKING)
    (tmp_path / "a/d").mkdir(parents=True)
    for name in ("asked", "plain", "d/inside", "hidden"):
        (tmp_path / "a" / name).write_text(name)
    share = f"a={tmp_path}/a:policy={tmp_path}/p.toml"
    with serving(tmp_path / "run", [share]) as daemon, daemon.connect("a") as device:
        session = Session(device)
        known = {name: session.lookup(ROOT, name).nodeid for name in ("asked", "plain", "d", "hidden")}
        inside = session.lookup(known["d"], "inside").nodeid
        (tmp_path / "p.toml").write_text(ASKING + 'hide = ["hidden"]\n')
        daemon.ask("reload-policy")
        worker = devices.family_of(daemon.share("a")["worker"])[-1]
        session.begin("open", known["asked"], flags=os.O_RDONLY)
        tree = Tree(session)
        for _ in range(50):
            assert (
                session.getattr(known["plain"]).size == 5
            )  # first by what is found out anew, then by what is known
            assert session.read(inside, session.open(inside).fh, 0, 10) == b"d/inside"
            assert failure(session.getattr, known["hidden"]) == errno.ESTALE
            tree.write_file("new", b"x")
            tree.unlink("new")
            assert set(tree.listdir()) == {"asked", "d", "plain"}
        os.kill(worker, signal.SIGKILL)  # else it would be given time to end
        daemon.process.wait(20)

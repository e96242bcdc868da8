# SPDX-License-Identifier: Apache-2.0
"""A policy: what a guest sees and may do of a directory, by rules."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pathspec import PathSpec

import devices
from sharing import ROOT, failure, refusal
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.fs.policy.matcher import Matcher
from virtiofs.fs.policy.patterns import parse
from virtiofs.fs.policy.rules import Policy, explain, from_toml
from virtiofs.fuse import abi
from virtiofs.fuse.abi import OPERATIONS

EXAMPLES = Path(__file__).parents[2] / "examples"
SETFLAGS = 0x40086602
EXCHANGE = 2
RULES = """
hide = ["*.key", "/secret/", "/home/*/.ssh", "only-as-directory/"]
deny = ["/denied", "/closed/"]
read-only = ["/conf/*.ini", "*.ro"]
[[owner]]
patterns = ["/www/"]
uid = 33
gid = 34
[[owner]]
patterns = ["/www/ann/"]
uid = 1001
"""


class Policed(NamedTuple):
    session: Session
    tree: Tree
    host: Path
    running: devices.RunningDevice


@contextlib.contextmanager
def policed(rules: str, *options: str, fill: object = lambda host: None) -> Iterator[Policed]:
    """Serve a directory by a policy; `fill` makes its files before."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-policy-") as place:
        host, policy = Path(place) / "share", Path(place) / "policy.toml"
        host.mkdir()
        fill(host)  # type: ignore[operator]
        policy.write_text(rules)
        with devices.start_ours(host, ["--policy", str(policy), *options]) as running:
            with Device.connect(running.socket) as device:
                session = Session(device)
                yield Policed(session, Tree(session), host, running)
            assert running.alive, "the daemon died:\n" + "\n".join(running.log)


def fill(host: Path) -> None:
    for name in ("secret", "home/ann/.ssh", "conf", "www/ann", "closed", "d", "only-as-directory"):
        (host / name).mkdir(parents=True)
    for name in ("a.key", "secret/x", "home/ann/.ssh/id", "denied", "closed/f", "conf/a.ini", "conf/b", "f.ro",
                 "www/w", "www/ann/p", "plain", "d/f", "d/only-as-directory"):  # fmt: skip
        (host / name).write_text(name)
    (host / "deep.key").mkdir()
    os.symlink("plain", host / "link.ro")


@pytest.fixture(scope="module")
def share() -> Iterator[Policed]:
    with policed(RULES, fill=fill) as share:
        yield share


def state(place: Path) -> list[object]:
    """All that can be told of a tree, but the times of access."""
    found: list[object] = []
    for path in (place, *sorted(place.rglob("*"))):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found.append((path, status.st_mode, status.st_uid, status.st_mtime_ns, status.st_ctime_ns, content))
        found.append(os.listxattr(path, follow_symlinks=False))
    return found


# --- patterns ---

NAMES = st.sampled_from(["a", "b", "ab", "a.o", "b.o", "abc", "x y", "[a]"])
PIECES = st.sampled_from(
    ["a", "b", "*", "**", "?", "*.o", "[ab]", "[!a]*", "a*", "*b", "ab", "a?c", "[[:alpha:]]"]
)
PATTERNS = st.builds(
    lambda negated, front, parts, back: negated + front + "/".join(parts) + back,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(PIECES, min_size=1, max_size=4),
    st.sampled_from(["", "", "/"]),
)


def in_list(patterns: list[str], parts: list[str], directory: bool) -> bool:
    """The model: from the top down, the last pattern that matches decides, and what is in the list stays in it."""
    for depth in range(1, len(parts) + 1):
        whole = depth == len(parts)
        slash = "/" if directory or not whole else ""
        decided = False
        for text in patterns:
            # About this path alone, as what is above it was not in the list: by name, or as deep as the pattern is.
            pattern = text.removeprefix("!")
            anchored = "/" in pattern.rstrip("/")
            if anchored and len(pattern.strip("/").split("/")) != depth:
                continue
            path = "/".join(parts[:depth]) if anchored else parts[depth - 1]
            if PathSpec.from_lines("gitignore", [pattern]).match_file(path + slash):
                decided = not text.startswith("!")
        if decided:
            return True
    return False


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.lists(PATTERNS.filter(lambda text: "[[" not in text and "**" not in text), min_size=1, max_size=4),
    st.lists(NAMES, min_size=1, max_size=4),
    st.booleans(),
)
def test_patterns_mean_what_pathspec_takes_them_for(patterns, parts, directory):
    matcher = Matcher([[parse(text) for text in patterns]])
    assert bool(matcher.verdict("/".join(parts).encode(), directory)) == in_list(patterns, parts, directory)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with files and directories of all names, three deep."""
    place = tmp_path_factory.mktemp("repository")
    if subprocess.run(["sh", "-c", "command -v git"], capture_output=True).returncode:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    names = ["a", "b", "ab", "a.o", "x y", "abc"]
    for parts in itertools.product(names[:3], names[:4]):
        directory = place.joinpath(*(f"{part}" for part in parts))
        directory.mkdir(parents=True)
        for name in names:
            (directory / name).touch()
    return place


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(PATTERNS, min_size=1, max_size=5))
def test_patterns_mean_what_git_takes_them_for(repository, patterns):
    paths = [path for path in repository.rglob("*") if ".git" not in path.parts]
    relative = {str(path.relative_to(repository)): path.is_dir() for path in paths}
    (repository / ".git/info/exclude").write_text("\n".join(patterns) + "\n")
    command = ["git", "-C", str(repository), "check-ignore", "--no-index", "--stdin", "-z"]
    answer = subprocess.run(command, input="\0".join(relative).encode(), capture_output=True)
    matcher = Matcher([[parse(text) for text in patterns]])
    ours = {path for path, directory in relative.items() if matcher.verdict(path.encode(), directory)}
    assert ours == set(filter(None, answer.stdout.decode().split("\0")))


@pytest.mark.parametrize("text", ["a//b", "a/../b", "[a", "a\\", "[[:none:]]", "/"])
def test_a_pattern_that_could_never_match_is_refused(text):
    with pytest.raises(ValueError, match="pattern"):
        parse(text)


def test_directories_where_the_same_holds_have_the_same_state():
    matcher = Matcher([[parse(text) for text in ("*.o", "/src/*.c", "doc/**/draft")]])
    for path in ("a/b/c/d", "e/f/g", "src/x/y", "src/z/w"):
        matcher.verdict(path.encode(), False)
    assert matcher.states == 3, "of the root, of /src, and of all others"


def test_a_policy_explains_itself():
    policy = from_toml(RULES)
    assert explain(policy, "home/ann/.ssh/id", False) == [("hide", "/home/*/.ssh")]
    assert explain(policy, "conf/a.ini", False) == [("read-only", "/conf/*.ini")]
    assert explain(policy, "www/ann/p", False) == [
        ("owner uid 33 gid 34", "/www/"),
        ("owner uid 1001", "/www/ann/"),
    ]
    assert explain(policy, "plain", False) == []


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ("hode = []", "no key 'hode'"),
        ('hide = "x"', "list of strings"),
        ('ask = ["x"]', "who is to be asked"),
        ('[[owner]]\npatterns = ["x"]', "uid, a gid"),
        ('[inode]\nhide = ["missing"]', "which is no file"),
        ('hide = ["[x"]', "has no ]"),
        ("hide = [", "policy.toml"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_a_reason(rules, reason, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(rules)
    assert reason in refusal("--policy", str(policy))


def test_a_policy_in_what_it_is_about_is_refused(tmp_path):
    (tmp_path / "policy.toml").write_text("")
    starting = devices.start_ours(tmp_path, ["--policy", str(tmp_path / "policy.toml")])
    with pytest.raises(RuntimeError, match="keep it outside"), starting:
        pass


# --- hidden names ---


def test_a_hidden_name_is_not_listed(share):
    assert set(share.tree.listdir()) == {
        "home",
        "conf",
        "www",
        "closed",
        "denied",
        "f.ro",
        "plain",
        "d",
        "link.ro",
    }
    assert share.tree.listdir("home/ann") == []
    assert set(share.tree.listdir("d")) == {"f", "only-as-directory"}
    fh = share.session.opendir(ROOT).fh
    plain = {entry.name for entry in share.session.readdir(ROOT, fh, 0, 65536)}
    assert b"a.key" not in plain and b"plain" in plain


def test_a_listing_in_small_pieces_goes_on_past_hidden_names():
    def many(host: Path) -> None:
        for i in range(300):
            (host / f"{i}.key").touch()
        (host / "last").touch()

    with policed(RULES, fill=many) as share:
        fh = share.session.opendir(ROOT).fh
        for read in (share.session.readdir, share.session.readdirplus):
            found, cookie = [], 0
            while entries := read(ROOT, fh, cookie, 512):
                found += [entry.name for entry in entries]
                cookie = entries[-1].cookie
            assert sorted(found) == [b".", b"..", b"last"]


HIDDEN = ("a.key", "secret", "deep.key", "only-as-directory", "missing.key")


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if abi.NAME in one.names], ids=lambda one: one.name
)
def test_no_operation_reaches_a_hidden_name(share, operation, name):
    """Whatever takes a name gets the same answer for one that is hidden, be it there or not, and changes nothing."""
    session, before = share.session, state(share.host)
    node = session.lookup(ROOT, "plain").nodeid
    values = {"newdir": ROOT, "oldnodeid": node, "mode": 0o644, "flags": 0}
    labels = {label for _, label, _ in operation.args.fields} if operation.args else set()
    structure = (
        operation.args.pack(**{k: v for k, v in values.items() if k in labels}) if operation.args else b""
    )
    makes = operation.name in ("symlink", "mknod", "mkdir", "link", "create")
    room = operation.reply.size if operation.reply else 0
    for names in ([name, "other"], ["plain", name]) if len(operation.names) == 2 else ([name],):
        if operation.name == "symlink" and names[0] != name:
            continue
        body = structure + b"".join(one.encode() + b"\0" for one in names)
        expected = errno.EACCES if makes or names[0] == "plain" else errno.ENOENT
        assert session.device.request(operation.name, ROOT, body, room).error == -expected
    assert state(share.host) == before


def test_a_hidden_name_of_directories_only_can_be_a_file(share):
    assert share.tree.read_file("d/only-as-directory") == b"d/only-as-directory"


def test_a_file_is_hidden_under_its_other_names_once_it_was_met():
    def linked(host: Path) -> None:
        (host / "a.key").write_text("k")
        os.link(host / "a.key", host / "copy")
        (host / "plain").touch()

    with policed(RULES, fill=linked) as share:
        node = share.session.lookup(ROOT, "copy").nodeid
        assert share.tree.read_file("copy") == b"k", "nobody has met its hidden name"
        assert failure(share.tree.stat, "a.key") == errno.ENOENT
        for name in ("copy", "a.key"):
            assert failure(share.tree.stat, name) == errno.ENOENT
        assert failure(share.session.getattr, node) == errno.ESTALE
        assert failure(share.session.open, node) == errno.ESTALE
        assert share.tree.listdir() == ["plain"]
        assert failure(share.tree.rename, "plain", "copy") == errno.EACCES
        assert failure(share.tree.unlink, "copy") == errno.ENOENT
        assert (share.host / "a.key").stat().st_nlink == 2


@pytest.mark.parametrize("extra", ["scan = true\n", '[inode]\nhide = ["secret/x"]\n'])
def test_a_file_can_be_hidden_under_all_names_from_the_start(extra):
    def linked(host: Path) -> None:
        (host / "secret").mkdir()
        (host / "secret/x").write_text("k")
        os.link(host / "secret/x", host / "copy")

    with policed('hide = ["/secret/"]\n' + extra, fill=linked) as share:
        assert share.tree.listdir() == []
        assert failure(share.tree.stat, "copy") == errno.ENOENT
        assert failure(share.tree.open, "copy", os.O_RDWR | os.O_CREAT | os.O_TRUNC) == errno.EACCES
        assert (share.host / "copy").read_text() == "k"


def test_no_rename_of_a_directory_brings_hidden_names_to_light(share):
    tree = share.tree
    for old, new in (("home", "h"), ("home/ann", "ann"), ("conf", "c"), ("d", "www/d")):
        assert failure(tree.rename, old, new) == errno.EXDEV
    assert failure(tree.rename, "d", "home", EXCHANGE) == errno.EXDEV
    tree.mkdir("moves")
    tree.rename("moves", "d/moved")
    tree.rmdir("d/moved")


def test_a_directory_that_the_host_moves_has_the_rules_of_its_new_place():
    def trees(host: Path) -> None:
        (host / "free").mkdir()
        (host / "home/ann").mkdir(parents=True)
        (host / "free/.ssh").touch()

    with policed(RULES, fill=trees) as share:
        node = share.session.lookup(ROOT, "free").nodeid
        assert share.session.lookup(node, ".ssh")
        os.rename(share.host / "free", share.host / "home/eve")
        gone = lambda: failure(share.session.lookup, node, ".ssh") == errno.ENOENT  # noqa: E731
        assert devices.wait_until(gone, 20)
        os.rename(share.host / "home/eve", share.host.parent / "outside")
        stale = lambda: failure(share.session.lookup, node, ".ssh") == errno.ESTALE  # noqa: E731
        assert devices.wait_until(stale, 20) or os.geteuid() != 0


def test_a_node_id_that_was_never_let_through_is_stale(share):
    for node in (1 << 32 | 1, 999, 5 << 32 | 3):
        assert failure(share.session.getattr, node) == errno.ESTALE


# --- denied ---


def test_a_denied_file_is_seen_and_not_used(share):
    session, before = share.session, state(share.host)
    assert share.tree.stat("denied").st_size == 6
    node = session.lookup(ROOT, "denied").nodeid
    closed = session.lookup(ROOT, "closed").nodeid
    for call, *arguments in (
        (session.open, node),
        (session.open, node, os.O_RDWR),
        (share.tree.chmod, "denied", 0o600),
        (session.getxattr, node, "user.x"),
        (session.listxattr, node),
        (session.setxattr, node, "user.x", b"1"),
        (session.access, node, os.R_OK),
        (session.link, node, ROOT, "other"),
        (session.unlink, ROOT, "denied"),
        (session.rename, ROOT, "denied", ROOT, "other"),
        (session.rename, ROOT, "plain", ROOT, "denied"),
        (session.opendir, closed),
        (session.lookup, closed, "f"),
        (session.create, closed, "new"),
        (session.rmdir, ROOT, "closed"),
    ):
        assert failure(call, *arguments) == errno.EACCES, (call, arguments)
    assert state(share.host) == before


# --- read-only ---


def test_a_read_only_file_stays_as_it_is(share):
    session, tree = share.session, share.tree
    conf = session.lookup(ROOT, "conf").nodeid
    node = session.lookup(conf, "a.ini").nodeid
    plain = session.lookup(ROOT, "plain").nodeid
    before = state(share.host)
    handle = session.open(node).fh
    assert session.read(node, handle, 0, 100) == b"conf/a.ini"
    for call, *arguments in (
        (session.open, node, os.O_RDWR),
        (session.open, node, os.O_WRONLY),
        (session.open, node, os.O_RDONLY | os.O_TRUNC),
        (session.setxattr, node, "user.x", b"1"),
        (session.removexattr, node, "user.x"),
        (session.access, node, os.W_OK),
        (session.link, node, ROOT, "other"),
        (session.unlink, conf, "a.ini"),
        (session.rename, conf, "a.ini", ROOT, "other"),
        (session.rename, ROOT, "plain", conf, "a.ini"),
        (session.create, conf, "new.ini"),
        (session.mkdir, ROOT, "directory.ro"),
        (session.symlink, ROOT, "new.ro", "x"),
        (session.mknod, ROOT, "node.ro", stat.S_IFREG),
        (session.rename, ROOT, "plain", ROOT, "f.ro", EXCHANGE),
        (tree.truncate, "conf/a.ini", 1),
        (tree.chmod, "conf/a.ini", 0o777),
        (tree.utime, "conf/a.ini"),
    ):
        assert failure(call, *arguments) == errno.EROFS, (call, arguments)
    assert failure(session.write, node, handle, 0, b"evil") == errno.EBADF
    # By a handle of it, in the name of another node.
    assert failure(session.call, "setattr", plain, valid=1 | 64, mode=0o777, fh=handle) == errno.EROFS
    flags = {"fh": handle, "cmd": SETFLAGS, "in_size": 4}
    assert (
        failure(session.call, "ioctl", plain, tail=struct.pack("<I", 0x40), room=64, **flags) == errno.EROFS
    )
    session.release(node, handle)
    assert state(share.host) == before
    session.access(node, os.R_OK)


def test_the_strictest_of_several_names_counts():
    def linked(host: Path) -> None:
        (host / "x.ro").write_text("kept")
        os.link(host / "x.ro", host / "x")

    with policed(RULES, fill=linked) as share:
        assert share.tree.read_file("x.ro") == b"kept"
        assert failure(share.tree.open, "x", os.O_RDWR) == errno.EROFS
        assert failure(share.tree.open, "x", os.O_RDWR | os.O_CREAT | os.O_TRUNC) == errno.EROFS
        body = abi.FUSE_CREATE_IN.pack(flags=os.O_RDWR | os.O_TRUNC, mode=0o644) + b"x\0"
        assert share.session.device.request("create", ROOT, body, 144).error == -errno.EROFS
        assert failure(share.tree.rename, "x", "y") == errno.EROFS
        assert (share.host / "x").read_text() == "kept"


# --- owners ---


def test_an_owner_is_shown_and_not_given(share):
    tree, host = share.tree, (share.host / "www/w").stat()
    assert (tree.stat("www/w").st_uid, tree.stat("www/w").st_gid) == (33, 34)
    assert (tree.stat("www/ann/p").st_uid, tree.stat("www/ann/p").st_gid) == (1001, 34)
    assert tree.stat("plain").st_uid == host.st_uid
    with share.tree.node("www/w") as node:
        assert share.session.statx(node).uid == 33
    tree.chown("www/w", 33, 34)
    assert failure(tree.chown, "www/w", 5, 34) == errno.EPERM
    assert (share.host / "www/w").stat().st_uid == host.st_uid
    www = share.session.lookup(ROOT, "www").nodeid
    fh = share.session.opendir(www).fh
    shown = {entry.name: entry.entry.attr.uid for entry in share.session.readdirplus(www, fh) if entry.entry}
    assert shown == {b"w": 33, b"ann": 1001}


# --- without opening ---


def test_what_is_read_without_being_opened_is_checked_too():
    options = ("--readonly", "--cache", "always")
    with policed(RULES, *options, fill=fill) as share:
        session = share.session
        assert session.has("NO_OPEN_SUPPORT")
        for name, expected in (("denied", errno.EACCES), ("closed", errno.EACCES)):
            node = session.lookup(ROOT, name).nodeid
            body = abi.FUSE_READ_IN.pack(size=4096)
            for operation in ("read", "lseek", "readdir", "readdirplus"):
                args = abi.FUSE_LSEEK_IN.pack(whence=3) if operation == "lseek" else body
                assert session.device.request(operation, node, args, 4096).error == -expected
        names = {entry.name for entry in session.readdir(ROOT, 0, 0, 65536)}
        assert b"plain" in names and b"a.key" not in names


# --- the table ---


def test_every_operation_of_a_share_is_known_to_the_policy():
    """None was taken away for want of a rule: what a share knows, one with a policy knows."""
    with (
        policed("") as share,
        tempfile.TemporaryDirectory() as place,
        devices.start_ours(Path(place)) as running,
        Device.connect(running.socket) as device,
    ):
        plain = Session(device)
        for operation in OPERATIONS:
            if operation.name in ("init", "destroy", "forget", "batch_forget", "interrupt"):
                continue
            body = (operation.args.pack() if operation.args else b"") + b"x\0" * len(operation.names)
            answers = [
                one.device.request(operation.name, 7, body, 4096).error for one in (plain, share.session)
            ]
            assert answers[0] == answers[1] or -errno.ENOSYS not in answers, operation.name


# --- asking ---

ASKING = """
import os, threading, time
import virtiofs

class Guard(virtiofs.Policy):
    ask_about = ["/inbox/*"]
    patience = 0.3
    keep_answers = 1000.0
    calls = 0

    def ask(self, path):
        self.calls += 1
        name = os.path.basename(path)
        if name == "raises":
            raise RuntimeError("no idea")
        if name == "errno":
            raise PermissionError(1, "no")
        if name.startswith("hangs"):
            threading.Event().wait()
        if name == "nonsense":
            return 17
        if name == "count":
            return ("allow" if self.calls % 2 else "deny"), 1000
        return {"reads": "read-only", "refused": "deny"}.get(name, "allow")
"""


@pytest.fixture(scope="module", params=["4", "0"], ids=["pool", "no pool"])
def asking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policed]:
    place = tmp_path_factory.mktemp("asking")
    (place / "guard.py").write_text(ASKING)
    host = place / "share"
    (host / "inbox/sub").mkdir(parents=True)
    (host / "inbox/sub/f").write_text("f")
    for name in ("raises", "errno", "hangs", "nonsense", "reads", "refused", "allowed", "count"):
        (host / "inbox" / name).write_text(name)
    os.symlink("target", host / "inbox/link")
    options = ["--policy", f"{place}/guard.py:Guard", "--thread-pool-size", request.param]
    with devices.start_ours(host, options) as running, Device.connect(running.socket) as device:
        session = Session(device)
        yield Policed(session, Tree(session), host, running)
        assert running.alive, running.log


def test_the_answer_decides(asking):
    tree = asking.tree
    assert tree.read_file("inbox/allowed") == b"allowed"
    tree.write_file("inbox/allowed", b"allowed")
    assert tree.read_file("inbox/reads") == b"reads"
    assert failure(tree.open, "inbox/reads", os.O_RDWR) == errno.EROFS
    assert failure(tree.unlink, "inbox/reads") == errno.EROFS
    assert failure(tree.read_file, "inbox/refused") == errno.EACCES
    assert tree.stat("inbox/refused").st_size == 7
    assert tree.readlink("inbox/link") == "target"
    assert tree.listdir("inbox/sub") == ["f"] and tree.read_file("inbox/sub/f") == b"f"
    tree.write_file("inbox/new", b"new")
    tree.unlink("inbox/new")


def test_an_answer_is_kept(asking):
    node = asking.session.lookup(asking.session.lookup(ROOT, "inbox").nodeid, "count").nodeid
    first = failure(asking.session.open, node)
    assert {failure(asking.session.open, node) for _ in range(20)} == {first}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("raises", errno.EIO), ("nonsense", errno.EIO), ("errno", errno.EPERM), ("hangs", errno.EIO)],
)
def test_a_function_that_goes_wrong_harms_nobody_else(asking, name, expected):
    assert failure(asking.tree.read_file, f"inbox/{name}") == expected
    assert failure(asking.tree.read_file, f"inbox/{name}") == expected
    assert asking.tree.read_file("inbox/allowed") == b"allowed"
    if name != "errno":
        assert devices.wait_until(lambda: any(name in line for line in asking.running.log))


GREEDY = """
import time
import virtiofs

class Guard(virtiofs.Policy):
    ask_about = ["/ask"]

    def ask(self, path):
        sum(range(10**13))  # lets go of the interpreter only at the end
        return "allow"
"""


def test_what_is_allowed_needs_no_interpreter(tmp_path):
    """A function that never lets go of the interpreter: no other request notices."""
    (tmp_path / "guard.py").write_text(GREEDY)
    host = tmp_path / "share"
    host.mkdir()
    for name in ("ask", "plain"):
        (host / name).write_text(name)
    starting = devices.start_ours(host, ["--policy", f"{tmp_path}/guard.py:Guard"])
    with starting as running, Device.connect(running.socket, queues=2) as device:
        session = Session(device)
        node = session.lookup(ROOT, "ask").nodeid
        asked = session.begin("open", node, flags=0)
        tree = Tree(session)
        for _ in range(50):
            assert tree.read_file("plain") == b"plain"
            tree.write_file("new", b"x")
            tree.rename("new", "newer")
            tree.unlink("newer")
            assert set(tree.listdir()) == {"ask", "plain"}
        assert asked is not None
        os.kill(running.worker, signal.SIGKILL)  # else it would be given time to end
        running.process.wait(20)


def test_the_example_asks(tmp_path, monkeypatch):
    (tmp_path / "approved").write_text("good\n")
    monkeypatch.setenv("APPROVED", str(tmp_path / "approved"))
    host = tmp_path / "share"
    (host / "inbox").mkdir(parents=True)
    for name in ("good", "bad"):
        (host / "inbox" / name).write_text(name)
    (host / "x.key").touch()
    starting = devices.start_ours(host, ["--policy", f"{EXAMPLES}/asking.py:Approval"])
    with starting as running, Device.connect(running.socket) as device:
        tree = Tree(Session(device))
        assert tree.read_file("inbox/good") == b"good"
        assert failure(tree.read_file, "inbox/bad") == errno.EACCES
        assert tree.listdir() == ["inbox"]


# --- the command ---


def virtiofs(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "virtiofs", *arguments], capture_output=True, text=True)


def test_the_command_shows_what_a_policy_does(tmp_path):
    policy = tmp_path / "p.toml"
    policy.write_text(RULES)
    fill(tmp_path / "share")
    shown = virtiofs("policy", "check", str(policy), str(tmp_path / "share")).stdout.splitlines()
    assert "hide\ta.key" in shown and "hide\tsecret/" in shown and "read-only\tconf/a.ini" in shown
    assert not any("secret/x" in line or "plain" in line for line in shown)
    explained = virtiofs("policy", "explain", str(policy), "home/x/.ssh/", "plain").stdout
    assert explained == "home/x/.ssh/: hide, by /home/*/.ssh\nplain: no rule\n"
    assert virtiofs("policy", "check", str(tmp_path / "none.toml")).returncode == 1


def test_a_class_is_a_policy_too():
    class Mine(Policy):
        hide = ["a"]

    assert explain(Mine(), "a", False) == [("hide", "a")]

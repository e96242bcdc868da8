# SPDX-License-Identifier: Apache-2.0
"""A quota: the guest adds so much to the host's disk and no more, and gets back what it removes."""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import devices
from sharing import ROOT, failure
from virtiofs.cli.ctl import ask
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.fuse.abi import CONSTANTS

MIB = 1 << 20
QUOTA = 8 * MIB
ROOM = 65536  # kept for the host's own blocks
INODE = 1024  # what a file costs besides its blocks
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 0x10
RENAME_EXCHANGE = 2


class Limited:
    """A share with a quota, as the guest sees it (`tree`) and as the host does."""

    def __init__(self, session: Session, host: Path, control: str, slack: int):
        self.session = session
        self.tree = Tree(session)
        self.host = host
        self.control = control
        self.empty = disk_usage(host)
        self.slack = slack  # what the host may add to fragmented files whenever it writes them back

    @property
    def used(self) -> int:
        """What the daemon has counted."""
        return int(ask(self.control, {"do": "status"})["result"][0]["quota"]["used"])

    @property
    def added(self) -> int:
        """What du(1) says was added."""
        return disk_usage(self.host) - self.empty

    def fill(self, name: str = "filler") -> None:
        """Write into a new file, and then make empty ones, until there is no room."""
        with self.tree.open(name, os.O_WRONLY | os.O_CREAT) as file:
            for size in (MIB // 4, 4096):
                while failure(file.pwrite, b"x" * size, file.fstat().st_size) != errno.ENOSPC:
                    pass
        made = 0
        while failure(self.tree.mknod, f"{name}{made}") != errno.ENOSPC:
            made += 1


def disk_usage(directory: Path) -> int:
    """As `du -s --block-size=1`: each inode once."""
    seen = {}
    for path in (directory, *directory.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # somebody may be at work
            status = path.lstat()
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


@pytest.fixture(scope="module", params=[None, "/dev/shm"], ids=["disk", "memory"])
def share(request: pytest.FixtureRequest) -> Iterator[Limited]:
    """One daemon with four queues for all, on the file system of temporary files and on a tmpfs."""
    if request.param and not os.access(request.param, os.W_OK):
        pytest.skip(f"there is no {request.param} to write to")
    with tempfile.TemporaryDirectory(dir=request.param) as place:
        host, control = Path(place) / "share", f"{place}/control"
        host.mkdir()
        options = ("--quota", "8M", "--queues", "4", "--control", control)
        with devices.start_ours(host, options) as running:
            with Device.connect(running.socket, queues=4) as device:
                yield Limited(Session(device), host, control, slack=0 if request.param else 32768)
            assert running.alive, "the daemon died:\n" + "\n".join(running.log)


@pytest.fixture
def limited(share: Limited) -> Iterator[Limited]:
    """An empty share; what the test leaves is removed by the guest, and then nothing is counted any more."""
    assert share.used == 0
    share.empty = disk_usage(share.host)
    yield share
    clear(share.tree)
    assert os.listdir(share.host) == []
    assert share.used <= disk_usage(share.host) - share.empty, "all that was counted came back"


def clear(tree: Tree, path: str = "") -> None:
    for entry in tree.scan(path or "/"):
        name = f"{path}/{os.fsdecode(entry.name)}"
        if entry.type == stat.S_IFDIR >> 12:
            clear(tree, name)
            tree.rmdir(name)
        else:
            tree.unlink(name)


# --- adding ---


def test_data_is_counted_once_however_often_it_is_written(limited):
    for _ in range(3):
        limited.tree.write_file("f", b"x" * MIB)
    assert limited.used == limited.added + INODE == MIB + INODE


def test_overwriting_in_place_is_free(limited):
    with limited.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.pwrite(b"x" * MIB, 0)
        before = limited.used
        for offset in (0, 4096, 5000, MIB - 5000):
            file.pwrite(b"y" * 5000, offset)
    assert limited.used == before


def test_what_exceeds_the_quota_is_refused_before_it_is_written(limited):
    with limited.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        for chunk in range(7):
            file.pwrite(b"x" * MIB, chunk * MIB)
        assert failure(file.pwrite, b"x" * MIB, 7 * MIB) == errno.ENOSPC
        assert file.fstat().st_size == 7 * MIB
    assert limited.used <= QUOTA


def test_a_full_share_can_be_used_all_the_same(limited):
    tree = limited.tree
    with tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.pwrite(b"x" * MIB, 0)
        limited.fill()
        assert failure(file.pwrite, b"y" * 65536, MIB) == errno.ENOSPC
        assert file.pwrite(b"y" * MIB, 0) == MIB, "it has its place"
        assert failure(tree.mkdir, "d") == errno.ENOSPC
        assert failure(tree.write_file, "g", b"") == errno.ENOSPC
        tree.rename("filler", "full")
        tree.chmod("f", 0o600)
        tree.link("f", "g")
        file.ftruncate(MIB // 2)
        file.pwrite(b"z" * 65536, MIB // 2)
    assert limited.used <= QUOTA and limited.added <= QUOTA


def test_a_sparse_file_costs_what_is_written_to_it(limited):
    with limited.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.ftruncate(1 << 40)
        assert limited.used == INODE
        file.pwrite(b"x" * 4096, 1 << 39)
        assert limited.used == limited.added + INODE >= 4096 + INODE


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, ZERO_RANGE])
def test_preallocation_is_counted(limited, mode):
    with limited.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        if failure(file.fallocate, mode, 0, 2 * MIB) == errno.EOPNOTSUPP:
            pytest.skip("the file system has no such mode")
        assert limited.used == limited.added + INODE >= 2 * MIB + INODE
        assert failure(file.fallocate, mode, 0, 1 << 40) == errno.ENOSPC
        assert failure(file.fallocate, mode, 2 * MIB, QUOTA) == errno.ENOSPC
        assert limited.used == limited.added + INODE


def test_what_was_preallocated_can_be_written_when_nothing_is_left(limited):
    with limited.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        file.fallocate(0, 0, 4 * MIB)
        limited.fill()
        if extents_are_told(limited.host):
            assert file.pwrite(b"x" * MIB, MIB) == MIB
        assert limited.used <= QUOTA


def extents_are_told(directory: Path) -> bool:
    """Not on a tmpfs: what was set aside there and what was not are both holes."""
    with open("/proc/self/mountinfo") as mounts:
        kinds = {line.split()[2]: line.split(" - ")[1].split()[0] for line in mounts}
    device = directory.stat().st_dev
    return kinds.get(f"{os.major(device)}:{os.minor(device)}") in ("ext4", "xfs", "btrfs")


def test_a_copy_on_the_host_is_counted(limited):
    tree = limited.tree
    tree.write_file("a", os.urandom(3 * MIB))
    with (
        tree.open("a") as a,
        tree.open("b", os.O_RDWR | os.O_CREAT) as b,
        tree.open("c", os.O_RDWR | os.O_CREAT) as c,
    ):
        assert a.copy_to(b, 1 << 30, 0, 0) == 3 * MIB
        assert limited.used >= 6 * MIB
        assert failure(a.copy_to, c, 1 << 30, 0, 0) == errno.ENOSPC
        assert a.copy_to(c, MIB, 0, 0) == MIB
        assert a.copy_to(b, 1 << 30, 0, 0) == 3 * MIB, "it has its place"
    assert limited.used == limited.added + 3 * INODE


def test_small_files_directories_links_and_attributes_are_counted(limited):
    tree = limited.tree
    tree.mkdir("d")
    for number in range(100):
        tree.write_file(f"d/{number}", b"x" * (number * 50))
        tree.symlink("t" * (number * 10 + 1), f"d/l{number}")
        tree.link(f"d/{number}", f"d/hard{number}")
    tree.setxattr("d/1", "user.big", b"v" * 3000)
    tree.mknod("d/fifo", stat.S_IFIFO | 0o600)
    assert limited.used == limited.added + 202 * INODE


def test_names_alone_come_to_an_end(limited):
    with limited.tree.open("f", os.O_WRONLY | os.O_CREAT) as file:
        file.fallocate(0, 0, QUOTA - 4 * ROOM)
    made = 0
    while not failure(limited.tree.mknod, f"empty{made}"):
        made += 1
    assert made * INODE <= 3 * ROOM
    assert limited.used <= QUOTA


def test_an_appended_write_is_counted_where_it_lands(limited):
    with limited.tree.open("f", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
        for _ in range(7):
            file.pwrite(b"x" * MIB, 0)
        assert failure(file.pwrite, b"x" * MIB, 0) == errno.ENOSPC
    assert limited.used <= QUOTA


# --- giving back ---


def test_removing_truncating_punching_and_renaming_over_give_back(limited):
    tree = limited.tree
    for name in "abcde":
        tree.write_file(name, b"x" * MIB)
    full = limited.used
    tree.unlink("a")
    assert limited.used == full - MIB - INODE
    tree.truncate("b", 0)
    assert limited.used == full - 2 * MIB - INODE
    with tree.open("c", os.O_RDWR) as file:
        file.fallocate(KEEP_SIZE | PUNCH_HOLE, 0, MIB)
    assert limited.used == full - 3 * MIB - INODE
    tree.rename("c", "d")
    assert limited.used == full - 4 * MIB - 2 * INODE
    with tree.open("e", os.O_WRONLY | os.O_TRUNC):
        assert limited.used == full - 5 * MIB - 2 * INODE


def test_create_with_truncation_of_what_exists_gives_back(limited):
    limited.tree.write_file("f", b"x" * MIB)
    entry, handle = limited.session.create(ROOT, "f", os.O_RDWR | os.O_TRUNC)
    assert limited.used == INODE
    limited.session.release(entry.nodeid, handle.fh)
    limited.session.forget(entry.nodeid)


def test_a_file_with_another_name_stays_counted(limited):
    limited.tree.write_file("f", b"x" * MIB)
    limited.tree.link("f", "g")
    limited.tree.unlink("f")
    assert limited.used >= MIB
    limited.tree.rename("g", "h")
    limited.tree.rename("h", "h")
    assert limited.used >= MIB


def test_directories_that_change_places_stay_counted(limited):
    tree = limited.tree
    tree.mkdir("a")
    tree.mkdir("b")
    before = limited.used
    tree.rename("a", "b", RENAME_EXCHANGE)
    tree.rename("a", "a")
    assert limited.used == before
    tree.rename("a", "b")
    assert limited.used == limited.added + INODE


def test_a_removed_file_is_counted_while_it_is_open(limited):
    tree = limited.tree
    with tree.open("f", os.O_RDWR | os.O_CREAT) as file, tree.open("f") as again:
        file.pwrite(b"x" * MIB, 0)
        tree.unlink("f")
        file.close()
        assert limited.used == MIB + INODE
        assert again.pread(1, MIB - 1) == b"x"
    assert limited.used == 0


def test_a_removed_file_is_counted_while_it_is_known(limited):
    """The guest's node holds it as well: a descriptor of ours belongs to it."""
    limited.tree.write_file("f", b"x" * MIB)
    with limited.tree.node("f") as node:
        limited.tree.unlink("f")
        assert limited.used == MIB + INODE
        assert limited.session.getattr(node).nlink == 0
    assert limited.used == 0


def test_forgetting_an_open_file_before_it_is_removed_gives_nothing_back(limited):
    """No kernel does that, but a hostile guest would have the room and the file."""
    session = limited.session
    entry, handle = session.create(ROOT, "f")
    session.write(entry.nodeid, handle.fh, 0, b"x" * 100000)
    session.forget(entry.nodeid)
    session.unlink(ROOT, "f")
    held = limited.used
    assert held >= 100000
    assert session.read(entry.nodeid, handle.fh, 0, 1) == b"x"
    session.release(entry.nodeid, handle.fh)
    assert limited.used == 0


def test_a_removed_file_is_counted_while_a_lock_holds_it(limited):
    """The owner of a lock has an open file of its own, which its FLUSH ends; this guest sends it for another handle."""
    session = limited.session
    entry, handle = session.create(ROOT, "f")
    session.write(entry.nodeid, handle.fh, 0, b"x" * 100000)
    lock = {"start": 0, "end": 9, "type": fcntl.F_WRLCK, "pid": 1}
    session.call("setlk", entry.nodeid, fh=handle.fh, owner=7, lk=lock)
    session.unlink(ROOT, "f")
    session.release(entry.nodeid, handle.fh)
    other = session.open(entry.nodeid, os.O_RDONLY)
    session.forget(entry.nodeid)
    assert limited.used >= 100000
    session.call("flush", entry.nodeid, fh=other.fh, lock_owner=7)
    session.release(entry.nodeid, other.fh)
    assert limited.used == 0


def test_a_file_without_a_name_is_counted_until_it_is_let_go(limited):
    session = limited.session
    entry, handle = session.tmpfile(ROOT)
    session.write(entry.nodeid, handle.fh, 0, b"x" * 100000)
    assert limited.used >= 100000 + INODE
    session.release(entry.nodeid, handle.fh)
    assert limited.used >= 100000 + INODE
    session.forget(entry.nodeid)
    assert limited.used == 0


def test_a_file_without_a_name_that_is_given_one_stays_counted(limited):
    session = limited.session
    entry, handle = session.tmpfile(ROOT)
    session.write(entry.nodeid, handle.fh, 0, b"x" * 100000)
    linked = session.link(entry.nodeid, ROOT, "f")
    session.release(entry.nodeid, handle.fh)
    session.forget(entry.nodeid, 2)
    assert linked.nodeid == entry.nodeid
    assert limited.used == limited.added + INODE >= 100000


def test_what_was_there_before_gives_nothing_back(limited):
    (limited.host / "old").write_bytes(b"x" * MIB)
    limited.tree.unlink("old")
    assert limited.used == 0
    (limited.host / "old").write_bytes(b"x" * MIB)
    limited.tree.write_file("new", b"x" * 2 * MIB)
    limited.tree.unlink("old")
    assert limited.used >= MIB


# --- what else ---


def test_df_shows_a_disk_of_the_quota(limited):
    before = limited.tree.statvfs()
    assert before.f_blocks * before.f_frsize == QUOTA
    assert before.f_bavail * before.f_frsize == QUOTA - ROOM
    limited.tree.write_file("f", b"x" * MIB)
    after = limited.tree.statvfs()
    assert (
        0 <= before.f_bavail * before.f_frsize - MIB - after.f_bavail * after.f_frsize <= 2 * before.f_frsize
    )
    limited.fill()
    assert limited.tree.statvfs().f_bavail == 0


def at_once(limited: Limited, *requests: tuple) -> list:
    """Send (operation, node, more arguments) on one queue after the other, then wait: replies, None for an error."""
    sessions = []
    for queue in range(1, 5):
        session = copy.copy(limited.session)  # the same FUSE session, carried by another queue
        session.queue = queue
        sessions.append(session)
    pending = []
    for number, (what, node, more) in enumerate(requests):
        session = sessions[number % 4]
        pending.append((session, what, session.begin(what, node, **more)))
    replies = []
    for session, what, one in pending:
        try:
            replies.append(session.finish(one, what) or True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOENT):
                raise
            replies.append(None)
    return replies


def writing(node: int, fh: int, offset: int, size: int) -> tuple:
    more = {
        "tail": b"x" * size,
        "fh": fh,
        "offset": offset,
        "size": size,
        "flags": os.O_RDWR,
        "write_flags": 0,
    }
    return "write", node, more


def test_writers_on_many_queues_never_get_more_together(limited):
    """They fill the share, free half of it, and fill it again; the quota ends in the middle of what they ask for."""
    session = limited.session
    for turn in range(4):
        files = [session.create(ROOT, f"{turn}-{number}") for number in range(16)]
        for offset in range(0, 400000, 100000):
            written = at_once(
                limited, *(writing(entry.nodeid, handle.fh, offset, 100000) for entry, handle in files)
            )
            assert limited.added <= QUOTA and limited.used <= QUOTA
        assert turn == 0 or None in written
        gone = at_once(limited, *(("unlink", ROOT, {"names": [f"{turn}-{n}"]}) for n in range(0, 16, 2)))
        assert None not in gone
        for entry, handle in files:
            session.release(entry.nodeid, handle.fh)
            session.forget(entry.nodeid)
    assert limited.used == limited.added + len(os.listdir(limited.host)) * INODE


def test_changes_of_one_file_are_counted_once(limited):
    """Where two requests see the file before and after, what both see is not there twice, nor gone twice."""
    with limited.tree.open("f", os.O_RDWR | os.O_CREAT) as file:
        node, fh = file.nodeid, file.fh
        for turn in range(60):
            punch = {"fh": fh, "offset": turn * 20000, "length": 100000, "mode": KEEP_SIZE | PUNCH_HOLE}
            shrink = {
                "valid": CONSTANTS["FATTR_SIZE"] | CONSTANTS["FATTR_FH"],
                "fh": fh,
                "size": turn * 30000,
            }
            at_once(
                limited,
                writing(node, fh, turn * 40000, 60000),
                ("fallocate", node, punch),
                writing(node, fh, turn * 50000, 70000),
                ("setattr", node, shrink) if turn % 7 == 6 else writing(node, fh, turn * 30000, 20000),
            )
        assert abs(limited.used - limited.added - INODE) <= limited.slack


def test_who_finds_a_name_just_before_it_goes_is_counted(limited):
    """A hostile guest's race: whose look-up comes in time holds the file."""
    session = limited.session
    for turn in range(100):
        limited.tree.write_file("f", b"x" * 20000)
        limited.tree.write_file("g", b"x" * 10000)
        look = [("lookup", ROOT, {"names": [name]}) for name in "fgf"]
        go = (
            ("unlink", ROOT, {"names": ["f"]})
            if turn % 2
            else ("rename", ROOT, {"names": ["g", "f"], "newdir": ROOT})
        )
        order = turn % 4
        replies = at_once(limited, *look[:order], go, *look[order:])
        nodes = [reply.nodeid for reply in replies if hasattr(reply, "nodeid")]
        held = {session.getattr(node).ino: session.getattr(node).blocks * 512 for node in nodes}
        assert limited.used >= sum(held.values())
        for node in nodes:
            session.forget(node)
        assert limited.used == limited.added + len(os.listdir(limited.host)) * INODE


NAMES = st.sampled_from([f"{d}{f}" for d in ("", "d/", "e/") for f in "abc"])
SIZES = st.integers(0, 300) | st.integers(0, 3 * MIB)
ACTIONS = st.one_of(
    st.tuples(st.just("write"), NAMES, SIZES, SIZES),
    st.tuples(st.just("append"), NAMES, SIZES),
    st.tuples(st.just("replace"), NAMES, SIZES),
    st.tuples(st.just("truncate"), NAMES, SIZES),
    st.tuples(st.just("fallocate"), NAMES, st.sampled_from([0, 1, 3, 16, 17]), SIZES, SIZES),
    st.tuples(st.just("copy"), NAMES, NAMES, SIZES, SIZES),
    st.tuples(st.sampled_from(["unlink", "mkdir", "rmdir", "symlink", "mknod", "hold", "xattr"]), NAMES),
    st.tuples(st.sampled_from(["rename", "exchange", "link"]), NAMES, NAMES),
)


def act(limited: Limited, held: list, what: str, name: str, *rest) -> None:
    tree = limited.tree
    if what in ("write", "append", "fallocate"):
        flags = os.O_RDWR | os.O_CREAT | (os.O_APPEND if what == "append" else 0)
        with tree.open(name, flags) as file:
            if what == "fallocate":
                file.fallocate(rest[0], rest[1], rest[2])
            else:
                file.pwrite(b"x" * rest[-1], rest[0])
    elif what == "copy":
        with tree.open(name) as source, tree.open(rest[0], os.O_RDWR | os.O_CREAT) as target:
            source.copy_to(target, rest[1], 0, rest[2])
    elif what == "replace":
        tree.write_file(name, b"y" * rest[0])
    elif what == "truncate":
        tree.truncate(name, rest[0])
    elif what == "hold":
        held.append(tree.open(name))
    elif what == "xattr":
        tree.setxattr(name, "user.x", b"v" * 2000)
    elif what == "symlink":
        tree.symlink("t" * 200, name)
    elif what == "exchange":
        tree.rename(name, rest[0], RENAME_EXCHANGE)
    elif what == "mkdir":
        tree.mkdir(name[:1])
    elif what == "rmdir":
        tree.rmdir(name[:1])
    else:
        getattr(tree, what)(name, *rest)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, max_size=25))
def test_what_is_counted_is_what_du_finds_and_never_more_than_the_quota(limited, actions):
    limited.empty = disk_usage(limited.host)
    before = limited.used
    held: list = []
    limited.tree.mkdir("d")
    for action in actions:
        failure(act, limited, held, *action)
        assert limited.added <= QUOTA
    for file in held:
        file.close()
    inodes = {path.lstat().st_ino for path in limited.host.rglob("*")}
    assert abs(limited.used - before - limited.added - len(inodes) * INODE) <= limited.slack
    assert limited.used <= QUOTA
    clear(limited.tree)

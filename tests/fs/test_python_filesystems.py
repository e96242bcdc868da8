# SPDX-License-Identifier: Apache-2.0
"""File systems in Python over a queue: what a method returns arrives, and what it does wrong harms nobody else."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import devices
from expect import failure, outcome
from virtiofs.client.device import HIPRIO, Device, DeviceGone
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.fs.python import filesystem
from virtiofs.fs.python.calls import METHODS
from virtiofs.fuse import abi
from virtiofs.fuse.abi import OPERATIONS
from virtiofs.vhostuser.frontend import FrontEndError

ROOT = 1
EXAMPLES = Path(__file__).parents[2] / "examples"
TREES = Path(__file__).with_name("python_trees.py")


@contextlib.contextmanager
def served(name: str, *options: str) -> Iterator[tuple[devices.RunningDevice, Session]]:
    words = [word for option in options for word in ("--option", option)]
    with (
        devices.start_ours(Path(f"{TREES}:{name}"), words) as running,
        Device.connect(running.socket) as device,
    ):
        yield running, Session(device)


@pytest.fixture(scope="module")
def memory() -> Iterator[Session]:
    with served("Pooled") as (_, session):
        yield session


@pytest.fixture(scope="module")
def nonsense() -> Iterator[tuple[devices.RunningDevice, Session]]:
    with served("Nonsense") as both:
        yield both


# --- what is right arrives ---


def test_a_tree_is_made_read_and_changed(memory):
    tree = Tree(memory)
    tree.mkdir("/d", 0o750)
    tree.write_file("/d/a", b"x" * 300_000, 0o640)
    tree.rename("/d/a", "/d/b")
    tree.link("/d/b", "/d/c")
    tree.symlink("b", "/d/l")
    assert sorted(tree.listdir("/d")) == ["b", "c", "l"]
    assert tree.read_file("/d/c") == b"x" * 300_000
    assert tree.readlink("/d/l") == "b"
    found = tree.stat("/d/b")
    assert (found.st_nlink, stat.S_IMODE(found.st_mode), found.st_size) == (2, 0o640, 300_000)
    assert stat.S_IMODE(tree.stat("/d").st_mode) == 0o750
    for name in ("b", "c", "l"):
        tree.unlink(f"/d/{name}")
    tree.rmdir("/d")
    assert not tree.exists("/d")


def test_names_and_values_of_every_length_reach_the_pool_whole(memory):
    node = memory.create(ROOT, "n" * 255, os.O_RDWR, 0o600)[0].nodeid
    for size in (0, 1, 4096, 65536):
        value = os.urandom(size)
        memory.setxattr(node, "user." + "x" * 250, value)
        assert memory.getxattr(node, "user." + "x" * 250) == value
    assert memory.getxattr_size(node, "user." + "x" * 250) == 65536
    memory.rename(ROOT, "n" * 255, ROOT, "m" * 255)
    assert memory.lookup(ROOT, "m" * 255).nodeid == node
    target = "t" * 4095
    assert memory.readlink(memory.symlink(ROOT, "link", target).nodeid) == target.encode()


def test_many_requests_at_once_are_all_answered(memory):
    entry, opened = memory.create(ROOT, "many", os.O_RDWR, 0o600)
    node, fh = entry.nodeid, opened.fh
    memory.write(node, fh, 0, bytes(range(256)) * 16)
    pending = [memory.begin("read", node, fh=fh, offset=16 * i, size=16, room=16) for i in range(100)]
    for i, one in enumerate(pending):
        data = memory.finish(one, "read", 16)
        assert bytes(data) == bytes((16 * i + j) % 256 for j in range(16))


def test_a_listing_is_what_it_was_when_it_began(memory):
    directory = memory.mkdir(ROOT, "list").nodeid
    names = {f"{i:03}".encode() for i in range(500)}
    for name in names:
        memory.mknod(directory, name, stat.S_IFREG | 0o600)
    fh = memory.opendir(directory).fh
    found, cookie = [], 0
    while part := memory.readdir(directory, fh, cookie, 4096):
        for entry in part:
            if entry.name not in (b".", b".."):
                memory.unlink(directory, entry.name)
        found += [entry.name for entry in part]
        cookie = part[-1].cookie
    assert sorted(found) == sorted([b".", b"..", *names])
    assert [entry.name for entry in memory.readdir(directory, fh, 0, 4096)] == [b".", b".."]
    memory.releasedir(directory, fh)
    assert failure(memory.readdir, directory, fh) == errno.EBADF


def test_readdirplus_counts_a_lookup_of_each_name(memory):
    directory = memory.mkdir(ROOT, "plus").nodeid
    node = memory.mknod(directory, "f", stat.S_IFREG | 0o600).nodeid
    fh = memory.opendir(directory).fh
    (entry,) = [one for one in memory.readdirplus(directory, fh) if one.name == b"f"]
    assert entry.entry.nodeid == node and entry.entry.attr.mode == stat.S_IFREG | 0o600
    memory.unlink(directory, "f")
    memory.releasedir(directory, fh)
    memory.forget(node, 1)  # one of two
    assert memory.getattr(node).nlink == 0
    memory.forget(node, 1)
    assert devices.wait_until(lambda: failure(memory.getattr, node) == errno.ESTALE)


def test_times_before_1970_keep_their_nanoseconds(memory):
    tree = Tree(memory)
    tree.write_file("/old", b"")
    tree.utime("/old", ns=(-1, -1_500_000_001))
    found = memory.getattr(memory.lookup(ROOT, "old").nodeid)
    assert (found.atime, found.atimensec) == (2**64 - 1, 999_999_999)
    assert (found.mtime, found.mtimensec) == (2**64 - 2, 499_999_999)


def test_each_front_end_finds_the_tree_as_it_was_made():
    with devices.start_ours(Path(f"{TREES}:Pooled")) as running:
        for _ in range(2):
            with Device.connect(running.socket) as device:
                tree = Tree(Session(device))
                assert tree.listdir("/") == []
                tree.write_file("/f", b"gone with its guest")


def test_the_threads_that_call_methods_are_as_nice_as_the_daemon():
    with served("Pooled") as (running, _):
        tasks = os.listdir(f"/proc/{running.worker}/task")
        assert len(tasks) > 3  # the main thread, two queues, and the pool
        nice = {os.getpriority(os.PRIO_PROCESS, int(task)) for task in tasks}
        assert nice == {os.getpriority(os.PRIO_PROCESS, 0)}


def test_what_no_method_is_there_for_is_enosys_and_a_tree_without_changes_is_read_only(nonsense):
    with served("Hanging", "fifo=/dev/null") as (_, session):
        node = session.lookup(ROOT, "f").nodeid
        assert failure(session.mkdir, ROOT, "d") == errno.EROFS
        assert failure(session.getxattr, node, "user.x") == errno.ENOSYS
        assert failure(session.readlink, node) == errno.ENOSYS
        assert failure(session.open, node, os.O_RDWR) == errno.EROFS
        assert session.open(node, os.O_RDONLY).fh == 0
        assert session.statfs().namelen == 255
    assert failure(nonsense[1].mkdir, ROOT, "d") == errno.ENOSYS


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_an_ordinary_user_serves_a_tree_behind_the_same_walls():
    with devices.share_for("ours-unprivileged") as place:
        shutil.copy(EXAMPLES / "memory.py", place)
        what = Path(f"{place / 'memory.py'}:MemoryFilesystem")
        with (
            devices.start_ours(what, user=devices.NOBODY) as running,
            Device.connect(running.socket) as device,
        ):
            tree = Tree(Session(device))
            tree.write_file("/f", b"data")
            assert tree.read_file("/f") == b"data"
            status = Path(f"/proc/{running.worker}/status").read_text()
            assert "CapEff:\t0000000000000000" in status and "Seccomp:\t2" in status
            assert os.stat(f"/proc/{running.worker}/root").st_nlink == 0  # removed


def checked(what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virtiofs", "check", "--quiet", what]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("what", [f"{TREES}:Pooled", f"{EXAMPLES / 'hello.py'}:Hello"])
def test_a_right_class_passes_all_checks_that_are_about_it(what):
    done = checked(what)
    assert done.returncode == 0, done.stdout
    assert "FAILED" not in done.stdout and "passed" in done.stdout


def test_checks_name_the_mistakes_of_a_class():
    done = checked(f"{TREES}:Nonsense")
    assert done.returncode == 1
    assert "MISTAKE virtiofs: error: readlink(" in done.stdout


# --- what is wrong harms nobody ---

BAD_ENTRIES = (
    *("no-entry", "none", "root", "no-type", "no-attributes", "validity", "not-a-number", "huge-node"),
    *("negative-size", "huge-size", "bad-errno", "text-errno", "no-errno", "exit", "recursion"),
)


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_an_entry_that_makes_no_sense_is_an_io_error(nonsense, name):
    running, session = nonsense
    assert failure(session.lookup, ROOT, name) == errno.EIO
    assert session.lookup(ROOT, "sane").nodeid > ROOT


def test_the_log_names_the_method_its_request_and_the_mistake_once():
    with served("Nonsense") as (running, session):
        node = session.lookup(ROOT, "raise").nodeid
        for _ in range(5):
            assert failure(session.read, node, 7, 0, 100) == errno.EIO
            assert failure(session.lookup, ROOT, "none") == errno.EIO
        assert devices.wait_until(lambda: any("lookup" in line for line in running.log))
        said = [line for line in running.log if "failed" in line]
    assert [line for line in said if "on purpose" in line] == [
        line for line in said if "read(node 2)" in line
    ]
    assert len(said) == 2
    assert "RuntimeError: on purpose" in said[0] and "python_trees.py" in said[0] and "in read" in said[0]
    assert "lookup(node 1, b'none') failed: TypeError: lookup returns an Entry, not None" in said[1]


@pytest.mark.parametrize("name", ["long", "text", "number", "wide"])
def test_read_data_that_makes_no_sense_is_an_io_error(nonsense, name):
    session = nonsense[1]
    node = session.lookup(ROOT, name).nodeid
    assert failure(session.read, node, 7, 0, 10) == errno.EIO


@pytest.mark.parametrize("name", ["too-much", "negative", "written-none"])
def test_a_count_of_written_bytes_that_makes_no_sense_is_an_io_error(nonsense, name):
    session = nonsense[1]
    node = session.lookup(ROOT, name).nodeid
    assert failure(session.write, node, 7, 0, b"data") == errno.EIO


@pytest.mark.parametrize("name", ["open-text", "open-large"])
def test_a_handle_that_makes_no_sense_is_an_io_error(nonsense, name):
    session = nonsense[1]
    assert failure(session.open, session.lookup(ROOT, name).nodeid) == errno.EIO


def test_names_that_are_none_are_not_listed(nonsense):
    session = nonsense[1]
    fh = session.opendir(ROOT).fh
    assert failure(session.readdir, ROOT, fh) == errno.EIO
    assert failure(session.readlink, 2) == errno.EIO


def test_an_endless_listing_ends_in_an_error():
    with served("Endless") as (_, session):
        assert failure(session.readdir, ROOT, session.opendir(ROOT).fh) == errno.EIO


def test_a_kept_view_of_written_data_is_an_error_and_a_kept_slice_a_copy(nonsense):
    session = nonsense[1]
    session.write(session.lookup(ROOT, "sane").nodeid, 7, 0, b"data")
    said = session.read(session.lookup(ROOT, "kept").nodeid, 7, 0, 100)
    assert said == b"operation forbidden on released memoryview object"
    assert session.read(session.lookup(ROOT, "slice").nodeid, 7, 0, 100) == b"ata"


def test_an_import_behind_the_walls_says_what_to_do(nonsense):
    running, session = nonsense
    assert failure(session.lookup, ROOT, "import") == errno.EIO
    advice = "the module colorsys can not be imported behind the walls"
    assert devices.wait_until(lambda: any(advice in line for line in running.log))


def test_a_method_that_hangs_holds_up_neither_others_nor_forget(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with served("Hanging", f"fifo={tmp_path / 'fifo'}") as (_, session):
        hang, quick = session.lookup(ROOT, "hang").nodeid, session.lookup(ROOT, "quick").nodeid
        waiting = [session.begin("read", hang, fh=0, offset=0, size=100, room=100)]
        assert session.read(quick, 0, 0, 100) == b"at last"
        waiting.append(session.begin("read", hang, fh=0, offset=0, size=100, room=100))
        # Now both threads hang: FORGET is heard all the same, though nobody can be asked whether it was.
        session.forget(quick, 3)
        session.batch_forget([(quick, 4), (hang, 5)])
        with open(tmp_path / "fifo", "wb") as fifo:
            fifo.write(b"go")
        for one in waiting:
            assert bytes(session.finish(one, "read", 100)) == b"at last"
        assert devices.wait_until(lambda: session.getattr(ROOT).size == 12)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_interrupt_cancels_the_method_that_awaits_and_no_other(loop):
    if loop == "trio":
        pytest.importorskip("trio")
    with served("Trio" if loop == "trio" else "Sleepy") as (_, session):
        node = session.lookup(ROOT, "f").nodeid
        first, second = (session.begin("read", node, fh=0, offset=0, size=10, room=10) for _ in range(2))
        session.call("interrupt", unique=first.unique)
        assert failure(session.finish, first, "read", 10) == errno.EINTR
        assert not second.done
        session.call("interrupt", unique=second.unique)
        assert failure(session.finish, second, "read", 10) == errno.EINTR


def test_a_guest_that_leaves_while_a_method_hangs_is_followed_by_the_next(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with devices.start_ours(Path(f"{TREES}:Hanging"), ["--option", f"fifo={tmp_path / 'fifo'}"]) as running:
        with contextlib.ExitStack() as stack:
            session = Session(stack.enter_context(Device.connect(running.socket)))
            node = session.lookup(ROOT, "hang").nodeid
            session.begin("read", node, fh=0, offset=0, size=100, room=100)
        with Device.connect(running.socket) as device:
            assert Session(device).lookup(ROOT, "quick").nodeid > ROOT
        with open(tmp_path / "fifo", "wb") as fifo:
            fifo.write(b"go")


def test_more_directories_than_may_be_open_are_refused(memory):
    opened = []
    while not (refused := outcome(lambda: opened.append(memory.opendir(ROOT).fh))):
        pass
    assert (refused, len(opened)) == (errno.ENFILE, 4096)
    for fh in opened:
        memory.releasedir(ROOT, fh)
    memory.releasedir(ROOT, memory.opendir(ROOT).fh)


def test_a_directory_is_not_moved_below_itself_by_paths(tmp_path):
    what = Path(f"{EXAMPLES / 'passthrough.py'}:Mirror")
    with (
        devices.start_ours(what, ["--option", f"directory={tmp_path}"]) as running,
        Device.connect(running.socket) as device,
    ):
        session = Session(device)
        outer = session.mkdir(ROOT, "a").nodeid
        inner = session.mkdir(outer, "b").nodeid
        assert failure(session.rename, ROOT, "a", inner, "c") == errno.EINVAL
        assert failure(session.rename, outer, "b", ROOT, "a") == errno.EINVAL
        assert session.lookup(outer, "b").nodeid == inner
        session.rename(outer, "b", ROOT, "b")
        session.rename(ROOT, "a", inner, "a")
        assert session.getattr(session.lookup(inner, "a").nodeid).ino == (tmp_path / "b" / "a").stat().st_ino
        os.rmdir(tmp_path / "b" / "a")
        assert failure(session.getattr, outer) == errno.ENOENT


def test_a_fork_ends_the_process_that_serves_and_says_why():
    with served("Fork") as (running, session):
        session.begin("read", session.lookup(ROOT, "f").nodeid, fh=0, offset=0, size=10, room=10)
        assert running.process.wait(timeout=devices.END_SECONDS) == 1
        assert devices.wait_until(lambda: any("SIGSYS" in line for line in running.log))


def test_a_node_of_no_kind_is_a_file_and_of_an_unknown_kind_refused(memory):
    node = memory.mknod(ROOT, "no-kind", 0o10).nodeid
    assert memory.getattr(node).mode == stat.S_IFREG | 0o10
    for kind in (stat.S_IFDIR, stat.S_IFLNK, 0o030000, 0o170000):
        assert failure(memory.mknod, ROOT, "odd", kind | 0o600) == errno.EINVAL
    assert memory.setattr(node, mode=0o644).mode == stat.S_IFREG | 0o644


def test_sizes_that_lie_never_reach_a_method(memory):
    node = memory.create(ROOT, "lie", os.O_RDWR, 0o600)[0].nodeid
    for offset in (1 << 63, (1 << 64) - 1):
        assert failure(memory.write, node, 0, offset, b"x") == errno.EINVAL
        assert failure(memory.read, node, 0, offset, 10) == errno.EINVAL
    assert failure(memory.fallocate, node, 0, (1 << 63) - 1, 1) == errno.EFBIG


# --- locks, and what else there is ---


def lock(session: Session, what: str, owner: int, kind: int, **more: int) -> object:
    held = {"start": more.pop("start", 0), "end": more.pop("end", 99), "type": kind, "pid": owner}
    return session.call(what, session.lookup(ROOT, "f").nodeid, fh=9, owner=owner, lk=held, **more)


def test_locks_are_the_methods_and_end_when_a_descriptor_is_closed():
    with served("Whole") as (_, session):
        node = session.lookup(ROOT, "f").nodeid
        lock(session, "setlk", 1, fcntl.F_WRLCK)
        assert failure(lock, session, "setlk", 2, fcntl.F_RDLCK, start=99) == errno.EAGAIN
        found = lock(session, "getlk", 2, fcntl.F_RDLCK).lk
        assert (found.type, found.start, found.end, found.pid) == (fcntl.F_WRLCK, 0, 99, 1)
        assert lock(session, "getlk", 1, fcntl.F_RDLCK).lk.type == fcntl.F_UNLCK
        session.flush(node, 9, 1)
        lock(session, "setlk", 2, fcntl.F_WRLCK)
        flock = {"lk_flags": abi.CONSTANTS["FUSE_LK_FLOCK"]}
        lock(session, "setlk", 3, fcntl.F_WRLCK, **flock)
        assert failure(lock, session, "setlk", 4, fcntl.F_RDLCK, **flock) == errno.EAGAIN
        unlock = abi.CONSTANTS["FUSE_RELEASE_FLOCK_UNLOCK"]
        session.call("release", node, fh=9, release_flags=unlock, lock_owner=3)
        lock(session, "setlk", 4, fcntl.F_RDLCK, **flock)
        for odd in ({"start": 5, "end": 4}, {"end": 1 << 63}):
            assert failure(lock, session, "setlk", 2, fcntl.F_WRLCK, **odd) == errno.EINVAL
        assert failure(lock, session, "setlk", 2, 77) == errno.EINVAL


def test_who_waits_for_a_lock_gets_it_or_is_interrupted_and_holds_up_nobody():
    with served("Whole") as (_, session):
        node = session.lookup(ROOT, "f").nodeid
        lock(session, "setlk", 1, fcntl.F_WRLCK)
        asked = {"start": 0, "end": 9, "type": fcntl.F_WRLCK, "pid": 0}
        waiting = [session.begin("setlkw", node, fh=9, owner=owner, lk=asked) for owner in (2, 3)]
        assert session.read(node, 9, 0, 10) == b"0123456789"
        session.call("interrupt", unique=waiting[0].unique)
        assert failure(session.finish, waiting[0], "setlkw") == errno.EINTR
        assert not waiting[1].done
        lock(session, "setlk", 1, fcntl.F_UNLCK)
        session.finish(waiting[1], "setlkw")
        assert failure(lock, session, "setlk", 1, fcntl.F_WRLCK) == errno.EAGAIN


def ioctl(
    session: Session, number: int, data: bytes = b"", room: int = 100, **more: int
) -> tuple[int, bytes]:
    node = ROOT if more.get("flags") else session.lookup(ROOT, "f").nodeid
    asked = {"fh": 9, "cmd": number, "in_size": len(data), "out_size": room, **more}
    body = abi.FUSE_IOCTL_IN.pack(**asked) + data
    pending = session.device.begin("ioctl", node, body, 16 + room, session.queue, session.caller)
    reply = session.device.finish(pending)
    if reply.error:
        raise OSError(-reply.error, os.strerror(-reply.error))
    return abi.FUSE_IOCTL_OUT.unpack(reply.payload).result, bytes(reply.payload[16:])


def test_ioctl_poll_copies_and_times_of_birth_are_the_methods():
    with served("Whole") as (_, session):
        node = session.lookup(ROOT, "f").nodeid
        assert ioctl(session, 7, b"abc") == (0, b"cba")
        assert ioctl(session, 8) == (3, b"9")
        directory = session.opendir(ROOT).fh
        assert ioctl(session, 8, fh=directory, flags=abi.CONSTANTS["FUSE_IOCTL_DIR"]) == (3, b"10")
        assert failure(ioctl, session, 8, fh=77, flags=abi.CONSTANTS["FUSE_IOCTL_DIR"]) == errno.EBADF
        assert failure(ioctl, session, 1) == errno.ENOTTY
        assert failure(ioctl, session, 9) == errno.EIO
        assert failure(ioctl, session, 10) == errno.EIO
        assert failure(ioctl, session, 7, b"abc", in_size=4) == errno.EINVAL
        assert session.call("poll", node, fh=9, kh=5, flags=1, events=select.POLLIN).revents == 0
        session.setattr(node, mode=0o600)  # wakes, which nobody delivers
        assert session.call("poll", node, fh=9, events=select.POLLIN).revents == select.POLLIN
        assert session.copy_file_range(node, 9, 0, node, 9, 6, 3) == 3
        assert session.read(node, 9, 0, 20) == b"0123450129"
        assert failure(session.copy_file_range, node, 9, 0, node, 9, 7, 3) == errno.EIO
        assert failure(session.copy_file_range, node, 9, 1 << 63, node, 9, 7, 3) == errno.EINVAL
        found = session.statx(node)
        assert (found.btime.tv_sec, found.btime.tv_nsec, found.size) == (5, 7, 10)
        assert found.mask & 0x800 and found.mtime.tv_sec == 6


def test_a_class_says_where_its_blocks_lie():
    with served("Whole") as (_, session):
        node = session.lookup(ROOT, "f").nodeid
        assert session.call("bmap", node, block=0, blocksize=512).block == 612
        assert session.call("bmap", node, block=1, blocksize=512).block == 0
        assert failure(session.call, "bmap", node, block=7, blocksize=512) == errno.EIO
        assert failure(session.call, "bmap", node, block=0, blocksize=0) == errno.EINVAL


def test_every_operation_of_the_protocol_is_a_method_or_is_said_not_to_be():
    ours = {"init", "destroy", "interrupt", "setupmapping", "removemapping", "statx"}
    for operation in OPERATIONS:
        name = METHODS.get(operation.name, operation.name)
        assert (name in filesystem.OPERATIONS) != (name in ours), operation.name
        assert hasattr(filesystem.Filesystem, name) != (name in ours)


def test_several_classes_and_a_directory_are_shares_of_one_daemon(tmp_path):
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "f").write_text("of the host")
    shares = [f"host={tmp_path / 'share'}", f"memory={EXAMPLES / 'memory.py'}:MemoryFilesystem"]
    shares += [f"bad={TREES}:Hanging", f"fork={TREES}:Fork"]
    os.mkfifo(tmp_path / "fifo")
    command = [sys.executable, "-m", "virtiofs", "serve", "--socket-dir", str(tmp_path)]
    command += [word for share in shares for word in ("--share", share)]
    ready, ready_end = os.pipe()
    command += ["--option", "memory.size=1048576", "--option", f"bad.fifo={tmp_path / 'fifo'}"]
    command += ["--ready-fd", str(ready_end)]
    process = subprocess.Popen(command, pass_fds=[ready_end], stderr=subprocess.PIPE, text=True)
    os.close(ready_end)
    try:
        assert os.read(ready, 64)
        with contextlib.ExitStack() as stack:
            sessions = {
                tag: Session(stack.enter_context(Device.connect(str(tmp_path / f"{tag}.sock"))))
                for tag in ("host", "memory", "bad", "fork")
            }
            bad, fork = sessions["bad"], sessions["fork"]
            for _ in range(2):  # all its threads
                bad.begin("read", bad.lookup(ROOT, "hang").nodeid, fh=0, offset=0, size=9, room=9)
            dying = fork.begin("read", fork.lookup(ROOT, "f").nodeid, fh=0, offset=0, size=10, room=10)
            with pytest.raises((DeviceGone, FrontEndError)):
                fork.finish(dying, "read", 10)
            assert Tree(sessions["host"]).read_file("/f") == b"of the host"
            tree = Tree(sessions["memory"])
            tree.write_file("/f", b"data")
            assert tree.read_file("/f") == b"data"
            assert failure(tree.write_file, "/g", bytes(2 << 20)) == errno.ENOSPC
            assert tree.read_file("/f") == b"data"
            assert process.poll() is None
            (tmp_path / "fifo").write_bytes(b"go")
    finally:
        os.close(ready)
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert "share fork" in said and "SIGSYS" in said


def test_memory_that_is_not_there_is_an_error_of_one_request():
    with served("Sticky") as (running, session):
        node = session.lookup(ROOT, "memory").nodeid
        for _ in range(3):
            assert failure(session.read, node, 0, 0, 10) == errno.EIO
        assert session.read(session.lookup(ROOT, "fine").nodeid, 0, 0, 10) == b"well"
        assert devices.wait_until(lambda: any("MemoryError" in line for line in running.log))


ANY = [operation for operation in OPERATIONS if operation.name not in ("init", "destroy")]
NUMBERS = st.one_of(st.integers(0, 12), st.integers(0, 2**64 - 1), st.sampled_from([2**31, 2**63 - 1, 2**63]))
NAMES = st.one_of(st.sampled_from([b"a", b"b", b"user.x", b"n" * 255]), st.binary(min_size=1, max_size=300))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(ANY), NUMBERS, st.data()), min_size=1, max_size=8))
def test_whatever_is_asked_is_answered_or_refused(memory, requests):
    """Each request gets one reply that its header describes, and the tree is still served."""
    for operation, node, data in requests:
        body = b""
        if operation.args:
            words = data.draw(st.lists(NUMBERS, min_size=16, max_size=16))
            body = struct.pack("<16Q", *words)[: operation.args.size]
            if data.draw(st.booleans()):  # small numbers in each half
                body = struct.pack("<32I", *(word % 9 for word in words + words))[: operation.args.size]
        body += b"".join(data.draw(NAMES) + b"\0" for _ in operation.names)
        body += data.draw(st.binary(max_size=200)) if operation.flags & (abi.TAIL | abi.DATA) else b""
        room = operation.reply.size if operation.reply else 4096 if operation.flags & abi.REPLY_DATA else 0
        queue = HIPRIO if operation.flags & abi.NO_REPLY else memory.queue
        pending = memory.device.begin(operation.name, node, body, room, queue, memory.caller)
        reply = memory.device.finish(pending)
        if reply is not None:
            assert -4095 <= reply.error <= 0 and reply.length == reply.used_length
            assert reply.unique == pending.unique and -reply.error not in (errno.EIO, errno.EINTR)
    assert stat.S_ISDIR(memory.getattr(ROOT).mode)

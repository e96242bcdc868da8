# SPDX-License-Identifier: Apache-2.0
"""File systems in Python through the kernel's FUSE client: the examples, and what the walls leave."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
import virtiofs
from expect import failure
from mounting import SECONDS, Mounted, alive, mounted, unavailable
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"
TREES = TESTS / "fs" / "python_trees.py"
BENCHED = Path(virtiofs.__file__).parent / "client/pythonbench/ours.py"


@contextlib.contextmanager
def serving(base: Path, where: Path, name: str, *options: str, **more: str) -> Iterator[Mounted]:
    words = [word for key, value in more.items() for word in ("--option", f"{key}={value}")]
    with mounted(base, *words, *options, python=f"{where}:{name}") as it:
        yield it


def posix_suite(place: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "posix",
        "--mountpoint",
        str(place),
    ]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


# --- the examples ---


def test_hello_says_hello(tmp_path):
    with serving(tmp_path, EXAMPLES / "hello.py", "Hello") as it:
        assert os.listdir(it.place) == ["hello"]
        assert (it.place / "hello").read_text() == "Hello from the host.\n"
        assert failure((it.place / "other").stat) == errno.ENOENT
        assert failure((it.place / "new").touch) == errno.EROFS


def test_a_tree_in_memory_is_a_posix_file_system():
    with tempfile.TemporaryDirectory(prefix="virtiofs-mount-") as base:
        os.chmod(base, 0o755)
        with serving(Path(base), EXAMPLES / "memory.py", "MemoryFilesystem") as it:
            posix_suite(it.place)


def test_a_tree_in_memory_is_one_over_a_queue_and_on_threads_of_the_pool():
    with tempfile.TemporaryDirectory(prefix="virtiofs-mount-") as base:
        os.chmod(base, 0o755)
        with (
            devices.start_ours(Path(f"{TREES}:Pooled")) as device,
            mounted(Path(base), socket=device.socket) as it,
        ):
            posix_suite(it.place)


def test_a_tree_in_memory_has_the_room_it_was_given(tmp_path):
    with serving(tmp_path, EXAMPLES / "memory.py", "MemoryFilesystem", size="1048576") as it:
        assert failure((it.place / "big").write_bytes, bytes(2 << 20)) == errno.ENOSPC
        assert os.statvfs(it.place).f_bfree == 0
        (it.place / "big").unlink()
        assert devices.wait_until(lambda: os.statvfs(it.place).f_bfree == 16)
        with open(it.place / "hole", "wb") as file:
            assert failure(os.posix_fallocate, file.fileno(), 0, 1 << 60) == errno.ENOSPC
            os.truncate(file.fileno(), 1 << 60)
            assert failure(os.lseek, file.fileno(), 0, os.SEEK_DATA) == errno.ENXIO


def test_errors_are_those_that_were_raised(tmp_path):
    with serving(tmp_path, EXAMPLES / "errors.py", "Errors") as it:
        assert {"EACCES", "EIO", "mistake"} <= set(os.listdir(it.place))
        for number in (errno.EACCES, errno.ENOSPC, errno.ETIMEDOUT, errno.ESTALE):
            with open(it.place / errno.errorcode[number], "rb") as file:
                assert failure(file.read) == number
        with open(it.place / "mistake", "rb") as file:
            assert failure(file.read) == errno.EIO
        _, said = it.end(signal.SIGTERM)
        assert "read(node" in said and "KeyError: 'ETYPO'" in said and "errors.py" in said


def test_a_zip_is_a_directory(tmp_path):
    data = os.urandom(300_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/er/file", data)
        archive.writestr("top.txt", "top")
        archive.writestr("../outside", "no")
    with serving(tmp_path, EXAMPLES / "zipped.py", "ZipFilesystem", archive=str(tmp_path / "a.zip")) as it:
        found = {path: files for path, _, files in os.walk(it.place)}
        assert found == {
            str(it.place): ["top.txt"],
            str(it.place / "deep"): [],
            str(it.place / "deep/er"): ["file"],
        }
        assert (it.place / "deep/er/file").read_bytes() == data
        assert failure((it.place / "top.txt").write_text, "x") == errno.EROFS


def test_tables_of_a_database_are_files_and_follow_it(tmp_path):
    (tmp_path / "base").mkdir()
    path = tmp_path / "base" / "my.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE people (name, born)")
        database.execute("INSERT INTO people VALUES ('Ada', 1815)")
        with serving(tmp_path, EXAMPLES / "tables.py", "Tables", database=str(path)) as it:
            assert os.listdir(it.place) == ["people.csv"]
            assert (it.place / "people.csv").read_text() == "name,born\nAda,1815\n"
            database.execute("INSERT INTO people VALUES ('Alan', 1912)")
            expected = "name,born\nAda,1815\nAlan,1912\n"
            assert devices.wait_until(lambda: (it.place / "people.csv").read_text() == expected)
            assert failure((it.place / "nobody.csv").read_text) == errno.ENOENT


def test_a_directory_is_passed_through(tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    with serving(tmp_path, EXAMPLES / "passthrough.py", "Mirror", directory=str(share)) as it:
        (it.place / "d").mkdir()
        (it.place / "d" / "f").write_bytes(b"data" * 50_000)
        assert (share / "d" / "f").read_bytes() == b"data" * 50_000
        (share / "host").write_text("from the host")
        assert (it.place / "host").read_text() == "from the host"
        (it.place / "d" / "f").rename(it.place / "g")
        (it.place / "link").symlink_to("/etc/passwd")
        assert os.readlink(share / "link") == "/etc/passwd"
        with open(it.place / "g", "r+b") as file:
            (it.place / "g").unlink()
            assert os.fstat(file.fileno()).st_size == 200_000
            os.truncate(file.fileno(), 10)
            assert file.read() == b"datadatada"
        os.chmod(it.place / "host", 0o600)
        os.utime(it.place / "host", ns=(5, 7))
        found = (share / "host").stat()
        assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o600, 7)


def test_an_interrupted_reader_of_a_slow_source_cancels_the_method(tmp_path):
    with serving(tmp_path, EXAMPLES / "slow.py", "Slow", seconds="3600") as it:
        assert "3600" in os.listdir(it.place)
        assert (it.place / "0").read_text() == "0 seconds later\n"
        reader = subprocess.Popen(["cat", it.place / "3600"])
        syscall = Path(f"/proc/{reader.pid}/syscall")
        assert devices.wait_until(lambda: syscall.read_text().startswith("0 "))  # read(2)
        assert (it.place / "0").read_text() == "0 seconds later\n"
        reader.send_signal(signal.SIGINT)
        assert reader.wait(timeout=SECONDS) == -signal.SIGINT
        assert devices.wait_until(lambda: (it.place / "cancelled").stat().st_size == 1)


def test_a_guest_that_forgets_leaves_no_node_behind(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to have the kernel drop what it keeps by mounting again")
    with serving(tmp_path, EXAMPLES / "counted.py", "Endless") as it:
        for number in range(100):
            assert (it.place / str(number) / "deep" / "er").is_dir()
        assert int((it.place / "nodes").read_text()) == 301
        subprocess.run(["mount", "-i", "-o", "remount", str(it.place)], check=True)
        assert devices.wait_until(lambda: int((it.place / "nodes").read_text()) == 1)


def test_what_is_cached_for_ever_is_taken_back(tmp_path):
    with serving(tmp_path, EXAMPLES / "ticker.py", "Ticker", seconds="0.2") as it:
        for tick in range(2, 9):
            assert devices.wait_until(lambda tick=tick: int((it.place / "latest").read_text()) >= tick)
        assert devices.wait_until(lambda: not (it.place / "0").exists())
        assert devices.wait_until(lambda: "0" not in os.listdir(it.place))
    with serving(tmp_path, EXAMPLES / "ticker.py", "Ticker", seconds="3600") as it:
        assert (it.place / "latest").read_text() == "0\n"


def test_what_is_stored_is_read_without_asking(tmp_path):
    with serving(tmp_path, TREES, "Told") as it:
        with open(it.place / "f", "rb") as file:
            assert file.read(5) == b"first"
            os.utime(it.place / "f")  # has it stored
            assert devices.wait_until(lambda: os.pread(file.fileno(), 5, 0) == b"later")
        assert (it.place / "reads").stat().st_size == 1


def test_locks_ioctl_poll_and_copies_are_those_of_the_class(tmp_path):
    with serving(tmp_path, TREES, "Whole") as it:
        path = it.place / "f"
        contend = [sys.executable, "-c", CONTEND, str(path)]
        first, second = (os.open(path, os.O_RDWR) for _ in range(2))
        fcntl.lockf(first, fcntl.LOCK_EX)
        assert subprocess.run([*contend, "now"]).returncode == errno.EAGAIN
        waiting = subprocess.Popen([*contend, "wait"])
        os.close(first)  # ends the lock
        assert waiting.wait(timeout=SECONDS) == 0
        third = os.open(path, os.O_RDWR)
        fcntl.flock(third, fcntl.LOCK_EX)
        assert failure(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN
        os.close(third)
        fcntl.flock(second, fcntl.LOCK_EX)
        buffer = bytearray(b"abcdefgh")
        fcntl.ioctl(second, 3 << 30 | len(buffer) << 16 | 7, buffer)  # _IOWR
        assert buffer == b"hgfedcba"
        assert failure(fcntl.ioctl, second, 3 << 30 | len(buffer) << 16 | 1, buffer) == errno.ENOTTY
        assert os.copy_file_range(second, second, 3, 0, 6) == 3
        assert os.pread(second, 20, 0) == b"0123450129"
        poll = select.poll()
        poll.register(second, select.POLLIN)
        assert poll.poll(0) == []
        waker = threading.Timer(0.1, os.chmod, (path, 0o600))
        waker.start()
        assert poll.poll(SECONDS * 1000) == [(second, select.POLLIN)]
        waker.join()
        os.close(second)
        assert subprocess.check_output(["stat", "-c", "%W", path], text=True).strip() == "5"


CONTEND = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.lockf(fd, fcntl.LOCK_EX | (fcntl.LOCK_NB if sys.argv[2] == "now" else 0))
except OSError as error:
    sys.exit(error.errno)
"""


# --- what a call costs ---


def faults(pid: int) -> int:
    """Pages that a process touched for the first time, ever."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def sleeps(pid: int) -> dict[str, int]:
    """How often each thread of a process went to sleep, ever."""
    found = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{thread}/status").read_text()
        found[thread] = int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found


def test_data_that_a_method_returns_goes_to_the_kernel_from_where_it_lies(tmp_path):
    with serving(tmp_path, BENCHED, "Tree") as it, open(it.place / "data", "rb", buffering=0) as file:
        assert len(os.pread(file.fileno(), 4096, 0)) == 4096
        before = faults(it.worker)
        assert len(os.pread(file.fileno(), 1 << 20, 0)) == 1 << 20
        assert faults(it.worker) - before < 128  # a copy, to anywhere, would be 256 pages


@pytest.mark.parametrize("name", ["Tree", "Threaded", "Awaited"])
def test_a_call_is_one_read_and_one_write_and_puts_one_thread_to_sleep(tmp_path, name):
    calls = 300
    with serving(tmp_path, BENCHED, name) as it, open(it.place / "null", "rb", buffering=0) as file:

        def so_far() -> tuple[int, int, int]:
            text = Path(f"/proc/{it.worker}/io").read_text()
            read, written = (int(text.partition(f"{key}: ")[2].split()[0]) for key in ("syscr", "syscw"))
            return read, written, sum(sleeps(it.worker).values())

        os.fstat(file.fileno())
        before = so_far()
        for _ in range(calls):
            os.fstat(file.fileno())
        read, written, slept = (after - first for after, first in zip(so_far(), before, strict=True))
        # A little more where the machine is busy: a request that lay for a while calls another thread.  Handed to
        # another thread and back, each call would have two of each, and three sleeps.
        assert calls <= read < 1.5 * calls and calls <= written < 1.5 * calls
        assert slept < 1.5 * calls


def test_methods_that_wait_get_the_threads_they_need_and_then_one_reads_again(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with serving(tmp_path, TREES, "Waiting", fifo=str(tmp_path / "fifo")) as it:
        command = ["head", "-c", "7", it.place / "hang"]
        waiting = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
        for one in waiting:
            syscall = Path(f"/proc/{one.pid}/syscall")
            assert devices.wait_until(lambda syscall=syscall: syscall.read_text().startswith("0 "))  # read(2)
        for _ in range(3):
            subprocess.run(["stat", it.place / "other"], check=True, capture_output=True, timeout=SECONDS)
        with open(tmp_path / "fifo", "wb") as fifo:
            fifo.write(b"one")
        assert [one.communicate(timeout=SECONDS)[0] for one in waiting] == [b"at last"] * 3

        def awake() -> int:
            """How many threads 300 calls woke."""
            before = sleeps(it.worker)
            for _ in range(300):
                os.close(os.open(it.place / "other", os.O_RDONLY))
            return sum(after - before[thread] > 30 for thread, after in sleeps(it.worker).items())

        # The one that reads, and the one that looks whether another is needed.
        assert devices.wait_until(lambda: awake() <= 2)


# --- loading again ---

VERSIONED = """
import stat
from virtiofs import Attributes, PathFilesystem
from part import NAME

class Versioned(PathFilesystem):
    valid = 1e9
    def getattr(self, path, handle):
        if path == "/":
            return Attributes(stat.S_IFDIR | 0o755, nlink=2, valid=1e9)
        if path not in (f"/{NAME}", "/same"):
            raise FileNotFoundError(2, "no such file")
        return Attributes(stat.S_IFREG | 0o644, 1, valid=1e9)
    def readdir(self, path, handle):
        return [NAME, "same"]
    def read(self, path, handle, offset, size):
        return b"VERSION"[offset : offset + size] if path == "/same" else b"x"[offset:]
"""


def write(path: Path, text: str) -> None:
    """As editors do: the file is another one afterwards."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def says(it: Mounted, text: bytes) -> bool:
    """Whether /same holds this; not while one file system takes over from another, of which it was opened."""
    try:
        return (it.place / "same").read_bytes() == text
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return False


def test_a_mount_stays_while_its_class_is_loaded_again(tmp_path):
    module, part = tmp_path / "versioned.py", tmp_path / "part.py"
    module.write_text(VERSIONED.replace("VERSION", "1"))
    part.write_text("NAME = 'one'\n")
    with serving(tmp_path, module, "Versioned", "--reload") as it:
        worker = it.worker
        inside = os.open(it.place, os.O_RDONLY)
        assert os.listdir(inside) == ["one", "same"]
        assert (it.place / "same").read_bytes() == b"1"
        opened = os.open(it.place / "same", os.O_RDONLY)
        write(module, VERSIONED.replace("VERSION", "2"))
        assert devices.wait_until(lambda: says(it, b"2"), SECONDS)
        assert devices.wait_until(lambda: not alive(worker))
        # A mistake leaves the last one that was right; and what it imports is looked at, too.
        write(module, "this is no Python")
        write(part, "NAME = 'two'\n")
        write(module, VERSIONED.replace("VERSION", "3"))
        assert devices.wait_until(lambda: says(it, b"3") and os.listdir(it.place) == ["two", "same"], SECONDS)
        assert devices.wait_until(lambda: says(it, b"3"), SECONDS)
        assert failure((it.place / "one").stat) == errno.ENOENT
        # What was open belongs to a file that is no more.
        assert failure(os.fstat, opened) == errno.ESTALE
        os.close(opened)
        os.close(inside)
        status, said = it.end(signal.SIGTERM)
        assert status == 0 and "was loaded again" in said


def test_a_class_that_does_not_start_leaves_the_one_before_in_its_place(tmp_path):
    module = tmp_path / "versioned.py"
    (tmp_path / "part.py").write_text("NAME = 'one'\n")
    module.write_text(VERSIONED.replace("VERSION", "1"))
    with serving(tmp_path, module, "Versioned", "--reload") as it:
        stuck = "\n    def start(self, directory):\n        raise RuntimeError('not yet')\n"
        write(module, VERSIONED.replace("VERSION", "2") + stuck)
        assert said_on(it, "not yet")
        assert (it.place / "same").read_bytes() == b"1"
        write(module, VERSIONED.replace("VERSION", "3"))
        assert devices.wait_until(lambda: says(it, b"3"), SECONDS)


def said_on(it: Mounted, text: str) -> bool:
    """Wait for the command to say something."""
    assert it.process.stderr is not None
    return any(text in line for line in iter(it.process.stderr.readline, ""))


def test_the_next_front_end_gets_the_class_that_was_loaded_again(tmp_path):
    module = tmp_path / "versioned.py"
    (tmp_path / "part.py").write_text("NAME = 'one'\n")
    module.write_text(VERSIONED.replace("VERSION", "1"))

    def read() -> bytes:
        with Device.connect(running.socket) as device:
            return Tree(Session(device)).read_file("/same")

    with devices.start_ours(Path(f"{module}:Versioned"), ["--reload"]) as running:
        assert read() == b"1"
        write(module, VERSIONED.replace("VERSION", "2"))
        assert devices.wait_until(lambda: read() == b"2", SECONDS)


# --- the walls ---


def ask(place: Path, name: str) -> str:
    return (place / name).read_text()


def test_the_process_that_serves_sees_an_empty_root_and_no_file_of_the_host(tmp_path):
    with serving(tmp_path, TREES, "Curious") as it:
        assert ask(it.place, "root") == "[]"
        assert ask(it.place, "open") in ("'ENOENT'", "'EACCES'")
        assert ask(it.place, "make") in ("'ENOENT'", "'EACCES'", "'EPERM'", "'EROFS'")
        assert ask(it.place, "directory") == "''"
        status = Path(f"/proc/{it.worker}/status").read_text()
        assert "CapEff:\t0000000000000000" in status and "Seccomp:\t2" in status


def test_a_directory_that_is_needed_is_the_root(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("seen")
    with serving(tmp_path, TREES, "Curious", path="/file", needs=str(tmp_path / "there")) as it:
        assert ask(it.place, "root") == "['file']"
        assert ask(it.place, "open") == "'seen'"
        assert ask(it.place, "directory") == "'/'"


def test_the_network_is_there_for_those_who_need_it_only(tmp_path):
    ours = os.readlink("/proc/self/ns/net")
    for needs, same in (("", False), ("network", True)):
        with serving(tmp_path, TREES, "Curious", needs=needs) as it:
            assert (os.readlink(f"/proc/{it.worker}/ns/net") == ours) == same


@pytest.mark.parametrize(
    ("what", "words", "said"),
    [
        ("hello.py:Nobody", [], "has no class Nobody"),
        ("nothing.py:Hello", [], "there is no file"),
        ("hello.py:Hello", ["--option", "colour=red"], "Hello has no option 'colour'; it has none"),
        ("hello.py:Hello", ["--option", "colour"], "--option takes KEY=VALUE"),
        ("memory.py:MemoryFilesystem", ["--option", "size=big"], "--option size= takes a int, not 'big'"),
        ("zipped.py:ZipFilesystem", [], "ZipFilesystem needs --option archive=..."),
        ("zipped.py:ZipFilesystem", ["--option", "archive=/nowhere"], "can not be made: FileNotFoundError"),
        ("hello.py:Hello", ["--cache", "never"], "--cache is about directories"),
        ("../tests/fs/python_trees.py:Stuck", [], "it does not start: RuntimeError: no such thing"),
        (
            "../tests/fs/python_trees.py:Curious",
            ["--option", "needs=here"],
            "the absolute path of a directory",
        ),
        ("../tests/fs/python_trees.py:Curious", ["--option", "needs=/none"], "which is no directory"),
    ],
)
def test_what_can_not_be_served_is_said(tmp_path, what, words, said):
    command = [sys.executable, "-m", "virtiofs", "mount", f"{EXAMPLES}/{what}", str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode in (1, 2)
    assert said in done.stderr and "Traceback" not in done.stderr

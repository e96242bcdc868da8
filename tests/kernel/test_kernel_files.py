# SPDX-License-Identifier: Apache-2.0
"""Files as this host's programs see them through the kernel's FUSE client, served by two threads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from mounting import SECONDS, Mounted, mounted, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
MIB = 1 << 20

# Locks a file, waiting if it must, and says what came of it.
LOCKER = """
import errno, fcntl, os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(InterruptedError()))
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    getattr(fcntl, sys.argv[2])(fd, fcntl.LOCK_EX)
    os.write(1, b"locked")
except InterruptedError:
    os.write(1, b"interrupted")
except OSError as error:
    os.write(1, errno.errorcode.get(error.errno, str(error.errno)).encode())
"""


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("kernel"), "--threads", "2") as it:
        yield it


def test_what_is_written_there_is_read_here_and_the_other_way_round(it: Mounted) -> None:
    data = random.Random(1).randbytes(5 * MIB + 17)
    (it.place / "big").write_bytes(data)
    assert (it.share / "big").read_bytes() == data
    (it.share / "other").write_bytes(data[::-1])
    assert (it.place / "other").read_bytes() == data[::-1]


def test_reads_and_writes_at_odd_places_agree_with_a_file_in_memory(it: Mounted) -> None:
    chance = random.Random(2)
    model = bytearray()
    with open(it.place / "odd", "w+b", buffering=0) as file:
        for _ in range(60):
            offset = chance.randrange(len(model) + 1000)
            data = chance.randbytes(chance.choice((1, 4095, 70000, MIB + 1)))
            os.pwrite(file.fileno(), data, offset)
            model.extend(bytes(max(0, offset + len(data) - len(model))))
            model[offset : offset + len(data)] = data
            start, size = chance.randrange(len(model)), chance.choice((1, 5000, 2 * MIB))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), size, start) == model[start : start + size]
    assert (it.share / "odd").read_bytes() == model


def test_several_programs_at_once_get_each_its_own_data(it: Mounted) -> None:
    failures = []

    def work(number: int) -> None:
        chance = random.Random(number)
        for turn in range(20):
            data = chance.randbytes(chance.randrange(200000))
            path = it.place / f"w{number}-{turn}"
            path.write_bytes(data)
            if path.read_bytes() != data or (it.share / path.name).read_bytes() != data:
                failures.append(path.name)
            path.unlink()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_name_that_is_gone_leaves_the_open_file_whole(it: Mounted) -> None:
    with open(it.place / "victim", "w+b", buffering=0) as file:
        file.write(b"contents")
        (it.place / "victim").unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.pread(file.fileno(), 100, 0) == b"contents"
    (it.place / "one").write_text("one")
    (it.place / "two").write_text("two")
    with open(it.place / "two") as file:
        (it.place / "one").rename(it.place / "two")
        assert file.read() == "two"
    assert (it.place / "two").read_text() == "one"
    assert not (it.share / "one").exists()


def test_a_tree_that_is_removed_is_forgotten(it: Mounted) -> None:
    for number in range(20):
        (it.place / "tree" / str(number)).mkdir(parents=True)
        for name in "abc":
            (it.place / "tree" / str(number) / name).write_text(name)
    shutil.rmtree(it.place / "tree")
    assert not (it.share / "tree").exists()
    # The worker keeps no descriptor of what nobody knows any more.
    assert devices.wait_until(lambda: not deleted(it.worker), SECONDS)


def deleted(pid: int) -> list[str]:
    """What a process holds open that has no name any more."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return [path for path in found if path.endswith("(deleted)") and path.startswith("/")]


def test_a_shared_mapping_reads_and_writes_the_file(it: Mounted) -> None:
    (it.place / "mapped").write_bytes(bytes(3 * 4096))
    with open(it.place / "mapped", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[4096:4104] = b"contents"
        memory.flush()
        assert (it.share / "mapped").read_bytes()[4096:4104] == b"contents"
        os.pwrite(file.fileno(), b"CONTENTS", 8192)
        assert memory[8192:8200] == b"CONTENTS"


def test_ten_thousand_entries_are_listed_each_once(it: Mounted) -> None:
    directory = it.share / "many"
    directory.mkdir()
    names = {f"{number:05}" for number in range(10000)}
    (it.share / "empty").touch()
    for name in names:
        os.link(it.share / "empty", directory / name)
    for _ in range(2):
        listed = os.listdir(it.place / "many")
        assert len(listed) == 10000 and set(listed) == names


def test_attributes_and_kinds_of_files_are_the_hosts(it: Mounted) -> None:
    (it.place / "d").mkdir(mode=0o750)
    (it.place / "d" / "f").write_text("x")
    os.link(it.place / "d" / "f", it.place / "d" / "g")
    os.symlink("f", it.place / "d" / "l")
    os.setxattr(it.place / "d" / "f", "user.note", b"value")
    os.chmod(it.place / "d" / "f", 0o604)
    os.utime(it.place / "d" / "f", ns=(10**18 + 1, 10**18 + 2))
    for name in ("d", "d/f", "d/g"):
        seen, real = os.stat(it.place / name), os.stat(it.share / name)
        for field in ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
            assert getattr(seen, field) == getattr(real, field), (name, field)
    assert os.readlink(it.place / "d" / "l") == "f"
    assert os.getxattr(it.share / "d" / "g", "user.note") == b"value"
    space = os.statvfs(it.place)
    assert (space.f_blocks, space.f_namemax) == (os.statvfs(it.share).f_blocks, 255)


LOCKING = ("72", "73")  # fcntl and flock of x86-64, as /proc/PID/syscall shows them


@contextlib.contextmanager
def locker(path: Path, call: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that waits for a lock on a file: in the kernel, for the answer to its request."""
    process = subprocess.Popen([sys.executable, "-c", LOCKER, path, call], stdout=subprocess.PIPE)

    def waits() -> bool:
        proc = Path(f"/proc/{process.pid}")
        locks = proc.joinpath("syscall").read_text().split()[0] in LOCKING
        return locks and proc.joinpath("wchan").read_text() == "request_wait_answer"

    try:
        assert devices.wait_until(waits, SECONDS)
        os.statvfs(path)  # others are served meanwhile
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], SECONDS)[0]
    return os.read(process.stdout.fileno(), 100)


@pytest.mark.parametrize("call", ["lockf", "flock"])
def test_a_wait_for_a_lock_ends_when_it_is_released(it: Mounted, call: str) -> None:
    (it.place / "lock").touch()
    with open(it.place / "lock", "r+") as file:
        getattr(fcntl, call)(file, fcntl.LOCK_EX)
        with locker(it.place / "lock", call) as waiting:
            assert not select.select([waiting.stdout], [], [], 0)[0]
            getattr(fcntl, call)(file, fcntl.LOCK_UN)
            assert said(waiting) == b"locked"


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGKILL])
@pytest.mark.parametrize("call", ["lockf", "flock"])
def test_a_wait_for_a_lock_ends_with_a_signal(it: Mounted, call: str, number: signal.Signals) -> None:
    (it.place / "lock").touch()
    with open(it.place / "lock", "r+") as file:
        getattr(fcntl, call)(file, fcntl.LOCK_EX)
        with locker(it.place / "lock", call) as waiting:
            waiting.send_signal(number)
            if number == signal.SIGKILL:
                assert waiting.wait(SECONDS) == -signal.SIGKILL
            else:
                assert said(waiting) == b"interrupted"
        # What nobody waits for any more is not taken.
        getattr(fcntl, call)(file, fcntl.LOCK_UN)
        with open(it.place / "lock", "r+") as other:
            getattr(fcntl, call)(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_of_the_host_is_seen(it: Mounted) -> None:
    (it.place / "lock").touch()
    with open(it.share / "lock", "r+") as ours, open(it.place / "lock", "r+") as file:
        fcntl.flock(ours, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_it_ends_although_somebody_waits_for_a_lock_who_is_told_eio(tmp_path: Path) -> None:
    with mounted(tmp_path, "--threads", "2") as it:
        (it.share / "lock").touch()
        with open(it.share / "lock", "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with locker(it.place / "lock", "flock") as waiting:
                assert it.end(signal.SIGTERM)[0] == 0
                assert said(waiting) == b"EIO"


def test_read_only_refuses_every_change(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "file").write_text("contents")
    with mounted(tmp_path, "--readonly") as it:
        assert (it.place / "file").read_text() == "contents"
        for act in (
            lambda: (it.place / "file").write_text("x"),
            lambda: (it.place / "new").mkdir(),
            lambda: (it.place / "file").unlink(),
            lambda: os.chmod(it.place / "file", 0),
        ):
            with pytest.raises(OSError) as caught:
                act()
            assert caught.value.errno == errno.EROFS


def test_direct_io_and_a_written_cache_keep_the_data(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(MIB)
    with mounted(tmp_path, "--writeback", "--allow-direct-io", "--cache", "always") as it:
        with open(it.place / "kept", "wb") as file:
            for at in range(0, MIB, 1000):
                file.write(data[at : at + 1000])
        fd = os.open(it.place / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, MIB) as memory:
            memory[:] = data
            assert os.pwrite(fd, memory, 0) == MIB
            memory[:] = bytes(MIB)
            assert os.preadv(fd, [memory], 0) == MIB
            assert memory[:] == data
        os.close(fd)
        assert it.end(signal.SIGTERM)[0] == 0
        assert (it.share / "kept").read_bytes() == (it.share / "direct").read_bytes() == data

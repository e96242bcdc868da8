# SPDX-License-Identifier: Apache-2.0
"""A read-only share that is cached always, as the kernel's FUSE client uses it: without OPEN, FLUSH and RELEASE.

The kernel's messages travel over the queues of a daemon (`virtiofs mount --socket`), which counts them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from mounting import mounted, unavailable
from sharing import failure
from virtiofs.cli import ctl

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
MODE = ("--readonly", "--cache", "always")
SAMPLE = re.compile(r'virtiofs_requests_total\{share="virtiofs",operation="(\w+)"\} (\d+)')


class Place:
    """A share, where it is mounted, and what its daemon says."""

    def __init__(self, share: Path, seen: Path, daemon: devices.RunningDevice, control: Path):
        self.share = share
        self.seen = seen
        self.daemon = daemon
        self._control = str(control)
        self._before: Counter[str] = Counter()

    def requests(self) -> Counter[str]:
        """How many requests there were since this was last asked, by operation; FORGETs are left out."""
        text = str(ctl.ask(self._control, {"do": "metrics"})["result"])
        now = Counter({name: int(count) for name, count in SAMPLE.findall(text)})
        now = Counter({name: n for name, n in now.items() if "forget" not in name})
        since, self._before = now - self._before, now
        return since

    def status(self, name: str) -> int:
        return int(ctl.ask(self._control, {"do": "status"})["result"][0]["filesystem"][name])


@contextlib.contextmanager
def place(base: Path, *options: str, mode: tuple[str, ...] = MODE) -> Iterator[Place]:
    """base/share, which may be filled already, served by a daemon and mounted."""
    share = base / "share"
    share.mkdir(exist_ok=True)
    control = base / "control"
    with (
        devices.start_ours(share, [*mode, "--control", str(control), *options]) as daemon,
        mounted(base, socket=daemon.socket) as it,
    ):
        yield Place(share, it.place, daemon, control)


def fill(base: Path, count: int, size: int = 3000) -> dict[str, bytes]:
    """Files of about `size` bytes in base/share: their contents by name."""
    (base / "share").mkdir(exist_ok=True)
    chance = random.Random(count)
    files = {f"f{number:04}": chance.randbytes(size + number) for number in range(count)}
    for name, data in files.items():
        (base / "share" / name).write_bytes(data)
    return files


def read_all(place: Place, files: dict[str, bytes]) -> None:
    """As cat(1) does: Python's own open() asks each file whether it is a terminal, too."""
    for name, data in files.items():
        fd = os.open(place.seen / name, os.O_RDONLY)
        assert os.read(fd, len(data) + 1) == data
        os.close(fd)


def drop(path: Path) -> None:
    """Have the kernel forget a file's data."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_a_file_is_opened_read_and_closed_with_one_request_and_then_with_none(tmp_path: Path) -> None:
    files = fill(tmp_path, 50)
    with place(tmp_path) as it:
        it.requests()
        read_all(it, files)
        found = it.requests()
        assert found.pop("open") == 1  # answered with ENOSYS: the kernel asks no more
        assert found.pop("flush") == 1
        assert found.pop("getattr") <= 1  # of the root
        assert found == {"lookup": 50, "read": 50}
        read_all(it, files)
        assert not it.requests()


def test_a_share_whose_locks_are_shared_takes_four_times_as_many(tmp_path: Path) -> None:
    files = fill(tmp_path, 50)
    with place(tmp_path, "--locks", "shared") as it:
        read_all(it, files)
        assert devices.wait_until(lambda: it.status("handles") == 0, 20.0)
        found = it.requests()
        assert {found[name] for name in ("open", "read", "flush", "release")} == {50}


def test_many_files_are_kept_open_at_a_time_by_few_descriptors(tmp_path: Path) -> None:
    files = fill(tmp_path, 200, 9000)
    with place(tmp_path, "--max-open", "16") as it, contextlib.ExitStack() as stack:
        wrong: list[str] = []
        opened = {name: stack.enter_context(open(it.seen / name, "rb", buffering=0)) for name in files}

        def work(number: int) -> None:
            chance = random.Random(number)
            for name in chance.sample(list(files), len(files)):
                fd = opened[name].fileno()
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                at, size = chance.randrange(9000), chance.randrange(1, 9000)
                if os.pread(fd, size, at) != files[name][at : at + size]:
                    wrong.append(name)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert it.status("handles") == 0 and it.status("descriptors") <= 16
        assert it.status("evictions") > 100


def test_a_mapping_shows_the_file(tmp_path: Path) -> None:
    ((name, data),) = fill(tmp_path, 1, 300_000).items()
    with place(tmp_path) as it, open(it.seen / name, "rb") as file:
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            with mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ) as memory:
                assert memory[:] == data
                drop(it.seen / name)
                assert memory[123_456:234_567] == data[123_456:234_567]


def test_ten_thousand_entries_are_listed_each_once_without_opening(tmp_path: Path) -> None:
    names = {f"{number:05}" for number in range(10000)}
    directory = tmp_path / "share" / "many"
    directory.mkdir(parents=True)
    (tmp_path / "share" / "empty").touch()
    for name in names:
        os.link(tmp_path / "share" / "empty", directory / name)
    with place(tmp_path) as it:
        it.requests()
        for _ in range(3):
            listed = os.listdir(it.seen / "many")
            assert len(listed) == 10000 and set(listed) == names
        found = it.requests()
        assert found["opendir"] == 1 and found["releasedir"] == 0
        os.listdir(it.seen / "many")
        assert not it.requests()


def test_a_program_that_opens_for_writing_learns_it_when_it_writes(tmp_path: Path) -> None:
    """The kernel does not ask, and takes the mount for one that can be written."""
    ((name, data),) = fill(tmp_path, 1).items()
    with place(tmp_path) as it:
        assert (it.seen / name).read_bytes() == data
        fd = os.open(it.seen / name, os.O_RDWR)
        assert failure(os.write, fd, b"x") == errno.EROFS
        assert failure(os.ftruncate, fd, 0) == errno.EROFS
        assert failure(os.open, it.seen / name, os.O_WRONLY | os.O_TRUNC) == errno.EROFS
        assert failure(os.open, it.seen / "new", os.O_WRONLY | os.O_CREAT) == errno.EROFS
        assert failure(os.truncate, it.seen / name, 1) == errno.EROFS
        os.close(fd)
        assert (it.seen / name).read_bytes() == (it.share / name).read_bytes() == data


@pytest.mark.parametrize("call", ["lockf", "flock"])
def test_a_lock_is_the_guests_own_and_ends_with_its_file(tmp_path: Path, call: str) -> None:
    fill(tmp_path, 1)
    kind = fcntl.LOCK_EX if call == "flock" else fcntl.LOCK_SH
    with place(tmp_path) as it:
        with open(it.seen / "f0000") as file, open(it.share / "f0000", "r+") as ours:
            getattr(fcntl, call)(file, kind | fcntl.LOCK_NB)
            fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if call == "flock":
                with open(it.seen / "f0000") as other, pytest.raises(BlockingIOError):
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(it.seen / "f0000") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_holes_flags_and_sync_need_no_handle(tmp_path: Path) -> None:
    (tmp_path / "share" / "d").mkdir(parents=True)
    with open(tmp_path / "share" / "sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    with place(tmp_path) as it:
        with open(it.seen / "sparse", "rb") as file:
            fd = file.fileno()
            theirs = os.open(it.share / "sparse", os.O_RDONLY)
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                assert os.lseek(fd, 0, whence) == os.lseek(theirs, 0, whence)
            os.close(theirs)
            assert os.lseek(fd, 0, os.SEEK_END) == (1 << 20) + 3
            os.fsync(fd)
        directory = os.open(it.seen / "d", os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(directory)
        os.close(directory)


def test_a_mount_that_keeps_its_locks_flushes_only_what_was_open_for_writing(tmp_path: Path) -> None:
    (name,) = fill(tmp_path, 1)
    with place(tmp_path, mode=("--locks", "local")) as it:
        for _ in range(3):
            (it.seen / name).read_bytes()
        found = it.requests()
        assert found["open"] == 3 and found["flush"] == 0
        with open(it.seen / name, "ab"):
            pass
        assert it.requests()["flush"] == 1

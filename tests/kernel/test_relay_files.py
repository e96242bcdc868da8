# SPDX-License-Identifier: Apache-2.0
"""Files of any daemon, through the kernel's own FUSE client on this host: what the mount shows, the share holds."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import devices
from mounting import Mounted, mounted, unavailable
from sharing import failure
from virtiofs.fuse.mountpoint import mounts

pytestmark = [pytest.mark.skipif(bool(unavailable()), reason=unavailable()), pytest.mark.also_rust]

MIB = 1 << 20


class Share(NamedTuple):
    kind: str
    host: Path
    mount: Mounted

    @property
    def path(self) -> Path:
        return self.mount.place


@pytest.fixture(scope="module")
def share(running: devices.RunningDevice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Share]:
    with mounted(tmp_path_factory.mktemp("mount"), socket=running.socket) as mount:
        yield Share(running.kind, running.directory, mount)
        mount.process.terminate()
        assert mount.wait()[0] == 0
        assert not mounts(str(mount.place))


def test_small_and_large_files_are_the_same_on_both_sides(share):
    for size in (0, 1, 4095, 4096, 4097, 128 * 1024, MIB, MIB + 1, 9 * MIB + 13):
        data = random.Random(size).randbytes(size)
        (share.path / "written").write_bytes(data)
        assert (share.host / "written").read_bytes() == data
        (share.host / "made").write_bytes(data)
        assert (share.path / "made").read_bytes() == data
        os.unlink(share.path / "made")
        assert not (share.host / "made").exists()


def test_direct_reads_and_writes_of_any_size_carry_the_right_bytes(share):
    data = random.Random(3).randbytes(3 * MIB)
    fd = os.open(share.path / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    import mmap

    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        assert os.pwritev(fd, [buffer], 0) == len(data)
        buffer[:] = bytes(len(data))
        assert os.preadv(fd, [buffer], 0) == len(data)
        assert buffer[:] == data
        assert os.preadv(fd, [buffer], 4096) == len(data) - 4096
        assert buffer[: len(data) - 4096] == data[4096:]
    os.close(fd)
    assert (share.host / "direct").read_bytes() == data


def test_every_one_of_many_names_is_listed(share):
    (share.host / "many").mkdir()
    names = {f"a name of some length to fill more than one reply {number}" for number in range(1000)}
    for name in names:
        (share.host / "many" / name).touch()
    assert set(os.listdir(share.path / "many")) == names
    with os.scandir(share.path / "many") as entries:
        assert all(entry.stat().st_size == 0 for entry in entries)


def test_names_links_and_renames(share):
    path, host = share.path, share.host
    (path / "tree" / "below").mkdir(parents=True)
    (path / "tree" / "file").write_text("text")
    os.symlink("x" * 3000, path / "tree" / "long")
    assert os.readlink(path / "tree" / "long") == os.readlink(host / "tree" / "long") == "x" * 3000
    os.link(path / "tree" / "file", path / "tree" / "below" / "again")
    assert (host / "tree" / "below" / "again").stat().st_nlink == 2
    os.rename(path / "tree" / "file", path / "tree" / "below" / "moved")
    assert sorted(os.listdir(host / "tree" / "below")) == ["again", "moved"]
    assert failure(os.rmdir, path / "tree" / "below") == errno.ENOTEMPTY
    assert failure(os.stat, path / "tree" / ("n" * 256)) == errno.ENAMETOOLONG


def test_an_open_file_outlives_its_name(share):
    with (share.path / "gone").open("w+b") as file:
        file.write(b"before")
        file.flush()
        (share.path / "other").write_bytes(b"other")
        os.rename(share.path / "other", share.path / "gone")
        os.unlink(share.path / "gone")
        file.write(b" and after")
        file.seek(0)
        assert file.read() == b"before and after"
    assert not (share.host / "gone").exists()


def test_attributes_and_extended_attributes(share):
    path, host = share.path / "attributes", share.host / "attributes"
    path.touch()
    os.chmod(path, 0o640)
    os.utime(path, ns=(10**18 + 1, 10**18 + 2))
    os.truncate(path, 12345)
    found = host.stat()
    assert (found.st_mode & 0o7777, found.st_size) == (0o640, 12345)
    value = random.Random(1).randbytes(3000)
    os.setxattr(path, "user.large", value)
    os.setxattr(path, "user.small", b"v")
    assert os.getxattr(host, "user.large") == os.getxattr(path, "user.large") == value
    assert set(os.listxattr(path)) >= {"user.large", "user.small"}
    os.removexattr(path, "user.large")
    assert failure(os.getxattr, path, "user.large") == errno.ENODATA
    assert os.statvfs(path).f_blocks == os.statvfs(host).f_blocks


def test_holes_are_found_and_space_is_reserved(share):
    with (share.path / "holes").open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, 8192)
        assert (share.host / "holes").stat().st_size == 8192
        os.ftruncate(file.fileno(), 10 * MIB)
        os.pwrite(file.fileno(), b"data", 5 * MIB)
        with (share.host / "holes").open("rb") as truth:
            for start in (8192, 5 * MIB, 6 * MIB):
                expected = failure(os.lseek, truth.fileno(), start, os.SEEK_DATA)
                assert failure(os.lseek, file.fileno(), start, os.SEEK_DATA) == expected


def test_a_shared_mapping_reaches_the_file(share):
    import mmap

    (share.path / "mapped").write_bytes(bytes(8192))
    with (share.path / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapping:
        mapping[5000:5005] = b"hello"
        mapping.flush()
        assert (share.host / "mapped").read_bytes()[4998:5007] == b"\0\0hello\0\0"


def test_many_programs_at_once_get_their_own_bytes(share):
    (share.host / "parallel").mkdir()
    problems: list[str] = []

    def work(number: int) -> None:
        place = share.path / "parallel" / str(number)
        chance = random.Random(number)
        for turn in range(12):
            data = chance.randbytes(chance.choice((100, 5000, 300_000)))
            place.write_bytes(data)
            digest = hashlib.sha256((share.host / "parallel" / str(number)).read_bytes()).digest()
            if digest != hashlib.sha256(data).digest() or place.read_bytes() != data:
                problems.append(f"{number}, {turn}")
            os.rename(place, f"{place}.moved")
            os.rename(f"{place}.moved", place)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems
    assert len(os.listdir(share.host / "parallel")) == 8


def test_locks_of_the_mount_and_of_the_host_exclude_each_other(share):
    if share.kind != "ours":
        pytest.skip("it keeps no locks of the guest's on the host")
    (share.host / "locked").touch()
    with (share.path / "locked").open("r+b") as here, (share.host / "locked").open("r+b") as there:
        fcntl.flock(here, fcntl.LOCK_EX)
        assert failure(fcntl.flock, there, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN
        fcntl.flock(here, fcntl.LOCK_UN)
        fcntl.flock(there, fcntl.LOCK_EX)
        assert failure(fcntl.flock, here, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN

# SPDX-License-Identifier: Apache-2.0
"""What is known of a file beside its contents: extended attributes, times, space."""

from __future__ import annotations

import os
import subprocess
import time

import guest_kernel
import pytest
from shares import Place

pytestmark = pytest.mark.guest


def test_extended_attributes_of_the_guest_are_the_hosts(place: Place) -> None:
    (place.host / "f").write_text("x")
    assert place.steps(
        ("setxattr", "f", "user.first", "one"),
        ("setxattr", "f", "user.second", ""),
        ("getxattr", "f", "user.first"),
        ("setxattr", "f", "user.first", "1", "create"),
        ("setxattr", "f", "user.third", "3", "replace"),
        ("setxattr", "f", "user.first", "1", "replace"),
        ("getxattr", "f", "user.none"),
    ) == [None, None, b"one", "EEXIST", "ENODATA", None, "ENODATA"]
    assert sorted(os.listxattr(place.host / "f")) == ["user.first", "user.second"]
    assert os.getxattr(place.host / "f", "user.first") == b"1"
    assert os.getxattr(place.host / "f", "user.second") == b""


def test_extended_attributes_of_the_host_are_the_guests(place: Place) -> None:
    (place.host / "d").mkdir()
    large = os.urandom(3000)
    os.setxattr(place.host / "d", "user.large", large)
    os.setxattr(place.host / "d", "user.small", b"\0\xff")
    values = place.steps(
        ("listxattr", "d"),
        ("getxattr", "d", "user.large"),
        ("getxattr", "d", "user.small"),
        ("removexattr", "d", "user.small"),
        ("removexattr", "d", "user.small"),
        ("listxattr", "d"),
    )
    assert sorted(values[0] or ()) == [b"user.large", b"user.small"]  # type: ignore[arg-type]
    assert values[1:] == [large, b"\0\xff", None, "ENODATA", [b"user.large"]]
    assert os.listxattr(place.host / "d") == ["user.large"]


def test_attributes_with_a_meaning_for_the_hosts_security_are_refused(place: Place) -> None:
    (place.host / "f").write_text("x")
    before = os.listxattr(place.host / "f")
    for name in ("security.capability", "security.selinux", "security.evil"):
        assert place.do(("setxattr", "f", name, "x" * 20)) in ("EOPNOTSUPP", "EPERM", "EINVAL"), name
    assert os.listxattr(place.host / "f") == before
    assert place.do(("getxattr", "f", "security.evil")) in ("ENODATA", "EOPNOTSUPP")


def test_what_a_user_may_not_write_he_may_not_label(place: Place) -> None:
    (place.host / "f").write_text("x")
    (place.host / "f").chmod(0o644)
    assert place.steps(
        ("user", 1000, 1000), ("setxattr", "f", "user.a", "b"), ("setxattr", "f", "trusted.a", "b")
    ) == [None, "EACCES", "EPERM"]
    assert os.listxattr(place.host / "f") == []


def test_times_that_the_guest_sets_are_the_hosts(place: Place) -> None:
    place.output("touch -d '2001-02-03 04:05:06' f; mkdir d; touch -d '1969-12-31 23:59:00' d")
    assert (place.host / "f").stat().st_mtime == 981173106
    assert (place.host / "f").stat().st_atime == 981173106
    assert (place.host / "d").stat().st_mtime == -60


@pytest.mark.parametrize("time_ns", [1_600_000_000_123_456_789, -1_000_000_001, 0, 5_000_000_000_000_000_001])
def test_times_of_the_host_are_the_guests_to_the_nanosecond(place: Place, time_ns: int) -> None:
    (place.host / "f").write_text("x")
    os.utime(place.host / "f", ns=(0, time_ns))
    assert place.do(("changed", "f")) == (place.host / "f").stat().st_mtime_ns


def test_writing_moves_the_time_of_change_and_reading_does_not(place: Place) -> None:
    (place.host / "f").write_text("x")
    os.utime(place.host / "f", (1_000_000_000, 1_000_000_000))
    place.output("cat f")
    assert (place.host / "f").stat().st_mtime == 1_000_000_000
    place.output("echo y >>f")
    assert abs((place.host / "f").stat().st_mtime - time.time()) < 60


@guest_kernel.needs(6, 6, "statx over FUSE")
def test_the_time_of_birth_is_given(place: Place) -> None:
    (place.host / "f").write_text("x")
    os.utime(place.host / "f", (1_000_000_000, 1_000_000_000))
    shown = subprocess.run(
        ["stat", "-c", "%.9W", place.host / "f"], capture_output=True, text=True, check=True
    )
    seconds, _, nanoseconds = shown.stdout.strip().partition(".")
    assert place.do(("birth", "f")) == int(seconds) * 1_000_000_000 + int(nanoseconds)


def test_the_numbers_of_a_file_are_the_hosts(place: Place) -> None:
    (place.host / "f").write_bytes(bytes(100_000))
    (place.host / "g").hardlink_to(place.host / "f")
    os.chown(place.host / "f", 12, 34)
    (place.host / "f").chmod(0o614)
    status = (place.host / "f").stat()
    expected = [status.st_ino, status.st_size, status.st_blocks, 2, 12, 34, "614", int(status.st_mtime)]
    assert place.output("stat -c '%i %s %b %h %u %g %a %Y' f") == " ".join(map(str, expected))


def test_free_space_is_the_hosts(place: Place) -> None:
    host = os.statvfs(place.host)
    total, free, inodes, length = place.output("stat -f -c '%b %f %c %l' .").split()
    block = int(place.output("stat -f -c %S ."))
    assert int(total) * block == host.f_blocks * host.f_frsize
    assert abs(int(free) * block - host.f_bfree * host.f_frsize) < 1 << 30  # others write meanwhile
    assert (int(inodes), int(length)) == (host.f_files, 255)
    size = place.output("df -P /mnt | tail -1").split()
    assert size[0] == "data"
    assert int(size[1]) == host.f_blocks * host.f_frsize // 1024


def test_syncing_succeeds(place: Place) -> None:
    place.do(("open", "f", "f", "w,creat"), ("write", "f", "x"), ("fsync", "f"), ("syncfs", "f"))
    place.do(("open", "d", ".", "r,directory"), ("fsync", "d"))
    assert place.output("sync; echo done") == "done"

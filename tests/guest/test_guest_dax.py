# SPDX-License-Identifier: Apache-2.0
"""DAX in real guests: QEMU 11.1's generic device and a kernel that maps files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from probe import Step
from shares import Place, Served, directory_for_a_share, serve

import devices
from virtiofs.cli.ctl import ask
from virtiofs.vm.errors import MissingPart
from virtiofs.vm.kernel import newer_kernel
from virtiofs.vm.qemu import find_dax_qemu

pytestmark = pytest.mark.guest

PAGE, RANGE = 4096, 2 << 20
SIZES = (0, 1, 4095, 4096, 4097, RANGE - PAGE, RANGE, RANGE + PAGE, RANGE + 1, 64 << 20)
WINDOW = 32 << 20
DAEMON = ("--tag", "data", "--queues", "1", "--dax", "always", "--dax-window")


class Control:
    """What a daemon counts, by its control socket."""

    def __init__(self, path: str):
        self.path = path

    def requests(self, operation: str) -> int:
        """Requests of an operation served so far."""
        for line in str(ask(self.path, {"do": "metrics"})["result"]).splitlines():
            if line.startswith("virtiofs_requests_total{") and f'operation="{operation}"' in line:
                return int(line.rpartition(" ")[2])
        return 0

    def filesystem(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.path, {"do": "status"})["result"][0]["filesystem"]
        return found


@pytest.fixture(scope="module", autouse=True)
def dax_is_possible() -> None:
    try:
        find_dax_qemu()
    except MissingPart as missing:
        pytest.skip(str(missing))
    if newer_kernel() is None:
        pytest.skip("no newer kernel for a guest with DAX: run `make testbed` as root")


@contextlib.contextmanager
def guest_with(
    directory: Path, probe: Path, window: int, programs: Sequence[str] = ()
) -> Iterator[tuple[Served, Control]]:
    """A guest with a DAX window of a size, and with programs of the host's that are there."""
    with tempfile.TemporaryDirectory(prefix="virtiofs-control-") as place:
        control = Control(f"{place}/control")
        options = [*DAEMON, str(window), "--control", control.path]
        files = {path: os.path.realpath(path) for name in programs for path in files_of(name)}
        with serve(directory, probe, options, dax=True, cpus=2, memory="256M", extra_files=files) as served:
            yield served, control


def files_of(program: str) -> list[str]:
    """A program of the host's and the libraries it wants; none if it is not there."""
    path = shutil.which(program)
    if path is None:
        return []
    wanted = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
    return [path, *re.findall(r"(/\S+) \(0x", wanted)]


@pytest.fixture(scope="module")
def mapped(probe: Path) -> Iterator[tuple[Served, Control]]:
    with (
        directory_for_a_share() as directory,
        guest_with(directory, probe, WINDOW, ("sqlite3", "git")) as found,
    ):
        found[0].guest.run("dmesg -c >/dev/null")
        yield found


@pytest.fixture(scope="module")
def served(mapped: tuple[Served, Control]) -> Served:
    return mapped[0]


@pytest.fixture
def control(mapped: tuple[Served, Control]) -> Control:
    return mapped[1]


@pytest.fixture(scope="module", params=["inode", "always"])
def mount(request: pytest.FixtureRequest, served: Served) -> str:
    """How the guest maps files: those it is told to, or all of them."""
    served.guest.run(f"umount /mnt && mount -t virtiofs -o dax={request.param} data /mnt")
    assert f"dax={request.param}" in served.guest.run("grep ' /mnt ' /proc/mounts").text
    return str(request.param)


def test_files_of_every_size_are_whole(mount: str, place: Place, control: Control) -> None:
    """The largest is larger than the window."""
    for size in SIZES:
        (place.host / f"f{size}").write_bytes(os.urandom(size))
    reads = control.requests("read")
    sums = dict(line.split()[::-1] for line in place.output("md5sum *").splitlines())
    for size in SIZES:
        expected = hashlib.md5((place.host / f"f{size}").read_bytes()).hexdigest()
        assert sums[f"f{size}"] == expected, size
        assert (place.host / f"f{size}").stat().st_size == size
    if mount == "always":
        assert control.requests("read") == reads


def test_whole_pages_are_read_and_written_without_requests(
    mount: str, place: Place, control: Control
) -> None:
    (place.host / "f").write_bytes(bytes(RANGE))
    before = {name: control.requests(name) for name in ("read", "write", "setupmapping")}
    place.output(
        "dd if=/dev/zero bs=4096 count=512 2>/dev/null | tr '\\0' x | dd of=f bs=4096 conv=notrunc 2>/dev/null"
    )
    assert place.output("md5sum <f").split()[0] == hashlib.md5(b"x" * RANGE).hexdigest()
    assert (place.host / "f").read_bytes() == b"x" * RANGE
    assert control.requests("read") == before["read"]
    assert control.requests("write") == before["write"]
    assert control.requests("setupmapping") > before["setupmapping"]


def test_a_file_of_1_gib_is_whole(mount: str, place: Place, control: Control) -> None:
    """Mostly holes: a page in each range has data of its own."""
    with open(place.host / "f", "wb") as file:
        file.truncate(1 << 30)
        for at in range(0, 1 << 30, RANGE):
            os.pwrite(file.fileno(), os.urandom(PAGE), at + at // RANGE % 512 * PAGE)
    reads = control.requests("read")
    said = place.output("md5sum <f", timeout=300)
    with open(place.host / "f", "rb") as file:
        assert said.split()[0] == hashlib.file_digest(file, "md5").hexdigest()
    assert control.requests("read") == reads


def test_a_full_window_is_shared_by_files_that_are_mapped_at_once(mount: str, place: Place) -> None:
    """Programs hold mappings of three times what the window has, and load from all again and again."""
    count, pages = 6, WINDOW // 2 // PAGE
    content = [bytes([number]) * PAGE for number in range(count)]
    for number in range(count):
        (place.host / f"f{number}").write_bytes(content[number] * pages)
    names = [f"{number}" for number in range(count)]
    steps = [step for n in names for step in (("open", n, f"f{n}", "rw"), ("map", n, n, WINDOW // 2, "rw"))]
    chance = random.Random(1)
    touched = [(chance.randrange(count), chance.randrange(pages) * PAGE) for _ in range(100)]
    for number, at in touched:
        steps += [("store", f"{number}", at + 100, f"{at:9}"), ("load", f"{number}", at + 100, 10)]
    said = place.steps(*steps)[2 * count + 1 :: 2]
    for (number, at), value in zip(touched, said, strict=True):
        assert value == f"{at:9}".encode() + bytes([number])
        with open(place.host / f"f{number}", "rb") as file:
            assert os.pread(file.fileno(), 10, at + 100) == value


@pytest.mark.parametrize("mount", ["inode"], indirect=True)
def test_a_file_that_is_read_over_and_over_through_too_small_a_window_is_served_without_dax(
    mount: str, place: Place, control: Control
) -> None:
    (place.host / "f").write_bytes(bytes(2 * WINDOW))
    place.output("cat f f f >/dev/null")  # 16 ranges come back each time
    for _ in range(20):  # the guest asks again when it trusts what it knows no longer
        mapped, read = control.requests("setupmapping"), control.requests("read")
        place.output("cat f >/dev/null; sleep 1")
        if control.requests("read") > read:
            break
    place.output("echo 3 >/proc/sys/vm/drop_caches; cat f >/dev/null")
    mapped, read = control.requests("setupmapping"), control.requests("read")
    place.output("cat f >/dev/null")
    assert control.requests("setupmapping") == mapped


def test_stores_through_mmap_are_seen_at_once_by_the_host(mount: str, place: Place) -> None:
    (place.host / "f").write_bytes(bytes(4 * PAGE))

    def host_sees_and_answers() -> None:
        with open(place.host / "f", "r+b") as file:
            assert os.pread(file.fileno(), 5, PAGE + 10) == b"guest"
            os.pwrite(file.fileno(), b"host!", 2 * PAGE)

    assert (
        place.do(
            ("open", "f", "f", "rw"),
            ("map", "m", "f", 4 * PAGE, "rw"),
            ("store", "m", PAGE + 10, "guest"),
            ("wait", "stored"),
            ("load", "m", 2 * PAGE, 5),
            answers={"stored": host_sees_and_answers},
        )
        == b"host!"
    )


def test_appended_and_truncated_files_are_right_on_both_sides(mount: str, place: Place) -> None:
    """A storm: by the guest in whole pages and in parts, checked after each step."""
    (place.host / "f").write_bytes(b"a" * PAGE)
    script = """
    md5sum <f >/dev/null
    for n in 1 2 3 4 5 6 7 8 9 10 11 12; do
        dd if=/dev/zero bs=$((n * 1000)) count=1 2>/dev/null | tr '\\0' "$n" >>f
        [ $((n % 4)) = 0 ] && truncate -s 4096 f
        [ $((n % 5)) = 0 ] && truncate -s 20000 f
        md5sum <f
    done
    """
    said = [line.split()[0] for line in place.output(script).splitlines()]
    content, expected = b"a" * PAGE, []
    for n in range(1, 13):
        content += str(n).encode()[:1] * (n * 1000)
        if n % 4 == 0:
            content = content[:PAGE]
        if n % 5 == 0:
            content = content[:20000].ljust(20000, b"\0")
        expected.append(hashlib.md5(content).hexdigest())
    assert said == expected
    assert (place.host / "f").read_bytes() == content


def test_a_storm_of_cuts_by_the_host_kills_nobody(mount: str, place: Place, control: Control) -> None:
    """The guest loads what was behind the end once the daemon had its chance: zeros, until it knows the size."""
    content = b"a" * (2 * RANGE)
    (place.host / "f").write_bytes(content)
    sizes = [0, PAGE, RANGE + 5 * PAGE, 3 * PAGE + 7, RANGE, 5]
    cuts = control.filesystem()["dax_cuts"]

    def cut_and_wait(size: int, number: int) -> None:
        os.truncate(place.host / "f", size)
        assert devices.wait_until(lambda: control.filesystem()["dax_cuts"] > cuts + number, 60)

    def grow() -> None:
        with open(place.host / "f", "r+b") as file:
            file.write(content)

    steps: list[Step] = [
        ("open", "f", "f", "rw"),
        ("map", "m", "f", 2 * RANGE, "rw"),
        ("load", "m", RANGE, 1),
    ]
    answers: dict[str, Callable[[], object]] = {"grow": grow}
    expected = []
    for number, size in enumerate(sizes):
        answers[f"cut{number}"] = functools.partial(cut_and_wait, size, number)
        ends = (size + PAGE - 1) // PAGE * PAGE
        steps += [("wait", f"cut{number}"), ("load", "m", ends, 2), ("load", "m", 2 * RANGE - 2, 2)]
        steps += [
            ("wait", "grow"),
            ("open", f"again{number}", "f", "r"),
            ("load", "m", 0, 2),
            ("load", "m", 2 * RANGE - 2, 2),
        ]
        expected += [bytes(2), bytes(2), b"aa", b"aa"]
    said = place.steps(*steps, answers=answers)
    assert [value for value in said if isinstance(value, bytes)][1:] == expected
    place.guest.run("dmesg -c >/dev/null")  # Linux warns, once, of pages that vanish while programs map them


@pytest.mark.parametrize("mount", ["always"], indirect=True)
def test_a_storm_of_renames_on_both_sides_leaves_whole_files(mount: str, place: Place) -> None:
    """The host replaces a file by renaming over it, which is how to change one that guests read.

    Where that happens again while the guest walks to it, it may find no file (ESTALE), but never half of one.
    """
    for name in "ab":
        (place.host / name).write_bytes(name.encode() * RANGE)

    def replace() -> None:
        for number in range(50):
            (place.host / "new").write_bytes(b"%d" % (number % 10) * RANGE)
            os.rename(place.host / "new", place.host / "a")

    script = """
    for n in $(seq 12); do
        until sum=$(md5sum <a); do :; done 2>/dev/null; echo $sum
        mv b c; mv c b; cp b d; mv d e; cmp b e || echo differs
    done
    """
    thread = threading.Thread(target=replace)
    thread.start()
    said = place.output(script, timeout=300)
    thread.join()
    whole = {hashlib.md5(letter.encode() * RANGE).hexdigest() for letter in "a0123456789"}
    assert len(said.splitlines()) == 12
    assert {line.split()[0] for line in said.splitlines()} <= whole


@pytest.mark.parametrize("mount", ["always"], indirect=True)
def test_sqlite_works_on_mapped_files(mount: str, place: Place) -> None:
    """With its database and, in WAL mode, its index mapped by itself."""
    if shutil.which("sqlite3") is None:
        pytest.skip("no sqlite3 on this machine")
    script = """
    sqlite3 db "PRAGMA mmap_size = 16000000; PRAGMA page_size = 4096; PRAGMA journal_mode = WAL;
        CREATE TABLE t (n INTEGER PRIMARY KEY, text);
        WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 6000)
            INSERT INTO t SELECT n, hex(randomblob(50)) FROM c;
        PRAGMA wal_checkpoint(TRUNCATE); DELETE FROM t WHERE n % 2; VACUUM;" >/dev/null
    sqlite3 db "PRAGMA mmap_size = 16000000; PRAGMA journal_mode = DELETE;
        UPDATE t SET text = 'x' WHERE n % 4;" >/dev/null
    sqlite3 db "PRAGMA integrity_check; SELECT count(*), sum(n) FROM t; SELECT count(*) FROM t WHERE text = 'x';"
    """
    assert place.output(script, timeout=300).split() == ["ok", "3000|9003000", "1500"]
    checked = subprocess.run(
        ["sqlite3", place.host / "db", "PRAGMA integrity_check; SELECT count(*) FROM t;"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert checked.stdout.split() == ["ok", "3000"]


@pytest.mark.parametrize("mount", ["always"], indirect=True)
def test_git_works_on_mapped_files(mount: str, place: Place) -> None:
    """It maps its packs and its index."""
    if shutil.which("git") is None:
        pytest.skip("no git on this machine")
    for number in range(20):
        (place.host / f"file{number}").write_bytes(os.urandom(number * 3000))
    script = """
    export HOME=$PWD GIT_CONFIG_COUNT=4 GIT_CONFIG_KEY_0=user.name GIT_CONFIG_VALUE_0=x
    export GIT_CONFIG_KEY_1=user.email GIT_CONFIG_VALUE_1=x GIT_CONFIG_KEY_2=gc.auto GIT_CONFIG_VALUE_2=0
    export GIT_CONFIG_KEY_3=safe.directory GIT_CONFIG_VALUE_3='*'
    set -e
    git init -q . && git add . && git commit -qm one
    for n in 1 2 3; do echo $n >>file$n; git commit -qam $n; done
    git repack -adq && git fsck --strict 2>&1 && git status --porcelain && git log --format=%s
    """
    assert place.output(script, timeout=300).split() == ["3", "2", "1", "one"]
    checked = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", place.host, "fsck", "--strict"],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    status = ["git", "-c", "safe.directory=*", "-C", place.host, "status", "--porcelain"]
    assert subprocess.run(status, check=True, capture_output=True, text=True).stdout == ""


def test_unlinked_and_renamed_files_stay_readable(mount: str, place: Place) -> None:
    (place.host / "f").write_bytes(b"a" * RANGE)
    (place.host / "g").write_bytes(b"b" * RANGE)
    said = place.output("exec 3<f; mv g f; md5sum <&3; md5sum <f; rm f; exec 4<&3; ls")
    assert [line.split()[0] for line in said.splitlines()] == [
        hashlib.md5(letter * RANGE).hexdigest() for letter in (b"a", b"b")
    ]


def test_mappings_are_gone_after_unmounting_and_after_a_reset(
    mount: str, served: Served, place: Place, control: Control
) -> None:
    (place.host / "f").write_bytes(b"a" * RANGE)
    place.output("md5sum f")
    assert control.filesystem()["dax_mappings"]
    served.guest.run("cd / && umount /mnt")
    assert control.filesystem()["dax_mappings"] == 0
    served.guest.run("mount -t virtiofs -o dax=always data /mnt")
    place.output("md5sum f")
    served.guest.reboot()
    served.guest.run("dmesg -c >/dev/null")
    assert place.output("md5sum <f").split()[0] == hashlib.md5(b"a" * RANGE).hexdigest()
    served.guest.run(f"umount /mnt && mount -t virtiofs -o dax={mount} data /mnt")


def test_a_daemon_without_a_window_serves_the_same_device(probe: Path, served: Served) -> None:
    with (
        directory_for_a_share() as directory,
        serve(directory, probe, ["--tag", "data", "--queues", "1"], dax=True, memory="256M") as other,
    ):
        (directory / "f").write_bytes(b"a" * RANGE)
        assert hashlib.md5(b"a" * RANGE).hexdigest() in other.guest.run("md5sum /mnt/f").text


def test_two_guests_see_each_others_stores(probe: Path, served: Served, mount: str) -> None:
    place = served.host / "both"
    place.mkdir()
    (place / "f").write_bytes(bytes(RANGE))
    with guest_with(served.host, probe, 8 << 20) as (other, _):
        here, there = Place(served, "both"), Place(other, "both")

        def other_stores() -> None:
            assert (
                there.do(("open", "f", "f", "rw"), ("map", "m", "f", RANGE, "rw"), ("load", "m", 0, 3))
                == b"one"
            )
            there.do(("open", "f", "f", "rw"), ("map", "m", "f", RANGE, "rw"), ("store", "m", 100, "other"))

        assert (
            here.do(
                ("open", "f", "f", "rw"),
                ("map", "m", "f", RANGE, "rw"),
                ("store", "m", 0, "one"),
                ("wait", "stored"),
                ("load", "m", 100, 5),
                answers={"stored": other_stores},
            )
            == b"other"
        )
    shutil.rmtree(place)

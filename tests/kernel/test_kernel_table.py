# SPDX-License-Identifier: Apache-2.0
"""A mount with a metadata table: the kernel asks for nothing that it knows, and is told what others change."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import devices
import mounting
from holding import HoldingTree
from virtiofs.metadata import layout, registry

pytestmark = pytest.mark.skipif(bool(mounting.unavailable()), reason=mounting.unavailable())
SECONDS = 20.0


class Two(NamedTuple):
    """Two mounts of one directory of the host."""

    host: Path
    one: mounting.Mounted
    other: mounting.Mounted

    @property
    def places(self) -> tuple[Path, Path, Path]:
        return self.host, self.one.place, self.other.place


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with tempfile.TemporaryDirectory(prefix="virtiofs-table-") as place:
        base = Path(place)
        with (
            mounting.mounted(base, "--metadata-table") as one,
            mounting.mounted(base, "--metadata-table", name="other") as other,
        ):
            wait_for_watcher(one.share)
            yield Two(one.share, one, other)


def wait_for_watcher(directory: Path) -> None:
    """Until what the host does enters the table of a directory."""
    table = registry.attach(str(directory))
    assert devices.wait_until(lambda: table.watched, SECONDS)
    table.close()


def becomes(condition: Callable[[], object]) -> bool:
    return devices.wait_until(condition, SECONDS)


def costs_nothing(mount: mounting.Mounted, question: Callable[[], object]) -> bool:
    before = mount.requests()
    question()
    return mount.requests() == before


def test_what_is_known_is_not_asked_for_again(two: Two) -> None:
    tree = two.one.place / "known"
    for name in ("a", "b"):
        (tree / name).mkdir(parents=True)
        for number in range(50):
            (tree / name / str(number)).write_text("content")
    os.symlink("a/1", tree / "link")

    def look() -> None:
        for where, directories, names in os.walk(tree):
            for name in directories + names:
                os.stat(os.path.join(where, name))
            assert not os.path.exists(os.path.join(where, ".gitignore"))

    assert becomes(lambda: costs_nothing(two.one, look))
    assert len(os.listdir(tree / "a")) == 50


@pytest.mark.parametrize("writer", ["host", "other mount"])
def test_what_others_change_is_seen(two: Two, writer: str) -> None:
    """Each change twice: at first nothing is known of the file, then all."""
    theirs = (two.host if writer == "host" else two.other.place) / "changing"
    ours = two.one.place / "changing"
    theirs.mkdir()
    (theirs / "file").write_text("0")
    for turn in range(1, 6):
        assert becomes(lambda: (ours / "file").exists() and costs_nothing(two.one, (ours / "file").stat))
        (theirs / "file").write_text("x" * turn)
        assert becomes(lambda: (ours / "file").read_text() == "x" * turn)  # noqa: B023
        os.chmod(theirs / "file", 0o600 + turn)
        assert becomes(lambda: ours.joinpath("file").stat().st_mode & 0o777 == 0o600 + turn)  # noqa: B023
        os.rename(theirs / "file", theirs / "moved")
        assert becomes(lambda: sorted(os.listdir(ours)) == ["moved"])
        assert becomes(lambda: not (ours / "file").exists() and (ours / "moved").exists())
        os.mkdir(theirs / "directory")
        assert becomes((ours / "directory").is_dir)
        os.rmdir(theirs / "directory")
        assert becomes(lambda: not (ours / "directory").exists())
        os.symlink(str(turn), theirs / "link")
        assert becomes(lambda: os.path.islink(ours / "link") and os.readlink(ours / "link") == str(turn))  # noqa: B023
        os.unlink(theirs / "link")
        os.rename(theirs / "moved", theirs / "file")
    (theirs / "file").unlink()
    assert becomes(lambda: os.listdir(ours) == [])
    theirs.rmdir()


def test_a_directory_that_is_moved_by_others_can_be_used_under_its_new_name(two: Two) -> None:
    (two.other.place / "before").mkdir()
    (two.other.place / "before" / "file").write_text("1")
    assert becomes(lambda: (two.one.place / "before" / "file").exists())
    os.rename(two.other.place / "before", two.other.place / "after")
    assert becomes(lambda: not (two.one.place / "before").exists())
    (two.one.place / "after" / "more").write_text("2")
    os.mkdir(two.one.place / "after" / "below")
    assert sorted(os.listdir(two.host / "after")) == ["below", "file", "more"]


def test_a_directory_that_one_works_in_is_moved_by_others_and_stays(two: Two) -> None:
    (two.host / "here").mkdir()
    assert becomes(lambda: (two.one.place / "here").exists())
    fd = os.open(two.one.place / "here", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rename(two.host / "here", two.host / "there")
        assert becomes(lambda: not (two.one.place / "here").exists())
        with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "w") as file:
            file.write("x")
        assert (two.host / "there" / "file").read_text() == "x"
    finally:
        os.close(fd)


def test_a_mapped_page_shows_what_others_wrote(two: Two) -> None:
    import mmap

    (two.host / "mapped").write_bytes(b"a" * 8192)
    assert becomes(lambda: (two.one.place / "mapped").exists())
    with (
        open(two.one.place / "mapped", "rb") as file,
        mmap.mmap(file.fileno(), 8192, prot=mmap.PROT_READ) as page,
    ):
        assert page[:1] == b"a"
        with open(two.other.place / "mapped", "r+b") as writer:
            writer.write(b"b")
        assert becomes(lambda: page[:1] == b"b")
        with open(two.host / "mapped", "r+b") as writer:
            writer.write(b"c")
        assert becomes(lambda: page[:1] == b"c")


def test_a_reader_never_sees_an_older_state_again(two: Two) -> None:
    """One writer of the host, one at the other mount, each counts up in the size of its own file."""
    counts = 150
    stop = threading.Event()
    for name in ("host", "mount"):
        (two.host / name).write_bytes(b"")

    def write(directory: Path, name: str) -> None:
        with open(directory / name, "ab", buffering=0) as file:
            for _ in range(counts):
                file.write(b"x")

    seen = {"host": [0], "mount": [0]}
    assert becomes(lambda: (two.one.place / "host").exists() and (two.one.place / "mount").exists())
    writers = [
        threading.Thread(target=write, args=(two.host, "host")),
        threading.Thread(target=write, args=(two.other.place, "mount")),
    ]
    for writer in writers:
        writer.start()

    def look() -> bool:
        for name, sizes in seen.items():
            sizes.append(os.stat(two.one.place / name).st_size)
        return all(sizes[-1] == counts for sizes in seen.values())

    assert becomes(look)
    stop.set()
    for writer in writers:
        writer.join()
    for sizes in seen.values():
        assert sizes == sorted(sizes)


def test_everything_can_change_at_once(two: Two) -> None:
    """As when events were lost: the kernel is told to forget all that it knows."""
    path = two.one.place / "all"
    path.write_text("1")
    assert becomes(lambda: costs_nothing(two.one, path.stat))
    table = registry.attach(str(two.host))
    table.bump_everything()
    table.close()
    assert becomes(lambda: not costs_nothing(two.one, path.stat))
    assert path.read_text() == "1"


def test_git_finds_nothing_to_ask_and_misses_no_edit(two: Two) -> None:
    if subprocess.run(["git", "--version"], capture_output=True).returncode:
        pytest.skip("git is missing")
    repository = two.host / "repository"
    repository.mkdir()

    def git(where: Path, *words: str) -> str:
        options = [
            "-c",
            "safe.directory=*",
            "-c",
            "user.name=a",
            "-c",
            "user.email=b",
            "-c",
            "core.fsmonitor=",
        ]
        return subprocess.run(
            ["git", *options, *words], cwd=where, check=True, capture_output=True, text=True
        ).stdout

    git(repository, "init", "-q")
    for number in range(200):
        path = repository / f"d{number % 20}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(number))
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "all")
    ours = two.one.place / repository.name

    def cheap() -> bool:
        """Each file that git opens costs some; none of the 220 names does."""
        before = two.one.requests()
        assert git(ours, "status", "--porcelain") == ""
        return two.one.requests() - before < 110

    assert becomes(cheap)
    for number in range(10):
        (two.other.place / "repository" / f"d{number}" / f"f{number}").write_text("edited")
        expected = "".join(f" M d{n}/f{n}\n" for n in range(number + 1))
        assert becomes(lambda: git(ours, "status", "--porcelain") == expected)  # noqa: B023


def test_it_ends_by_a_signal_while_others_change_much(tmp_path: Path) -> None:
    with mounting.mounted(tmp_path, "--metadata-table") as mounted:
        (mounted.share / "file").write_text("")
        mounted.place.joinpath("file").read_text()
        processes = mounted.processes
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                (mounted.share / "file").write_text("x" * 100)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(200):
                (mounted.place / "file").read_text()
            status, said = mounted.end(signal.SIGTERM)
        finally:
            stop.set()
            writer.join()
        assert (status, "error" in said) == (0, False), said
        assert mounting.gone(mounted, processes)


def test_a_worker_that_is_killed_leaves_a_table_that_goes_on(tmp_path: Path) -> None:
    with mounting.mounted(tmp_path, "--metadata-table", name="other") as other:
        with mounting.mounted(tmp_path, "--metadata-table") as mounted:
            wait_for_watcher(mounted.share)
            (mounted.place / "file").write_text("1")
            processes = mounted.processes
            os.kill(mounted.worker, signal.SIGKILL)
            assert mounted.wait()[0] == 1
            assert mounting.gone(mounted, processes)
        assert becomes(lambda: (other.place / "file").read_text() == "1")
        (other.share / "file").write_text("22")
        assert becomes(lambda: (other.place / "file").read_text() == "22")


def test_writeback_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="--writeback"),
        mounting.mounted(tmp_path, "--metadata-table", "--writeback"),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount what is shared")
def test_a_worker_that_is_killed_while_the_kernel_waits_for_it_twice_leaves_nothing(tmp_path: Path) -> None:
    """A page is locked until a READ is answered, and the notification waits for the page."""
    (tmp_path / "share").mkdir()
    with HoldingTree(tmp_path / "share") as tree, mounting.mounted(tmp_path, "--metadata-table") as mounted:
        status = os.stat(mounted.share / "a")
        processes, worker = mounted.processes, mounted.worker
        reader = subprocess.Popen(
            ["cat", str(mounted.place / "a")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        held = tree.next("read")
        table = registry.attach(str(mounted.share))
        table.bump(status.st_dev, status.st_ino, layout.DATA)
        table.close()
        assert becomes(
            lambda: any("folio" in wait_of(worker, task) for task in os.listdir(f"/proc/{worker}/task"))
        )
        os.kill(worker, signal.SIGKILL)
        tree.answer(held)
        tree.let_go()
        assert mounted.wait()[0] == 1
        assert mounting.gone(mounted, processes)
        assert reader.wait(SECONDS) != 0


def wait_of(process: int, task: str) -> str:
    """What a thread waits for in the kernel."""
    return Path(f"/proc/{process}/task/{task}/wchan").read_text()

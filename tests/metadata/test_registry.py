# SPDX-License-Identifier: Apache-2.0
"""Coming and going: who makes the file, who removes it, and what the dead leave behind."""

import fcntl
import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from virtiofs.metadata import layout, registry
from virtiofs.metadata.table import MetadataError, Table

INODE = (7, 4711)


def attach(tmp_path: Path) -> Table:
    tree = tmp_path / "tree"
    tree.mkdir(exist_ok=True)
    return registry.attach(str(tree), 1 << 10, str(tmp_path))


def in_child(what: Callable[[], None]) -> int:
    """Run `what` in a process of its own, which then waits to be killed; its process id once it is done."""
    ready, done = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            what()
            os.write(done, b"1")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(done)
    said = os.read(ready, 1)
    os.close(ready)
    assert said == b"1"
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_last_one_out_removes_the_file(tmp_path: Path) -> None:
    one, two = attach(tmp_path), attach(tmp_path)
    assert registry.living(one) == [one.member, two.member]
    one.close()
    assert Path(two.path).exists() and registry.living(two) == [two.member]
    two.close()
    assert not Path(two.path).exists()


def test_a_table_that_all_died_with_starts_afresh(tmp_path: Path) -> None:
    def use() -> None:
        attach(tmp_path).begin(*INODE)

    kill(in_child(use))
    (path,) = tmp_path.glob("*.table")
    key = path.read_bytes()[40:56]
    table = attach(tmp_path)
    assert table.word(table.slot(*INODE)) == 0 and path.read_bytes()[40:56] != key
    table.close()


def test_what_a_killed_member_had_begun_is_ended_by_whoever_tidies(tmp_path: Path) -> None:
    table = attach(tmp_path)

    def use() -> None:
        other = attach(tmp_path)
        other.follow()
        other.begin(*INODE)
        other.begin(*INODE)
        other.begin(7, 1)

    pid = in_child(use)
    slot = table.slot(*INODE)
    assert table.word(slot) & layout.IN_PROGRESS == 2 and registry.tidy(table) == 0
    table.begin(*INODE)
    kill(pid)
    assert registry.tidy(table) == 3
    assert table.word(slot) & layout.IN_PROGRESS == 1  # ours
    table.end(*INODE, layout.DATA)
    assert table.word(slot) & layout.IN_PROGRESS == 0
    assert table.everything and table.followers() == []  # followers may have missed what it did
    assert table.taken() == [table.member]
    table.close()


@pytest.mark.parametrize("phase", [layout.BEGINNING, layout.ENDING])
@pytest.mark.parametrize("happened", [False, True])
def test_doubtful_phases_end_right_whether_or_not_the_word_was_changed(
    tmp_path: Path, phase: int, happened: bool
) -> None:
    table = attach(tmp_path)
    slot = table.slot(*INODE)

    def use() -> None:
        other = attach(tmp_path)
        if happened:
            other.begin(*INODE)
        os.pwrite(
            other.fd,
            struct.pack("<Q", slot << layout.PHASE_SHIFT | phase),
            layout.MEMBERS_AT + other.member * layout.MEMBER.size + layout.MEMBER.offset("pending"),
        )
        if happened:  # the entry that `begin` made lies elsewhere: one change, one entry
            for entry in range(1, layout.PENDING):
                at = layout.MEMBER.offset("pending") + 8 * entry
                os.pwrite(other.fd, bytes(8), layout.MEMBERS_AT + other.member * layout.MEMBER.size + at)

    pid = in_child(use)
    table.begin(*INODE)
    kill(pid)
    assert registry.tidy(table) == 0  # ours is in progress in the same slot: it can not be told apart
    assert len(table.taken()) == 2
    assert table.word(slot) & layout.IN_PROGRESS == 1 + happened
    table.end(*INODE, layout.DATA)
    assert registry.tidy(table) == 1 and len(table.taken()) == 1
    assert table.word(slot) & layout.IN_PROGRESS == 0
    table.close()


def test_attaching_tidies_and_numbers_of_the_dead_are_given_out_again(tmp_path: Path) -> None:
    table = attach(tmp_path)
    kill(in_child(lambda: attach(tmp_path).begin(*INODE)))
    other = attach(tmp_path)
    assert table.word(table.slot(*INODE)) & layout.IN_PROGRESS == 0
    third = attach(tmp_path)
    assert sorted({table.member, other.member, third.member}) == registry.living(table)
    for one in (table, other, third):
        one.close()


def test_a_mapping_alone_keeps_a_member_alive(tmp_path: Path) -> None:
    table = attach(tmp_path)
    seat = attach(tmp_path)

    def use() -> None:
        seat.keep_mapping_only()
        table.close()  # this process's copy
        seat.begin(*INODE)

    pid = in_child(use)
    number = seat.member
    seat.keep_mapping_only()
    seat.close()
    assert registry.living(table) == [table.member, number]
    assert registry.tidy(table) == 0
    kill(pid)
    assert registry.living(table) == [table.member] and registry.tidy(table) == 1
    table.close()


def test_the_watch_goes_to_one_at_a_time_and_passes_on_when_that_one_dies(tmp_path: Path) -> None:
    table = attach(tmp_path)
    assert not table.watched

    def use() -> None:
        other = attach(tmp_path)
        assert other.take_watch()
        other.announce_watch(True)

    pid = in_child(use)
    assert table.watched and not table.take_watch()
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(table.take_watch(block=True)))
    thread.start()
    kill(pid)
    thread.join(30)
    assert got == [True]
    registry.tidy(table)
    assert not table.watched
    table.announce_watch(True)
    assert table.watched
    table.close()


def test_workers_are_known_by_their_process_ids(tmp_path: Path) -> None:
    one, two = attach(tmp_path), attach(tmp_path)
    one.set_worker(11)
    two.set_worker(12)
    assert one.worker_pids() == {11, 12}
    two.set_worker(0)
    assert one.worker_pids() == {11}
    two.close()
    one.close()


def test_many_come_and_go_at_once(tmp_path: Path) -> None:
    def come_and_go() -> None:
        for number in range(30):
            table = attach(tmp_path)
            table.bump(7, number, layout.DATA)
            table.close()

    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            try:
                come_and_go()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert list(tmp_path.glob("*.table")) == []


def test_a_door_that_stays_shut_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = attach(tmp_path)
    monkeypatch.setattr(registry, "_PATIENCE", 0.05)
    with open(table.path, "r+b") as other:
        door = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, layout.LOCK_DOOR, 1, 0)
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, door)
        with pytest.raises(MetadataError, match=r"keeps .* locked"):
            attach(tmp_path)
    table.close()


def test_others_files_and_directories_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    status = tree.stat()
    path = tmp_path / f"{status.st_dev:x}-{status.st_ino:x}.table"
    path.symlink_to("/dev/null")
    with pytest.raises(MetadataError, match="cannot open"):
        attach(tmp_path)
    path.unlink()
    path.touch(0o666)
    path.chmod(0o666)
    with pytest.raises(MetadataError, match="this user's alone"):
        attach(tmp_path)
    path.unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(MetadataError, match="must be a directory that belongs to user 4242"):
        registry.attach(str(tree))


def test_the_runtime_directory_is_root_s_or_the_user_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert registry.runtime_directory() == "/run/virtiofs"  # a service and a shell agree
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert registry.runtime_directory() == f"{tmp_path}/virtiofs"
        assert (tmp_path / "virtiofs").stat().st_mode & 0o777 == 0o700

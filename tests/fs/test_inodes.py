# SPDX-License-Identifier: Apache-2.0
"""The inode store: a bounded pool of descriptors, and the ways back to a file that lost its place in it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import devices
from virtiofs.client.device import Device
from virtiofs.client.session import Session

ROOT = 1
POOL = 16
FILES = 200


@pytest.fixture(params=["never", "prefer"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small(way: str, tmp_path: Path) -> Iterator[tuple[Session, Path, devices.RunningDevice]]:
    """A share whose pool holds 16 descriptors."""
    with devices.start_ours(tmp_path, ["--inode-file-handles", way, "--max-open", str(POOL)]) as running:
        with Device.connect(running.socket) as device:
            yield Session(device), tmp_path, running
        assert running.alive, running.log


def worker_of(running: devices.RunningDevice) -> int:
    return running.worker


def descriptors(running: devices.RunningDevice) -> int:
    return len(os.listdir(f"/proc/{worker_of(running)}/fd"))


def gone(act) -> int:
    with pytest.raises(OSError) as caught:
        act()
    return caught.value.errno


def test_many_known_inodes_cost_few_descriptors_and_all_stay_reachable(small):
    session, host, running = small
    before = descriptors(running)
    nodes = {}
    for i in range(FILES):
        (host / f"f{i}").write_text("x" * i)
        nodes[i] = session.lookup(ROOT, f"f{i}").nodeid
    assert descriptors(running) <= before + POOL + 2
    for i, node in nodes.items():
        assert session.getattr(node).size == i
        handle = session.open(node).fh
        assert session.read(node, handle, 0, FILES) == b"x" * i
        session.release(node, handle)
    for node in nodes.values():
        session.forget(node)
    assert descriptors(running) <= before + 2


def test_files_deep_below_evicted_directories_stay_reachable(small):
    session, host, _ = small
    deep, path = ROOT, host
    for level in range(40):
        path = path / f"d{level}"
        path.mkdir()
        deep = session.lookup(deep, f"d{level}").nodeid
    (path / "f").write_text("deep")
    file = session.lookup(deep, "f").nodeid
    for i in range(3 * POOL):
        (host / f"x{i}").touch()
        session.lookup(ROOT, f"x{i}")
    assert session.getattr(file).size == 4


def evict(session: Session, host: Path) -> None:
    """Use so many other files that nothing unused keeps its descriptor."""
    for i in range(4 * POOL):
        (host / f"other{i}").touch()
        node = session.lookup(ROOT, f"other{i}").nodeid
        session.getattr(node)


def test_a_file_renamed_by_the_guest_is_still_the_same_node(small):
    session, host, _ = small
    (host / "a").write_text("content")
    (host / "d").mkdir()
    directory = session.lookup(ROOT, "d").nodeid
    node = session.lookup(ROOT, "a").nodeid
    session.rename(ROOT, "a", directory, "b")
    evict(session, host)
    assert session.getattr(node).size == 7
    assert session.lookup(directory, "b").nodeid == node


def test_two_files_exchanged_by_the_guest_keep_their_nodes(small):
    session, host, _ = small
    (host / "a").write_text("a")
    (host / "b").write_text("bb")
    a, b = session.lookup(ROOT, "a").nodeid, session.lookup(ROOT, "b").nodeid
    session.rename(ROOT, "a", ROOT, "b", 2)
    evict(session, host)
    assert (session.getattr(a).size, session.getattr(b).size) == (1, 2)
    assert (host / "a").read_text() == "bb"


def test_an_unlinked_file_that_the_guest_still_knows_can_be_used(small):
    session, host, _ = small
    (host / "a").write_text("content")
    node = session.lookup(ROOT, "a").nodeid
    handle = session.open(node).fh
    session.unlink(ROOT, "a")
    evict(session, host)
    attributes = session.getattr(node)
    assert (attributes.size, attributes.nlink) == (7, 0)
    assert session.read(node, handle, 0, 100) == b"content"
    session.release(node, handle)


@pytest.mark.parametrize("remove", ["unlink", "rename", "rmdir"])
def test_what_was_only_looked_up_outlives_its_removal_by_the_guest(small, remove):
    """As under a program whose working directory is removed, or that holds a file by O_PATH."""
    session, host, _ = small
    if remove == "rmdir":
        (host / "a").mkdir()
    else:
        (host / "a").touch()
    (host / "other").touch()
    node = session.lookup(ROOT, "a").nodeid
    if remove == "rename":
        session.rename(ROOT, "other", ROOT, "a")
    else:
        getattr(session, remove)(ROOT, "a")
    assert session.getattr(node).nlink == 0


def test_removed_files_that_the_guest_never_forgets_do_not_use_up_the_pool(small, way):
    if way == "never":
        pytest.skip("without handles a removed file has no way back but its descriptor")
    session, host, running = small
    before = descriptors(running)
    for i in range(4 * POOL):
        (host / f"a{i}").touch()
        session.lookup(ROOT, f"a{i}")
        session.unlink(ROOT, f"a{i}")
    (host / "b").write_text("content")
    assert session.getattr(session.lookup(ROOT, "b").nodeid).size == 7
    assert descriptors(running) <= before + POOL + 2


def test_a_node_is_never_another_file_that_took_its_name_meanwhile(small):
    """Status and handle are taken by name, one after the other: the name may change its meaning in between."""
    session, host, _ = small
    names = [host / "a", host / "b", host / "c"]
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for source, target in zip(names, [names[2], *names[:2]], strict=True):
                source.rename(target)

    (host / "a").write_text("a")
    (host / "b").write_text("bb")
    sizes = {(host / "a").stat().st_ino: 1, (host / "b").stat().st_ino: 2}
    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(1000):
            try:
                entry = session.lookup(ROOT, "a")
            except FileNotFoundError:
                continue
            assert entry.attr.size == sizes[entry.attr.ino]
            with contextlib.suppress(OSError):
                attributes = session.getattr(entry.nodeid)
                assert (attributes.ino, attributes.size) == (entry.attr.ino, entry.attr.size)
            session.forget(entry.nodeid)
    finally:
        stop.set()
        thread.join()
    for name in ("a", "b", "c"):
        if (host / name).exists():
            entry = session.lookup(ROOT, name)
            assert session.getattr(entry.nodeid).size == sizes[entry.attr.ino]


def test_a_file_replaced_by_the_guest_can_still_be_used(small):
    session, host, _ = small
    (host / "old").write_text("old contents")
    (host / "new").write_text("new")
    node = session.lookup(ROOT, "old").nodeid
    handle = session.open(node).fh
    session.rename(ROOT, "new", ROOT, "old")
    evict(session, host)
    assert session.read(node, handle, 0, 100) == b"old contents"
    assert session.getattr(node).nlink == 0
    assert session.lookup(ROOT, "old").nodeid != node


def test_a_file_that_vanished_on_the_host_is_estale_not_enoent(small):
    session, host, _ = small
    (host / "a").touch()
    node = session.lookup(ROOT, "a").nodeid
    evict(session, host)
    (host / "a").unlink()
    assert gone(lambda: session.open(node)) == errno.ESTALE


def test_another_file_under_the_old_name_is_not_taken_for_the_old_one(small):
    session, host, _ = small
    (host / "a").write_text("first")
    node = session.lookup(ROOT, "a").nodeid
    evict(session, host)
    (host / "a").unlink()
    (host / "a").write_text("second")
    assert gone(lambda: session.open(node)) == errno.ESTALE
    again = session.lookup(ROOT, "a").nodeid
    assert again != node
    assert session.getattr(again).size == 6


def test_a_file_moved_on_the_host_is_found_by_its_handle_or_is_estale(small, way):
    session, host, _ = small
    (host / "a").write_text("content")
    node = session.lookup(ROOT, "a").nodeid
    evict(session, host)
    (host / "a").rename(host / "b")
    if way == "never":
        assert gone(lambda: session.getattr(node)) == errno.ESTALE
        assert session.lookup(ROOT, "b").nodeid == node
    assert session.getattr(node).size == 7


def test_hard_links_are_one_node(small):
    session, host, _ = small
    (host / "a").write_text("x")
    os.link(host / "a", host / "b")
    node = session.lookup(ROOT, "a").nodeid
    assert session.lookup(ROOT, "b").nodeid == node
    session.unlink(ROOT, "b")
    evict(session, host)
    assert session.getattr(node).nlink == 1


def test_open_handles_end_with_the_session(small):
    session, host, running = small
    (host / "a").touch()
    before = descriptors(running)
    node = session.lookup(ROOT, "a").nodeid
    handles = [session.open(node).fh for _ in range(100)]
    assert descriptors(running) >= before + 100
    session.destroy()
    assert descriptors(running) <= before
    again = Session(session.device)
    assert gone(lambda: again.read(ROOT, handles[0], 0, 1)) == errno.EBADF
    assert gone(lambda: again.getattr(node)) == errno.ESTALE


def test_too_many_open_files_are_an_error_and_listings_stay_whole(tmp_path):
    """At the limit a program sees ENFILE; a directory never seems to have lost entries."""
    for i in range(50):
        (tmp_path / f"f{i:02}").touch()
    with devices.start_ours(tmp_path, ["--max-open", "16", "--rlimit-nofile", "1400"]) as running:
        with Device.connect(running.socket) as device:
            session = Session(device)
            node = session.lookup(ROOT, "f00").nodeid
            opened = []
            with pytest.raises(OSError) as caught:
                for _ in range(2000):
                    opened.append(session.open(node).fh)
            assert caught.value.errno == errno.ENFILE
            assert len(opened) > 50
            session.release(node, opened.pop())
            directory = session.opendir(ROOT).fh
            names = {entry.name for entry in session.readdirplus(ROOT, directory, size=65536)}
            assert names == {b".", b".."} | {b"f%02d" % i for i in range(50)}
        assert running.alive

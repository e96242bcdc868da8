# SPDX-License-Identifier: Apache-2.0
"""A connection to a device: features, memory, layouts of requests, stopping and starting, and what goes wrong."""

import copy
import os
import random
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import devices
from virtiofs.client.device import Device, DeviceGone, Layout
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.vhostuser.messages import PROTOCOL_F_RESET_DEVICE
from virtiofs.vhostuser.transport import TransportError
from virtiofs.virtqueue.driver import QueueFull

MIB = 1 << 20


@pytest.fixture(scope="module")
def share(running):
    """The module's device, connected once for all tests that leave it as it was."""
    with Device.connect(running.socket) as device:
        yield Session(device), running.directory


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"event_idx": False},
        {"indirect": False},
        {"event_idx": False, "indirect": False, "queue_size": 64},
        {"regions": 3},
        {"queue_size": 1024, "memory": 128 * MIB},
        {"queue_size": 16},
    ],
    ids=str,
)
def test_every_kind_of_ring_and_memory_works(fresh, options):
    data = random.Random(5).randbytes(300_000)
    (fresh.directory / "f").write_bytes(data)
    with Device.connect(fresh.socket, **options) as device:
        assert device.event_idx == options.get("event_idx", True)
        assert device.indirect == options.get("indirect", True)
        tree = Tree(Session(device))
        assert tree.read_file("f") == data
        tree.write_file("g", data)
        assert (fresh.directory / "g").read_bytes() == data


def test_every_request_queue_is_served(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 50)
    with (
        devices.start("ours", tmp_path, ["--queues", "4"]) as running,
        Device.connect(running.socket, queues=4) as device,
    ):
        assert device.queue_count == 4
        sessions = [Session(device)]
        for queue in (2, 3, 4):
            session = copy.copy(sessions[0])  # the same FUSE session, carried by another queue
            session.queue = queue
            sessions.append(session)
        waiting = [(session, session.begin("lookup", 1, ["f"])) for session in sessions for _ in range(20)]
        nodes = {session.finish(pending, "lookup").nodeid for session, pending in reversed(waiting)}
        assert len(nodes) == 1
        sessions[2].forget(nodes.pop(), 80)


def test_the_config_space_names_the_share(fresh):
    with Device.connect(fresh.socket) as device:
        if fresh.kind == "ours":
            assert device.tag == "virtiofs"
            assert device.queue_count == min(len(os.sched_getaffinity(0)), 8)
        else:
            assert device.config is None


def splits(size):
    return st.lists(st.integers(0, size), max_size=12, unique=True).map(sorted)


layouts = st.builds(Layout, splits(120), splits(220), st.sampled_from([1, 2, 16, 4096]), st.integers(0, 17))


@given(layout=layouts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_requests_may_be_split_anywhere(share, layout):
    """Oracle: the same replies whatever the layout, as the specification leaves the framing open."""
    session, directory = share
    (directory / "split").write_bytes(b"0123456789" * 20)
    session.layout = None
    node = session.lookup(1, "split").nodeid
    handle = session.open(node, os.O_RDWR).fh
    session.layout = layout
    assert session.lookup(1, "split").nodeid == node
    assert session.getattr(node).size == 200
    assert session.read(node, handle, 5, 100) == (b"0123456789" * 20)[5:105]
    assert session.write(node, handle, 50, b"written in pieces") == 17
    assert (directory / "split").read_bytes()[50:67] == b"written in pieces"
    session.layout = None
    session.release(node, handle)
    session.forget(node, 2)


def test_many_requests_may_be_in_flight(share):
    session, directory = share
    for i in range(200):
        (directory / f"many{i}").write_bytes(b"x" * i)
    waiting = [session.begin("lookup", 1, [f"many{i}"]) for i in range(200)]
    nodes = [session.finish(pending, "lookup") for pending in reversed(waiting)]
    assert [entry.attr.size for entry in nodes] == list(reversed(range(200)))
    session.batch_forget((entry.nodeid, 1) for entry in nodes)


def test_a_full_queue_is_told_and_memory_is_given_back(share):
    session, _ = share
    device = session.device
    free = device.arena.free
    held = []
    # With more than the queue holds at once, `begin` refuses at the latest when the device is slower than we are.
    for _ in range(3000):
        try:
            held.append(session.begin("getattr", 1))
        except QueueFull:
            break
    for pending in held:
        session.finish(pending, "getattr")
    assert device.arena.free == free
    assert device.queues[1].ring.in_flight == 0


def test_a_queue_stops_and_starts_where_it_was(share):
    session, _ = share
    device = session.device
    for _ in range(5):
        session.getattr(1)
        base = device.stop_queue(1)
        assert base == device.queues[1].ring.next_avail
        pending = session.begin("getattr", 1)  # waits in the ring until the device looks again
        assert not pending.done
        device.start_queue(1, base)
        assert session.finish(pending, "getattr").attr.nlink >= 2


def test_a_reset_ends_the_session_and_the_device_serves_on(fresh):
    (fresh.directory / "f").write_bytes(b"x")
    with Device.connect(fresh.socket) as device:
        if not device.front_end.protocol_features & PROTOCOL_F_RESET_DEVICE:
            pytest.skip("this device does not offer RESET_DEVICE")
        first = Session(device)
        node = first.lookup(1, "f").nodeid
        assert first.getattr(node).size == 1
        device.reset()
        second = Session(device)
        with pytest.raises(OSError, match=r"Stale|Bad"):
            second.getattr(node)
        assert second.lookup(1, "f").attr.size == 1


def test_a_second_connection_starts_afresh(fresh):
    if fresh.kind == "c":
        pytest.skip("it exits when its front end goes")
    (fresh.directory / "f").write_bytes(b"x")
    for _ in range(3):
        with Device.connect(fresh.socket) as device:
            assert Tree(Session(device)).listdir() == ["f"]
        assert fresh.alive


def test_a_front_end_that_vanishes_does_no_harm(fresh):
    if fresh.kind == "c":
        pytest.skip("it exits when its front end goes")
    device = Device.connect(fresh.socket)
    session = Session(device)
    for _ in range(50):
        session.begin("getattr", 1)
    device.disconnect()
    with Device.connect(fresh.socket) as again:
        assert Session(again).getattr(1).nlink >= 2


def test_no_reply_in_time_names_the_request(share):
    session, _ = share
    device = session.device
    base = device.stop_queue(1)
    device.timeout = 0.05
    with pytest.raises(TimeoutError, match=r"no reply to getattr of node 1 \(unique \d+\) on queue 1"):
        session.getattr(1)
    device.timeout = 10
    device.start_queue(1, base)


def test_a_device_that_dies_is_told_at_once(fresh):
    with Device.connect(fresh.socket) as device:
        session = Session(device)
        device.stop_queue(1)
        pending = session.begin("getattr", 1)
        threading.Timer(0.1, fresh.process.kill).start()
        with pytest.raises(DeviceGone, match="getattr of node 1"):
            session.finish(pending, "getattr")


def test_nobody_listening_is_a_clear_error(tmp_path):
    with pytest.raises(TransportError, match="start the device"):
        Device.connect(str(tmp_path / "none"))


def test_a_peer_that_speaks_something_else_is_a_clear_error(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer():
            with listener.accept()[0] as peer:
                peer.recv(100)
                peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Exception, match=r"GET_FEATURES|version") as caught:
            Device.connect(path)
        assert type(caught.value).__name__ == "FrontEndError"
        thread.join()


def test_too_little_memory_is_refused(fresh):
    with pytest.raises(ValueError, match="give more memory"):
        Device.connect(fresh.socket, memory=1 << 16)

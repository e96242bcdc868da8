# SPDX-License-Identifier: Apache-2.0
"""Sockets: whole messages with their descriptors, peers that stop half way, and who may listen where."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest
from recording_device import open_fds, same_file

from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.payloads import MemoryRegion, ProtocolError
from virtiofs.vhostuser.transport import MAX_PATH, Connection, TransportError, adopt, connect, listen


@pytest.fixture
def pair():
    """A raw socket and the `Connection` at its other end."""
    before = open_fds()
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    with ours, Connection(theirs, message_seconds=0.05) as connection:
        yield ours, connection
    assert open_fds() == before


def test_messages_come_with_their_own_descriptors(pair):
    ours, connection = pair
    first, second = os.memfd_create("first"), os.memfd_create("second")
    region = MemoryRegion(1, 2, 3, 4)
    socket.send_fds(ours, [m.encode(m.ADD_MEM_REG, region)], [first])
    ours.sendall(m.encode(m.SET_OWNER))
    socket.send_fds(ours, [m.encode(m.ADD_MEM_REG, region)], [second, first])
    expected = [[first], [], [second, first]]
    for fds in expected:
        received = connection.receive()
        assert received is not None
        header, payload, got = received
        assert (header.size, len(got)) == (len(payload), len(fds))
        for one, other in zip(got, fds, strict=True):
            assert same_file(one, other)
            assert not os.get_inheritable(one)
            os.close(one)
    os.close(first)
    os.close(second)


def test_what_is_sent_arrives_whole_with_its_descriptors(pair):
    ours, connection = pair
    fd = os.memfd_create("sent")
    message = m.encode(m.GET_SHMEM_CONFIG, (4096,), m.REPLY_FLAGS)
    connection.send(message, [fd])
    data, fds, _, _ = socket.recv_fds(ours, 4096, 4)
    assert data == message
    assert same_file(fds[0], fd)
    os.close(fds[0])
    os.close(fd)


def test_a_message_in_pieces_is_put_together(pair):
    ours, connection = pair
    message = m.encode(m.ADD_MEM_REG, MemoryRegion(1, 2, 3, 4))

    def dribble() -> None:
        for byte in message:
            ours.sendall(bytes([byte]))

    sender = threading.Thread(target=dribble)
    sender.start()
    received = Connection.receive(connection)
    sender.join()
    assert received is not None
    assert received[1] == message[m.HEADER_SIZE :]


def test_the_end_between_two_messages_is_clean(pair):
    ours, connection = pair
    ours.sendall(m.encode(m.SET_OWNER))
    ours.shutdown(socket.SHUT_WR)
    assert connection.receive() is not None
    assert connection.receive() is None


@pytest.mark.parametrize("size", [1, 11, 12, 19])
def test_the_end_inside_a_message_is_an_error(pair, size):
    ours, connection = pair
    ours.sendall(m.encode(m.SET_FEATURES, 0)[:size])
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(ProtocolError, match="in the middle of a message"):
        connection.receive()


@pytest.mark.parametrize("size", [1, 11, 12, 19])
def test_a_peer_that_stops_inside_a_message_does_not_hang_us(pair, size):
    ours, connection = pair
    fd = os.memfd_create("half")
    socket.send_fds(ours, [m.encode(m.SET_FEATURES, 0)[:size]], [fd])
    os.close(fd)
    begin = time.monotonic()
    with pytest.raises(ProtocolError, match=r"stopped in the middle of a message for 0\.05 s"):
        connection.receive()
    assert time.monotonic() - begin < 5


def test_waiting_for_a_message_ends_when_it_is_told_to(pair):
    ours, connection = pair
    for wait in (0, 0.01):
        with pytest.raises(TimeoutError):
            connection.receive(wait=wait)
    ours.sendall(m.encode(m.SET_OWNER))
    assert connection.receive(wait=0) is not None


def send_without_end(connection: Connection) -> None:
    while True:
        connection.send(m.encode(m.GET_SHMEM_CONFIG, (), m.REPLY_FLAGS))


def test_a_peer_that_does_not_read_does_not_hang_us(pair):
    _, connection = pair
    with pytest.raises(ProtocolError, match="does not read"):
        send_without_end(connection)


def test_sending_to_a_peer_that_is_gone_is_a_connection_error(pair):
    ours, connection = pair
    ours.close()
    with pytest.raises(ConnectionError):
        connection.send(m.encode(m.SET_OWNER))
    assert connection.receive() is None


def test_a_header_that_makes_no_sense_closes_what_came_with_it(pair):
    ours, connection = pair
    fd = os.memfd_create("spare")
    socket.send_fds(ours, [b"\0" * 12], [fd, fd])
    os.close(fd)
    with pytest.raises(ProtocolError, match="version 0"):
        connection.receive()


def test_descriptors_beside_a_later_byte_are_closed(pair):
    ours, connection = pair
    message = m.encode(m.SET_FEATURES, 0)
    fd = os.memfd_create("late")
    ours.sendall(message[:14])
    socket.send_fds(ours, [message[14:]], [fd])
    os.close(fd)
    received = connection.receive()
    assert received is not None
    assert received[2] == []


# --- listening ---


def test_a_listening_socket_is_for_this_user_only(tmp_path):
    path = str(tmp_path / "s.sock")
    mask = os.umask(0o022)
    try:
        with listen(path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
            with connect(path):
                pass
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)


LISTENER = """
import sys
from virtiofs.vhostuser.transport import listen
sock = listen(sys.argv[1])
print("listening", flush=True)
while True:
    peer, _ = sock.accept()
    peer.recv(1)
    print("somebody came", flush=True)
"""


@pytest.fixture
def listener(tmp_path):
    """A live process that listens; it says so when anybody connects."""
    path = str(tmp_path / "live.sock")
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER, path],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    yield process, path
    process.kill()
    process.stdout.close()
    process.wait()


def test_a_socket_of_a_live_process_is_refused_and_named_without_a_disturbance(listener):
    process, path = listener
    before = os.lstat(path)
    with pytest.raises(TransportError) as refused:
        listen(path)
    assert str(refused.value) == (
        f"cannot listen on {path}: a live process (pid {process.pid}) is using it; "
        "stop it or choose another --socket"
    )
    assert os.path.samestat(before, os.lstat(path))
    process.kill()
    assert process.stdout.read() == ""  # it never noticed


def test_the_socket_of_a_dead_process_is_replaced(listener):
    process, path = listener
    process.kill()
    process.wait()
    with pytest.raises(TransportError):
        connect(path)
    with listen(path), connect(path):
        pass


def test_a_live_socket_of_another_kind_is_refused_too(tmp_path):
    path = str(tmp_path / "datagram.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(TransportError, match="live process"):
            listen(path)


@pytest.mark.parametrize("found", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(tmp_path, found):
    path = tmp_path / "precious"
    target = tmp_path / "target"
    if found == "file":
        path.write_text("precious")
    elif found == "directory":
        path.mkdir()
    else:
        path.symlink_to(target)
    with pytest.raises(TransportError, match="is not a socket; remove it or choose another --socket"):
        listen(str(path))
    assert os.path.lexists(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing/s.sock", "directory .*missing does not exist; create it"),
        ("file/s.sock", "file is not a directory"),
        ("x" * (MAX_PATH + 1), "choose a shorter --socket"),
        ("nul\0", "not a file name"),
    ],
)
def test_paths_that_cannot_be_are_explained_in_one_line(tmp_path, name, text):
    (tmp_path / "file").write_text("")
    with pytest.raises(TransportError, match=text) as refused:
        listen(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_the_longest_path_is_taken_and_one_byte_more_is_not(tmp_path):
    longest = str(tmp_path / "x") + "x" * (MAX_PATH - len(str(tmp_path / "x")))
    with listen(longest), connect(longest):
        pass
    with pytest.raises(TransportError, match="108 bytes"):
        listen(longest + "x")


def test_connecting_to_nobody_is_explained(tmp_path):
    path = str(tmp_path / "s.sock")
    with pytest.raises(TransportError, match="there is no such socket"):
        connect(path)
    listen(path).close()
    with pytest.raises(TransportError, match="no process listens there any more"):
        connect(path)


# --- adopting ---


def test_a_passed_listening_socket_and_a_connected_one_are_told_apart(tmp_path):
    with listen(str(tmp_path / "s.sock")) as passed:
        os.set_inheritable(passed.fileno(), True)
        sock, listening = adopt(passed.detach())
        assert listening
        assert not sock.get_inheritable()
        sock.close()
    ours, theirs = socket.socketpair()
    sock, listening = adopt(theirs.detach())
    assert not listening
    sock.close()
    ours.close()


def test_other_descriptors_are_refused_and_stay_the_callers():
    read, write = os.pipe()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    packets, _other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    unconnected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    for fd, text in (
        (read, "is not a socket"),
        (udp.fileno(), "of another kind"),
        (packets.fileno(), "of another kind"),
        (unconnected.fileno(), "neither listening nor connected"),
    ):
        with pytest.raises(TransportError, match=text):
            adopt(fd)
        os.fstat(fd)
    for closing in (udp, packets, _other, unconnected):
        closing.close()
    os.close(read)
    os.close(write)
    for fd in (read, -1, 1 << 40):
        with pytest.raises(TransportError, match="is not open"):
            adopt(fd)

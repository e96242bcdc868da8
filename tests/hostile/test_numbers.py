# SPDX-License-Identifier: Apache-2.0
"""Node ids and handles are numbers that a guest makes up as it likes: they lead to nothing that this session did not
give out itself, neither of another share, nor of a session that has ended, nor of a file that is gone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import devices
from sharing import ROOT, failure
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.fuse import abi
from virtiofs.fuse.abi import OPERATIONS

COUNT = 20
BY_HANDLE = [
    operation
    for operation in OPERATIONS
    if operation.args
    and any(label in ("fh", "fh_in") for _, label, _ in operation.args.fields)
    and operation.name not in ("getattr", "setattr", "statx", "getlk")  # these go by the node, too
]
# Served for any node: they say nothing of it, or mean the whole file system.
ANY_NODE = ("init", "destroy", "interrupt", "forget", "batch_forget", "syncfs")


def files(place: Path, content: str) -> Path:
    place.mkdir()
    for number in range(COUNT):
        (place / f"f{number}").write_text(content)
    return place


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    place = tmp_path_factory.mktemp("shares")
    with (
        devices.start_ours(files(place / "one", "one's")) as one,
        devices.start_ours(files(place / "two", "two's")) as two,
    ):
        yield one.socket, two.socket
        assert one.alive and two.alive


def learn(session: Session) -> tuple[list[int], list[int]]:
    """Node ids and handles of all files of a share, and of its root."""
    nodes = [session.lookup(ROOT, f"f{number}").nodeid for number in range(COUNT)]
    return nodes, [session.open(node, os.O_RDWR).fh for node in nodes] + [session.opendir(ROOT).fh]


def answers(session: Session, nodes: list[int], handles: list[int]) -> dict[str, set[int]]:
    """By operation, the errnos with which requests that use these numbers are answered."""
    found: dict[str, set[int]] = {}
    for operation in OPERATIONS:
        if operation.name in ANY_NODE:
            continue
        body = operation.args.pack() if operation.args else b""
        body = body[:8] if operation.name == "setxattr" else body
        body += b"".join(b"user.x\0" for _ in operation.names)
        room = operation.reply.size if operation.reply and not operation.flags & abi.REPLY_DATA else 4096
        if operation not in BY_HANDLE:
            for node in nodes:
                reply = session.device.request(operation.name, node, body, room)
                found.setdefault(operation.name, set()).add(-reply.error)
            continue
        label = operation.args.fields[0][1] if operation.args else ""
        fields: dict[str, object] = (
            {"size": 1} if operation.name in ("read", "readdir", "readdirplus") else {}
        )
        fields |= {"whence": os.SEEK_DATA} if operation.name == "lseek" else {}
        fields |= {"cmd": 0x80086601, "out_size": 4} if operation.name == "ioctl" else {}
        fields |= {"lk_flags": 1} if operation.name.startswith("setlk") else {}  # of flock
        for handle in handles:
            assert operation.args is not None
            body = operation.args.pack(**{label: handle}, **fields)
            reply = session.device.request(operation.name, ROOT, body, room)
            found.setdefault(operation.name, set()).add(-reply.error)
    return found


def refused(session: Session, nodes: list[int], handles: list[int]) -> dict[str, set[int]]:
    """Those answers that are not what a number nobody gave out is answered with."""
    allowed = {errno.ESTALE, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY}
    wrong = {name: errnos - allowed for name, errnos in answers(session, nodes, handles).items()}
    return {name: errnos for name, errnos in wrong.items() if errnos}


def test_numbers_of_one_share_lead_to_nothing_in_another(two):
    with Device.connect(two[0]) as first, Device.connect(two[1]) as second:
        nodes, handles = learn(Session(first))
        other = Session(second)
        assert refused(other, nodes, handles) == {}
        # Where it gave out the same numbers itself, they mean its own files.
        learn(other)
        for node, handle in zip(nodes, handles, strict=False):
            assert failure(other.getattr, node) in (0, errno.ESTALE)
            if not failure(other.open, node):
                assert other.read(node, handle, 0, 10) == b"two's"


END: dict[str, Callable[[Session], Session]] = {
    "destroy": lambda session: (session.destroy(), Session(session.device))[1],
    "init": lambda session: Session(session.device),
    "reset": lambda session: (session.device.reset(), Session(session.device))[1],
}


@pytest.mark.parametrize("end", END.values(), ids=END.keys())
def test_numbers_of_a_session_that_ended_lead_to_nothing(two, end):
    with Device.connect(two[0]) as device:
        nodes, handles = learn(Session(device))
        again = end(Session(device))
        assert refused(again, nodes, handles) == {}
        new_nodes, new_handles = learn(again)
        assert not set(new_nodes) & set(nodes)
        assert not set(new_handles) & set(handles)
        assert refused(again, nodes, handles) == {}


def test_numbers_of_another_connection_lead_to_nothing(two):
    with Device.connect(two[0]) as device:
        nodes, handles = learn(Session(device))
    with Device.connect(two[0]) as device:
        assert refused(Session(device), nodes, handles) == {}


def test_numbers_of_other_generations_lead_to_nothing(two):
    with Device.connect(two[0]) as device:
        session = Session(device)
        nodes, handles = learn(session)
        for step in (1, 2, 3, 1 << 31):
            for sign in (1, -1):
                other = [(number + sign * (step << 32)) % (1 << 64) for number in nodes]
                others = [(number + sign * (step << 32)) % (1 << 64) for number in handles]
                assert refused(session, other, others) == {}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("batch", [False, True])
def test_forget_of_any_count_leaves_a_count_that_is_right(two, count, batch):
    """Three lookups: what is left of them after it, never more, and never less than none."""
    with Device.connect(two[0]) as device:
        session = Session(device)
        for _ in range(3):
            node = session.lookup(ROOT, "f0").nodeid
        forget = session.batch_forget if batch else lambda pairs: session.forget(*pairs[0])
        forget([(node, count)])
        left = max(3 - count, 0)
        for _ in range(left):
            assert session.getattr(node).size == 5
            forget([(node, 1)])
        for _ in range(2):
            assert failure(session.getattr, node) == errno.ESTALE
            forget([(node, count)])
        again = session.lookup(ROOT, "f0").nodeid
        assert again != node
        assert session.getattr(again).size == 5


def test_a_batch_that_says_more_than_it_holds_is_taken_for_what_it_holds(two):
    with Device.connect(two[0]) as device:
        session = Session(device)
        nodes = [session.lookup(ROOT, f"f{number}").nodeid for number in range(3)]
        record = abi.FUSE_FORGET_ONE.pack(nodeid=nodes[0], nlookup=1)
        for count, tail in ((0xFFFFFFFF, record), (2, record), (0, record), (1, record[:15]), (1 << 20, b"")):
            arguments = abi.FUSE_BATCH_FORGET_IN.pack(count=count)
            session.call("batch_forget", 0, tail=tail, arguments=arguments)
        assert failure(session.getattr, nodes[0]) == errno.ESTALE
        for node in nodes[1:]:
            assert session.getattr(node).size == 5


def test_forgetting_a_file_under_a_request_that_uses_it_frees_nothing_in_use(tmp_path):
    """As the C virtiofsd once did: the count is the guest's, the life of the record is ours."""
    share = files(tmp_path / "share", "one's")
    with (
        devices.start_ours(share, ["--queues", "2"]) as running,
        Device.connect(running.socket, queues=2) as device,
    ):
        session = Session(device)
        node = session.lookup(ROOT, "f0").nodeid
        handle = session.open(node).fh
        for _ in range(600):
            # Three in flight at once, on three threads of the worker.
            session.queue = 1
            look = session.begin("lookup", ROOT, ["f0"])
            session.queue = 2
            use = session.begin("getattr", node)
            device.request("forget", node, (1 << 40).to_bytes(8, "little"), queue=0)
            reply = device.finish(use)
            assert reply is not None and -reply.error in (0, errno.ESTALE)
            node = session.finish(look, "lookup").nodeid
            session.queue = 1
        assert session.read(node, handle, 0, 5) == b"one's"
        assert running.alive, running.log

# SPDX-License-Identifier: Apache-2.0
"""A device that lies ends the mount, with a word why, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import threading

import pytest
from lying_device import ATTR, Request, agreed_flags, lying

import devices
from mounting import mounted, unavailable
from sharing import failure
from virtiofs.fuse.abi import CONSTANTS, FUSE_ENTRY_OUT, FUSE_INIT_OUT
from virtiofs.fuse.mountpoint import mounts

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

SUCCESS = 0


def twice(request: Request) -> None:
    request.reply(ATTR)
    request.queue.use(request.head, 16 + len(ATTR))


LIES = {
    "an id beyond the ring": (lambda r: r.reply(ATTR, head=70000), "not in flight"),
    "an id that is not in flight": (lambda r: r.reply(ATTR, head=(r.head + 1) % 256), "not in flight"),
    "a length beyond the chain": (lambda r: r.reply(ATTR, used=1 << 20), "more bytes than the chain"),
    "a length beyond 31 bits": (lambda r: r.reply(ATTR, used=0xFFFFFFFF), "more bytes than the chain"),
    "no reply": (lambda r: r.queue.use(r.head, 0), "GETATTR: a reply's length"),
    "half a header": (lambda r: r.reply(ATTR, used=8), "GETATTR: a reply's length"),
    "another length in the header": (lambda r: r.reply(ATTR, length=1 << 31), "differs from the used length"),
    "another request's number": (lambda r: r.reply(ATTR, unique=r.unique + 2), "another request's number"),
    "a positive error": (lambda r: r.reply(error=5), "no error number"),
    "an error beyond errno": (lambda r: r.reply(error=-4096), "no error number"),
    "an error with a payload": (lambda r: r.reply(ATTR, error=-5), "no error number"),
    "a short result": (lambda r: r.reply(ATTR[:50]), "the kernel refused a reply"),
    "the same reply twice": (twice, "in flight"),
    "a used index that jumps": (lambda r: r.queue.jump(3000), "more chains than are in flight"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_the_mount_and_says_so(lie, tmp_path):
    act, reason = LIES[lie]
    with lying(getattr=act) as (socket, _), mounted(tmp_path, socket=socket) as mount:
        told = failure(os.stat, mount.place)
        assert told in (
            (SUCCESS, errno.EIO) if lie == "the same reply twice" else (errno.EIO, errno.ENOTCONN)
        )
        status, said = mount.wait()
        assert status == 1
        assert "the device breaks the rules" in said and reason in said and len(said.splitlines()) == 1
        assert not mounts(str(mount.place))
        assert os.listdir(mount.place) == []


def test_a_lie_on_the_hiprio_queue_ends_the_mount_too(tmp_path):
    nodes = itertools.count(2)

    def entry(request: Request) -> None:
        """Another file each time, so that the kernel forgets the one before."""
        node = next(nodes)
        attr = {"ino": node, "mode": 0o100644, "nlink": 1}
        request.reply(FUSE_ENTRY_OUT.pack(nodeid=node, generation=1, attr=attr))

    def forget(request: Request) -> None:
        request.queue.use(77, 0)

    with lying(lookup=entry, forget=forget) as (socket, _), mounted(tmp_path, socket=socket) as mount:

        def ended() -> bool:
            failure(os.stat, mount.place / "a")
            return mount.process.poll() is not None

        assert devices.wait_until(ended)
        status, said = mount.wait()
        assert (status, "not in flight" in said) == (1, True)


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ({"major": 8, "minor": 1}, "version of FUSE"),
        ({"major": 7, "minor": 12}, "version of FUSE"),
        (None, "refused to begin a session"),
    ],
)
def test_a_device_that_will_not_begin_a_session_is_told_of(init, reason, tmp_path):
    def answer(request: Request) -> None:
        if init is None:
            request.reply(error=-errno.EPROTO)
        else:
            request.reply(FUSE_INIT_OUT.pack(**init))

    with lying(init=answer) as (socket, _):
        with pytest.raises(RuntimeError, match=reason), mounted(tmp_path, socket=socket):
            pass
        assert not mounts(str(tmp_path / "place"))


def test_the_device_is_offered_nothing_that_only_a_guest_has_and_gets_nothing_more(tmp_path):
    offered: list[int] = []

    def greedy(request: Request) -> None:
        offered.append(agreed_flags(request))
        request.reply(
            FUSE_INIT_OUT.pack(
                major=7,
                minor=46,
                max_write=1 << 30,
                max_pages=65535,
                flags=0xFFFFFFFF,
                flags2=0xFFFFFFFF,
                map_alignment=12,
                max_stack_depth=1,
                request_timeout=1,
                time_gran=1,
                max_readahead=1 << 30,
            )
        )

    with lying(init=greedy) as (socket, _), mounted(tmp_path, socket=socket) as mount:
        assert failure(os.stat, mount.place) == 0
        assert failure(os.stat, mount.place / "name") == errno.ENOENT
    assert len(offered) == 1
    for flag in ("FUSE_SUBMOUNTS", "FUSE_MAP_ALIGNMENT", "FUSE_HAS_INODE_DAX"):
        assert not offered[0] & CONSTANTS[flag]


def test_a_device_that_never_answers_does_not_keep_the_mount_from_ending(tmp_path):
    asked = threading.Event()
    with (
        lying(getattr=lambda request: asked.set()) as (socket, _),
        mounted(tmp_path, socket=socket) as mount,
    ):
        told: list[int] = []
        thread = threading.Thread(target=lambda: told.append(failure(os.stat, mount.place)))
        thread.start()
        assert asked.wait(10)
        # The first signal waits for what the kernel has yet to write, the second for nothing.
        while mount.process.poll() is None:
            mount.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                mount.process.wait(0.1)
        thread.join(10)
        assert (mount.process.returncode, told) == (0, [errno.EIO])
        assert not mounts(str(mount.place))


def test_a_socket_that_nobody_listens_at_is_said_to_be_one(tmp_path):
    with pytest.raises(RuntimeError, match="cannot connect to"), mounted(tmp_path, socket=f"{tmp_path}/s"):
        pass
    assert not mounts(str(tmp_path / "place"))

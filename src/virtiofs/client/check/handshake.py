# SPDX-License-Identifier: Apache-2.0
"""vhost-user: what is said before, beside and after requests."""

from __future__ import annotations

import contextlib
import os
import select
import socket as sockets
import struct
from typing import Any

from virtiofs.client.check.case import MUST, SAFE, SHOULD, Check, Failed, NotApplicable, checker, expect
from virtiofs.client.check.subject import REPLY_SECONDS, Subject
from virtiofs.client.device import GUEST_BASE, NOTIFICATIONS, USER_OFFSET, Device
from virtiofs.client.notifications import Notifications
from virtiofs.client.session import Session
from virtiofs.fuse.abi import FUSE_NOTIFY_INVAL_INODE_OUT, FUSE_OUT_HEADER, FUSE_ROOT_ID
from virtiofs.vhostuser import messages as m
from virtiofs.vhostuser.frontend import FrontEnd, FrontEndError
from virtiofs.vhostuser.payloads import MemoryRegion, VringAddr, VringFd, VringParam

CHECKS: list[Check] = []
check = checker("handshake", CHECKS)

TEXT = "vhost-user protocol"
PAGE = 4096
WRAP = 0xFFF0  # an available index that is about to pass 65535
UNKNOWN = 0x7FFF  # no request has this number


def _answers(device: Device) -> bool:
    """Whether a GETATTR of the root is answered on queue 1 of a device that had its INIT."""
    reply = device.request("getattr", FUSE_ROOT_ID, bytes(16), 104)
    return reply.error == 0


@check(MUST, "offers VIRTIO_F_VERSION_1 and the protocol features", "virtio 1.3, 6; vhost-user, Feature bits")
def _features(subject: Subject) -> None:
    with subject.front_end() as front_end:
        front_end.negotiate()
        expect(front_end.offered_features & m.VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1 is not offered")
        expect(
            front_end.offered_features & m.VHOST_USER_F_PROTOCOL_FEATURES,
            "VHOST_USER_F_PROTOCOL_FEATURES is not offered",
        )


@check(SHOULD, "offers REPLY_ACK, so that a front end learns what was refused", TEXT)
def _reply_ack(subject: Subject) -> None:
    with subject.front_end() as front_end:
        front_end.negotiate()
        expect(front_end.offered_protocol_features & m.PROTOCOL_F_REPLY_ACK, "REPLY_ACK is not offered")


@check(SHOULD, "tells how many queues it has, two at least", "GET_QUEUE_NUM; virtio 1.3, 5.11.2")
def _queue_count(subject: Subject) -> None:
    with subject.front_end() as front_end:
        front_end.negotiate()
        if front_end.queue_count is None:
            raise Failed("MQ is not offered")
        expect(front_end.queue_count >= 2, f"it says {front_end.queue_count}")


@check(SHOULD, "offers more than one request queue", "virtio 1.3, 5.11.4")
def _more_queues(subject: Subject) -> None:
    with subject.front_end() as front_end:
        front_end.negotiate()
        expect((front_end.queue_count or 0) >= 3, "it has one request queue only")


@check(MUST, "gives a tag and a number of request queues, where it offers CONFIG", "virtio 1.3, 5.11.4")
def _config(subject: Subject) -> None:
    device = subject.fresh()
    if device.config is None:
        raise NotApplicable("CONFIG is not offered: the front end brings the tag")
    expect(device.tag, "the tag is empty")
    expect(device.queue_count, "num_request_queues is 0")


@check(
    MUST,
    "with a notification queue, says how large its buffers are and serves requests behind it",
    "virtio 1.3, 5.11.2 to 5.11.4",
)
def _notification_queue(subject: Subject) -> None:
    device = _with_notifications(subject)
    least = FUSE_OUT_HEADER.size + FUSE_NOTIFY_INVAL_INODE_OUT.size
    expect(device.notify_size >= least, f"notify_buf_size is {device.notify_size}, less than {least}")
    notifications = Notifications(device)
    Session(device).getattr(FUSE_ROOT_ID)
    notifications.take()


@check(SAFE, "survives notification buffers that are too small", "virtio 1.3, 5.11.6.1")
def _small_notification_buffers(subject: Subject) -> None:
    device = _with_notifications(subject)
    session = Session(device)
    for size in (1, 8, 16):
        device.submit(b"", size, NOTIFICATIONS)
    session.getattr(FUSE_ROOT_ID)
    subject.must_live()


def _with_notifications(subject: Subject) -> Device:
    device = subject.fresh(notifications=True)
    if device.first_request == 1:
        raise NotApplicable("VIRTIO_FS_F_NOTIFICATION is not offered")
    return device


@check(SAFE, "answers for the configuration space what there is of it, and nothing beyond", "GET_CONFIG")
def _config_beyond(subject: Subject) -> None:
    with subject.front_end() as front_end:
        front_end.negotiate()
        if not front_end.protocol_features & m.PROTOCOL_F_CONFIG:
            raise NotApplicable("CONFIG is not offered")
        try:
            data = front_end.get_config(200, 56)
        except FrontEndError:
            pass
        else:
            expect(not any(data), "bytes 200 to 255 of a space of 44 bytes hold something")
    subject.must_live()


@check(MUST, "serves memory in 8 separate regions", "SET_MEM_TABLE, ADD_MEM_REG")
def _regions(subject: Subject) -> None:
    session = Session(subject.fresh(regions=8, memory=64 << 20))
    for _ in range(16):
        session.getattr(FUSE_ROOT_ID)
    low = {region.guest_phys for region in session.device.regions}
    expect(len(low) == 8, "the client made another number of regions")


@check(MUST, "stops a queue at GET_VRING_BASE and goes on from there", "GET_VRING_BASE, SET_VRING_BASE")
def _stop_and_start(subject: Subject) -> None:
    device = subject.fresh()
    Session(device)
    for _ in range(3):
        expect(_answers(device), "GETATTR failed")
    ring = device.queues[1].ring
    expected = ring.next_avail
    base = device.stop_queue(1)
    expect(base == expected, f"it stopped at {base} instead of {expected}")
    device.start_queue(1)
    expect(_answers(device), "GETATTR failed after the queue was started again")


@check(MUST, "passes the end of the 16-bit ring indices", "virtio 1.3, 2.7.13.1")
def _wrap(subject: Subject) -> None:
    device = subject.fresh(queue_size=64)
    Session(device)
    device.stop_queue(1)
    device.queues[1].fresh(WRAP)
    device.start_queue(1, WRAP)
    for _ in range(40):
        expect(_answers(device), "GETATTR failed")


@check(
    SHOULD,
    "leaves the requests of a disabled queue alone, and takes them when it is enabled",
    "SET_VRING_ENABLE",
)
def _disable(subject: Subject) -> None:
    device = subject.fresh()
    Session(device)
    device.front_end.enable(1, False)
    pending = device.begin("getattr", FUSE_ROOT_ID, bytes(16), 104)
    try:
        device.finish(pending, 0.1)
    except TimeoutError:
        pass
    else:
        raise Failed("a request of a disabled queue was served")
    device.front_end.enable(1, True)
    device.queues[1].ring.kick()
    reply = device.finish(pending)
    expect(reply is not None and reply.error == 0, "GETATTR failed after the queue was enabled")


@check(MUST, "signals through a call descriptor that replaces another", "SET_VRING_CALL")
def _replace_call(subject: Subject) -> None:
    device = subject.fresh(event_idx=False)
    Session(device)
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        device.front_end.set_call(1, fd)
        pending = device.begin("getattr", FUSE_ROOT_ID, bytes(16), 104)
        called = bool(select.select([fd], [], [], 5.0)[0])
        device.finish(pending)
        expect(called, "the new descriptor was not written")
    finally:
        os.close(fd)


@check(SHOULD, "resets when it is told to, and serves a new session", "RESET_DEVICE")
def _reset(subject: Subject) -> None:
    device = subject.fresh()
    session = Session(device)
    if not device.front_end.protocol_features & m.PROTOCOL_F_RESET_DEVICE:
        raise NotApplicable("RESET_DEVICE is not offered")
    session.getattr(FUSE_ROOT_ID)
    device.reset()
    expect(
        device.request("getattr", FUSE_ROOT_ID, bytes(16), 104).error, "the old session outlived the reset"
    )
    Session(device).getattr(FUSE_ROOT_ID)


@check(SHOULD, "accepts a new front end after one that went", "vhost-user, Reconnection")
def _reconnect(subject: Subject) -> None:
    device = subject.fresh()
    Session(device).getattr(FUSE_ROOT_ID)
    before = subject.processes()[:1]
    device.disconnect()
    subject.leave()
    Session(subject.fresh()).getattr(FUSE_ROOT_ID)
    expect(subject.processes()[:1] == before, "the daemon ended with its first connection")


# --- what a front end should not say ---


def _talk(subject: Subject, *steps: tuple[int, Any, int]) -> None:
    """Send messages (request, value or bytes, number of descriptors) as a front end without manners; each may be
    refused, or end the connection; the device must neither crash nor stop serving others."""
    connection = subject.connection()
    with FrontEnd(connection, REPLY_SECONDS) as front_end:
        front_end.negotiate()
        spare = os.memfd_create("spare", os.MFD_CLOEXEC)
        os.ftruncate(spare, PAGE)
        try:
            for request, value, count in steps:
                with contextlib.suppress(FrontEndError, ConnectionError):
                    if isinstance(value, bytes):
                        connection.send(struct.pack("<III", request, m.VERSION, len(value)) + value)
                    else:
                        front_end.command(request, value, [spare] * count)
        finally:
            os.close(spare)
    subject.must_live()
    subject.must_serve()


HALF = 1 << 63
BAD_REGIONS = {
    "that wraps around the address space": MemoryRegion(HALF, HALF + PAGE, HALF, 0),
    "of no bytes": MemoryRegion(GUEST_BASE, 0, GUEST_BASE + USER_OFFSET, 0),
    "longer than its file": MemoryRegion(GUEST_BASE, 1 << 40, GUEST_BASE + USER_OFFSET, 0),
    "at an offset beyond its file": MemoryRegion(GUEST_BASE, PAGE, GUEST_BASE + USER_OFFSET, 1 << 40),
    "at an odd offset": MemoryRegion(GUEST_BASE, 512, GUEST_BASE + USER_OFFSET, 7),
}


def _bad_region(name: str, region: MemoryRegion) -> None:
    @check(SAFE, f"survives a memory region {name}", "SET_MEM_TABLE")
    def _act(subject: Subject) -> None:
        _talk(subject, (m.SET_MEM_TABLE, [region], 1))


for _name, _region in BAD_REGIONS.items():
    _bad_region(_name, _region)


@check(SAFE, "does not touch memory beyond the end of the file that backs it", "SET_MEM_TABLE")
def _truncated_memory(subject: Subject) -> None:
    """A region of a file that is shorter: reading there is a SIGBUS for a process that does not take care."""
    with subject.front_end() as front_end:
        front_end.negotiate()
        fd = os.memfd_create("short", os.MFD_CLOEXEC)
        kick, call = os.eventfd(1), os.eventfd(0)
        try:
            os.ftruncate(fd, PAGE)
            region = MemoryRegion(GUEST_BASE, 16 * PAGE, GUEST_BASE + USER_OFFSET, 0)
            base = region.user_addr + 8 * PAGE
            front_end.set_memory([region], [fd])
            front_end.setup_vring(1, 64, base, base + PAGE, base + 2 * PAGE, 0, kick, call)
            front_end.enable(1, True)
            os.eventfd_write(kick, 1)
            front_end.stop_vring(1)
        except FrontEndError:
            pass
        finally:
            for each in (fd, kick, call):
                os.close(each)
    subject.must_live()
    subject.must_serve()


BAD_MESSAGES: dict[str, tuple[int, Any, int]] = {
    "a request that nobody knows": (UNKNOWN, b"", 0),
    "a queue of no entries": (m.SET_VRING_NUM, VringParam(1, 0), 0),
    "a queue size that is no power of two": (m.SET_VRING_NUM, VringParam(1, 1000), 0),
    "a queue of 65536 entries": (m.SET_VRING_NUM, VringParam(1, 65536), 0),
    "a queue that does not exist": (m.SET_VRING_NUM, VringParam(60000, 64), 0),
    "rings at addresses in no region": (
        m.SET_VRING_ADDR,
        VringAddr(1, 0, desc=64, used=4096, avail=8192, log=0),
        0,
    ),
    "a kick descriptor for a queue that does not exist": (m.SET_VRING_KICK, VringFd(255), 1),
    "a message without its payload": (m.SET_VRING_ADDR, b"", 0),
    "a payload of the wrong size": (m.SET_FEATURES, b"12345", 0),
    "feature bits that were not offered": (m.SET_FEATURES, (1 << 64) - 1, 0),
}


def _bad_message(name: str, step: tuple[int, Any, int]) -> None:
    @check(SAFE, f"survives {name}", TEXT)
    def _act(subject: Subject) -> None:
        _talk(subject, step)


for _name, _step in BAD_MESSAGES.items():
    _bad_message(_name, _step)


@check(SAFE, "survives random bytes instead of a message", TEXT)
def _noise(subject: Subject) -> None:
    connection = subject.connection()
    with connection, sockets.socket(fileno=os.dup(connection.fileno())) as raw:
        raw.sendall(bytes((i * 37 + 11) & 0xFF for i in range(4096)))
    subject.must_live()
    subject.must_serve()

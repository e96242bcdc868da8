# SPDX-License-Identifier: Apache-2.0
"""Notifications: their bytes, and the notification queue of a device with a metadata table."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import devices
from virtiofs.client.device import NOTIFICATIONS, Device
from virtiofs.client.notifications import Notifications
from virtiofs.client.session import Session
from virtiofs.fuse import notification
from virtiofs.fuse.notification import MOST_BYTES, Notification, NotificationError, decode, encode
from virtiofs.metadata import layout, registry
from virtiofs.metadata.table import Table

SECONDS = 20.0
ROOT = 1

names = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name)
nodes = st.integers(0, (1 << 64) - 1)
notifications = st.one_of(
    st.builds(
        lambda node, data: Notification(notification.INVAL_INODE, node, data=data), nodes, st.booleans()
    ),
    st.builds(
        lambda node, name, expire: Notification(notification.INVAL_ENTRY, node, name, expire_only=expire),
        nodes,
        names,
        st.booleans(),
    ),
    st.builds(lambda *what: Notification(notification.DELETE, *what), nodes, names, nodes),
    st.just(Notification(notification.INC_EPOCH)),
)


@given(notifications)
def test_what_is_encoded_is_decoded_again(told: Notification) -> None:
    assert decode(encode(told)) == told
    assert len(encode(told)) <= MOST_BYTES


@given(st.one_of(st.binary(max_size=400), notifications.map(encode)), st.data())
def test_any_bytes_are_a_notification_or_refused(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data)))
    changed = data[:at] + draw.draw(st.binary(max_size=3)) + data[at + draw.draw(st.integers(0, 2)) :]
    with contextlib.suppress(NotificationError):
        told = decode(changed)
        assert len(told.name) <= 255 and b"/" not in told.name


# --- a device ---


class Driver(NamedTuple):
    host: Path
    device: Device
    session: Session
    table: Table


@pytest.fixture
def driver() -> Iterator[Driver]:
    with tempfile.TemporaryDirectory(prefix="virtiofs-share-") as place:
        host = Path(place)
        (host / "file").write_text("1")
        with (
            devices.start_ours(host, ("--metadata-table",)) as running,
            Device.connect(running.socket, queues=2, fewer=True, notifications=True) as device,
        ):
            table = registry.attach(place)
            assert devices.wait_until(lambda: table.watched, SECONDS)
            yield Driver(host, device, Session(device), table)
            table.close()
            assert running.alive


def told_of(notifications: Notifications, wanted: Notification) -> bool:
    """Whether the device tells it, among other things, within a while."""
    return devices.wait_until(lambda: wanted in notifications.take(0.1), SECONDS)


def test_the_queue_lies_between_hiprio_and_requests(driver: Driver) -> None:
    assert driver.device.notify_size == MOST_BYTES
    assert driver.device.first_request == NOTIFICATIONS + 1
    assert driver.session.getattr(ROOT).nlink
    assert driver.device.offered_queues == driver.device.queue_count


def test_a_driver_is_told_what_others_change(driver: Driver) -> None:
    notifications = Notifications(driver.device)
    node = driver.session.lookup(ROOT, "file").nodeid
    (driver.host / "file").write_text("22")
    assert told_of(notifications, Notification(notification.INVAL_INODE, node, data=True))
    (driver.host / "new").write_text("")
    assert told_of(notifications, Notification(notification.INVAL_ENTRY, ROOT, b"new", expire_only=True))
    (driver.host / "file").unlink()
    assert devices.wait_until(
        lambda: any(
            told.name == b"file" and told.code in (notification.DELETE, notification.INVAL_ENTRY)
            for told in notifications.take(0.1)
        ),
        SECONDS,
    )


def test_a_driver_is_not_told_what_it_does_itself(driver: Driver) -> None:
    notifications = Notifications(driver.device)
    made, handle = driver.session.create(ROOT, "mine")
    driver.session.write(made.nodeid, handle.fh, 0, b"x")
    driver.session.release(made.nodeid, handle.fh)
    # What another does comes later, so that nothing of ours is still on its way.
    (driver.host / "theirs").write_text("")
    heard: list[Notification] = []
    assert devices.wait_until(
        lambda: heard.extend(notifications.take(0.1)) or any(told.name == b"theirs" for told in heard),
        SECONDS,
    )
    assert not any(told.name == b"mine" or told.node == made.nodeid for told in heard)


def test_without_buffers_for_long_the_driver_is_told_to_forget_everything(driver: Driver) -> None:
    notifications = Notifications(driver.device, buffers=0)
    node = driver.session.lookup(ROOT, "file").nodeid
    status = os.stat(driver.host / "file")
    for _ in range(2 * layout.RECORDS):
        driver.table.bump(status.st_dev, status.st_ino, layout.DATA)
    notifications.give(16)
    heard: list[Notification] = []
    everything = Notification(notification.INC_EPOCH)
    assert devices.wait_until(lambda: heard.extend(notifications.take(0.1)) or everything in heard, SECONDS)
    assert told_of(notifications, Notification(notification.INVAL_INODE, node, data=True))
    assert len(heard) < 100


def test_after_a_stop_of_the_queue_the_driver_is_told_to_forget_everything(driver: Driver) -> None:
    notifications = Notifications(driver.device)
    driver.device.start_queue(NOTIFICATIONS, driver.device.stop_queue(NOTIFICATIONS))
    (driver.host / "file").write_text("333")
    node = driver.session.lookup(ROOT, "file").nodeid
    assert told_of(notifications, Notification(notification.INVAL_INODE, ROOT, data=True))
    (driver.host / "file").write_text("4444")
    assert told_of(notifications, Notification(notification.INVAL_INODE, node, data=True))


def test_a_buffer_that_is_too_small_stops_the_queue_and_no_other(driver: Driver) -> None:
    driver.session.lookup(ROOT, "file")
    driver.device.submit(b"", 8, NOTIFICATIONS)
    (driver.host / "file").write_text("55555")
    queue = driver.device.queues[NOTIFICATIONS]
    assert devices.wait_until(queue.is_broken, SECONDS)
    assert driver.session.getattr(driver.session.lookup(ROOT, "file").nodeid).size == 5


def test_a_device_without_a_table_has_no_notification_queue() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="virtiofs-share-") as place,
        devices.start_ours(Path(place)) as running,
        Device.connect(running.socket, notifications=True) as device,
    ):
        assert (device.notify_size, device.first_request) == (0, 1)
        with pytest.raises(ValueError, match="notification queue"):
            Notifications(device)


def test_a_notification_of_a_hostile_device_is_checked() -> None:
    for data in (
        b"",
        bytes(16),
        encode(Notification(notification.INVAL_INODE, 1))[:-1],
        encode(Notification(notification.INVAL_ENTRY, 1, b"a"))[:-1] + b"x",
        encode(Notification(notification.INVAL_ENTRY, 1, b"a")).replace(b"a\0", b"/\0"),
    ):
        with pytest.raises(NotificationError):
            decode(data)

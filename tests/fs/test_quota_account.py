# SPDX-License-Identifier: Apache-2.0
"""The account of a quota beyond one connection, and how a quota is asked for."""

from __future__ import annotations

import errno
import os

import pytest

import devices
from sharing import failure, refusal
from virtiofs.cli.ctl import ask
from virtiofs.cli.sizes import parse_size, show_size
from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import Tree
from virtiofs.fs.passthrough.account import LEAST, Quota

MIB = 1 << 20


def test_a_reservation_holds_its_place_and_comes_to_what_was_measured():
    quota = Quota(MIB)
    assert quota.set_aside(MIB - 10)
    assert not quota.set_aside(11)
    quota.come_to(MIB - 10, 1000)
    assert quota.used == 1000
    quota.come_to(0, -3000)
    assert quota.used == 0, "what was there before is not the guest's"
    assert quota.set_aside(MIB)
    quota.recover()
    assert quota.used == MIB, "what a dead worker may have done counts as done"
    assert not quota.set_aside(1)


def test_the_count_goes_on_in_the_next_connection(tmp_path):
    host = tmp_path / "share"
    host.mkdir()
    with devices.start_ours(host, ("--quota", "2M")) as running:
        for name, size, code in (("a", MIB, 0), ("b", MIB, errno.ENOSPC), ("c", MIB // 2, 0)):
            with Device.connect(running.socket) as device:
                tree = Tree(Session(device))
                assert failure(tree.write_file, name, b"x" * size) == code
                left = tree.statvfs().f_bavail * 4096
        assert left <= MIB // 2


def test_what_a_guest_held_when_it_went_comes_back(tmp_path):
    host = tmp_path / "share"
    host.mkdir()
    with devices.start_ours(host, ("--quota", "2M", "--control", str(tmp_path / "control"))) as running:
        with Device.connect(running.socket) as device:
            tree = Tree(Session(device))
            file = tree.open("f", os.O_RDWR | os.O_CREAT)
            file.pwrite(b"x" * MIB, 0)
            tree.unlink("f")

        def used() -> int:
            return int(ask(str(tmp_path / "control"), {"do": "status"})["result"][0]["quota"]["used"])

        assert devices.wait_until(lambda: used() == 0, 20)


# --- options ---


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512", 512), ("4k", 4096), ("1M", MIB), ("10G", 10 << 30), ("2T", 2 << 40)]
)
def test_sizes_are_powers_of_1024(text, size):
    assert parse_size(text) == size
    assert parse_size(show_size(size)) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "1MB", "1KM", "ten", "\u0663", "1" * 20])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="K, M, G or T"):
        parse_size(text)


def test_a_quota_that_makes_no_sense_is_refused_with_a_reason():
    assert "K, M, G or T" in refusal("--quota", "much")
    assert "1M or more" in refusal("--quota", "4096")
    with pytest.raises(ValueError, match="1M"):
        Quota(LEAST - 1)

# SPDX-License-Identifier: Apache-2.0
"""Random steps of two guests with windows and of the host on the same files, against a model that is a byte string.

The oracle: after each step every reader sees the model's bytes: the guest that acted in its window and by READ, the
host after the guest synced, and the other guest when it has asked for the attributes, as Linux does.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest
from mapping import OFFER_DAX, PAGE, RANGE, Mapped

import devices
from virtiofs.client.device import Device, WindowOptions
from virtiofs.client.session import Session

STEPS = int(os.environ.get("VIRTIOFS_DAX_STEPS", "400"))
MOST = 3 * PAGE * 4
WINDOW = 8 << 20


class Run:
    """One file, mapped by two guests; `model` is what it holds."""

    def __init__(self, guests: list[Mapped], random: random.Random):
        self.guests = guests
        self.random = random
        self.model = bytearray()
        self.nodes = [guest.make("model", b"") for guest in guests]
        self.handles = [guest.open(node) for guest, node in zip(guests, self.nodes, strict=True)]
        self.mapped = [False] * len(guests)
        self.path = guests[0].host / "model"

    def data(self, size: int) -> bytes:
        return self.random.randbytes(size)

    def put(self, offset: int, data: bytes) -> None:
        self.model.extend(bytes(max(0, offset - len(self.model))))
        self.model[offset : offset + len(data)] = data

    def cut(self, size: int) -> None:
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    # --- steps; `who` is the guest that acts ---

    def map(self, who: int) -> None:
        self.guests[who].map(self.nodes[who], writable=self.random.random() < 0.5)
        self.mapped[who] = True

    def unmap(self, who: int) -> None:
        self.guests[who].session.removemapping(self.nodes[who], [(0, RANGE)])
        self.mapped[who] = False

    def append(self, who: int) -> None:
        size = self.random.choice((PAGE, PAGE, 2 * PAGE, 1, 100, PAGE - 1, 5000))
        if len(self.model) + size <= MOST:
            self.write_at(who, len(self.model), self.data(size))

    def write(self, who: int) -> None:
        offset = self.random.randrange(MOST - 6000)
        self.write_at(who, offset, self.data(self.random.randrange(1, 6000)))

    def write_at(self, who: int, offset: int, data: bytes) -> None:
        guest = self.guests[who]
        assert guest.session.write(self.nodes[who], self.handles[who], offset, data) == len(data)
        self.put(offset, data)

    def store(self, who: int) -> None:
        """As a program that mapped the file does, within its size."""
        if self.mapped[who] and self.model:
            offset = self.random.randrange(len(self.model))
            data = self.data(self.random.randrange(1, 2000))[: len(self.model) - offset]
            self.guests[who].window.write(offset, data)
            self.put(offset, data)
            self.guests[who].session.fsync(self.nodes[who], self.handles[who])

    def truncate(self, who: int) -> None:
        size = self.random.choice((0, 1, PAGE, PAGE + 1, 2 * PAGE, 4 * PAGE, self.random.randrange(MOST)))
        self.guests[who].session.setattr(self.nodes[who], size=size)
        self.cut(size)

    def punch(self, who: int) -> None:
        if self.model:
            start = self.random.randrange(len(self.model))
            length = min(self.random.randrange(1, 3 * PAGE), len(self.model) - start)
            self.guests[who].session.fallocate(self.nodes[who], self.handles[who], start, length, 0x3)
            self.model[start : start + length] = bytes(length)

    def host_write(self, who: int) -> None:
        data = self.data(self.random.randrange(1, 3000))
        offset = self.random.randrange(len(self.model) + 1)
        if offset + len(data) <= MOST:
            with open(self.path, "r+b") as file:
                os.pwrite(file.fileno(), data, offset)
            self.put(offset, data)

    def host_truncate(self, who: int) -> None:
        """Nobody touches what is gone, until the windows have followed: that moment docs/dax.md says remains."""
        size = min(MOST, max(0, len(self.model) + self.random.randrange(-3 * PAGE, 2 * PAGE)))
        os.truncate(self.path, size)
        shorter = size < len(self.model)
        self.cut(size)
        if shorter:
            assert devices.wait_until(lambda: all(self.end(who) < size + PAGE for who in (0, 1)), 20)

    def end(self, who: int) -> int:
        """Where the last piece of a guest's window ends, when the device is through with what it was doing."""
        self.guests[who].session.read(self.nodes[who], self.handles[who], 0, 1)
        pieces = list(self.guests[who].window.pieces.items())
        return max((at + piece.length for at, piece in pieces), default=0)

    def check(self, acted: int) -> None:
        expected = bytes(self.model)
        for who in (acted, 1 - acted):
            guest, node = self.guests[who], self.nodes[who]
            assert guest.session.getattr(node).size == len(expected)
            if self.mapped[who]:
                assert guest.window.read(0, len(expected)) == expected
            assert guest.session.read(node, self.handles[who], 0, MOST) == expected
        assert self.path.read_bytes() == expected


STEP_WEIGHTS: dict[Callable[[Run, int], None], int] = {
    Run.map: 3,
    Run.unmap: 1,
    Run.append: 4,
    Run.write: 3,
    Run.store: 6,
    Run.truncate: 2,
    Run.punch: 1,
    Run.host_write: 3,
    Run.host_truncate: 1,
}


@pytest.fixture
def two_guests(daemon: devices.RunningDevice) -> Iterator[list[Mapped]]:
    with (
        devices.start_ours(daemon.directory, ["--dax-window", "8M"]) as other,
        Device.connect(daemon.socket, window=WindowOptions(), timeout=30) as one,
        Device.connect(other.socket, window=WindowOptions(), timeout=30) as two,
    ):
        yield [Mapped(device, daemon.directory) for device in (one, two)]
        for device in (one, two):
            assert device.window is not None and device.window.troubles == []
        assert other.log == []


@pytest.mark.parametrize("seed", range(2))
def test_random_steps_of_two_guests_and_the_host_are_seen_by_all(two_guests: list[Mapped], seed: int) -> None:
    """$VIRTIOFS_DAX_STEPS makes it longer: 10000 take some minutes."""
    chance = random.Random(seed)
    run = Run(two_guests, chance)
    done: list[str] = []
    for _ in range(STEPS):
        (step,) = chance.choices(list(STEP_WEIGHTS), list(STEP_WEIGHTS.values()))
        who = chance.randrange(2)
        done.append(f"{step.__name__}({who})")
        step(run, who)
        try:
            run.check(who)
        except AssertionError as error:
            raise AssertionError(f"after {len(done)} steps, the last {done[-12:]}: {error}"[:2000]) from None
    for who, guest in enumerate(two_guests):
        guest.session.destroy()
        assert not guest.window.pieces
        Session(guest.device, flags=OFFER_DAX)
        assert run.path.read_bytes() == bytes(run.model), who

# SPDX-License-Identifier: Apache-2.0
"""The loop that loads a queue with requests, against a device that answers as each test says."""

import os
import select
import struct
import threading

import pytest
from ring_model import BASE, MEMORY, make

from virtiofs.virtqueue.driver import DriverError
from virtiofs.virtqueue.load import Load, shuffled

DATA = BASE + (1 << 20)


class Answering(threading.Thread):
    """A device that answers every request from `answer(request bytes) -> payload or error`, until told to
    stop."""

    def __init__(self, device, answer):
        super().__init__(daemon=True)
        self.device, self.answer = device, answer
        self.requests = []
        self.stop, self.wake = os.pipe()
        self.start()

    def run(self):
        device = self.device
        while True:
            if chain := device.pop():
                self.serve(*chain[:3])
                device.call_if_wanted()
                continue
            device.want_kick(True)
            if device.u16(device.avail + 2) != device.next_avail:
                continue
            ready = select.select([device.kick_fd, self.stop], [], [])[0]
            if self.stop in ready:
                return
            os.eventfd_read(device.kick_fd)

    def serve(self, head, readable, writable):
        memory = self.device.memory
        request = b"".join(memory.read(*piece) for piece in readable)
        self.requests.append(request)
        error, payload = self.answer(request)
        reply = (
            struct.pack("<IiQ", 16 + len(payload), error, struct.unpack_from("<Q", request, 8)[0]) + payload
        )
        start = 0
        for address, length in writable:
            memory.write(address, reply[start : start + length])
            start += length
        self.device.push(head, min(len(reply), start))

    def end(self):
        os.write(self.wake, b"x")
        self.join()
        os.close(self.stop)
        os.close(self.wake)


@pytest.fixture
def answering(eventfds):
    threads = []

    def begin(answer, size=16, event_idx=True, indirect=8):
        queue, device = make(size, event_idx, indirect, *eventfds)
        threads.append(Answering(device, answer))
        return queue, threads[0]

    yield begin
    for thread in threads:
        thread.end()


def request(body=b"\0" * 16):
    return struct.pack("<IIQQIIIHH", 40 + len(body), 3, 0, 1, 0, 0, 0, 0, 0) + body


def sent(device, start=40, length=8):
    """The 64-bit field of every request that came."""
    return [int.from_bytes(r[start : start + length], "little") for r in device.requests]


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("polled", [False, True])
@pytest.mark.parametrize("depth", [1, 5])
def test_a_load_sends_every_request_and_checks_every_reply(answering, event_idx, polled, depth):
    queue, device = answering(lambda r: (0, b"x" * 104), event_idx=event_idx)
    load = Load(queue, [(request(), [40, 16], [16, 104], 120)], depth, DATA)
    elapsed = load.run(200, polled)
    assert len(device.requests) == 200
    assert len(set(sent(device, 8))) == 200
    assert 0 < load.latency(0.5) <= load.latency(0.99) <= load.latency(1) <= elapsed * 1.01
    assert load.reply()[16:] == b"x" * 104
    load.run(50, polled)
    assert len(device.requests) == 250


@pytest.mark.parametrize("depth", [1, 2])
def test_every_lane_runs_its_rounds_in_order(answering, depth):
    queue, device = answering(lambda r: (0, r[40:48]))
    bodies = [i.to_bytes(8, "little") + bytes(8) for i in range(3)]
    load = Load(queue, [(request(body), [40, 16], [16, 8], 24) for body in bodies], depth, DATA)
    for step in range(3):
        load.number(step, 48)
    load.run(9, first=100)
    by_round = {}
    for step, number in zip(sent(device), sent(device, 48), strict=True):
        by_round.setdefault(number, []).append(step)
    assert by_round == {number: [0, 1, 2] for number in range(100, 109)}
    assert {load.round(lane) for lane in range(depth)} <= set(range(100, 109))


def test_fields_follow_the_round(answering):
    queue, device = answering(lambda r: (0, b""))
    load = Load(queue, [(request(b"\0" * 32), [40, 32], [16], 16)], 1, DATA)
    load.number(0, 40, start=1000, by=10, count=4)
    load.number(0, 48, start=7, by=3, count=16, shuffled=True)
    load.digits(0, 56, 5, count=12, start=99998)
    load.run(16)
    assert sent(device) == [1000 + 10 * (i % 4) for i in range(16)]
    assert sent(device, 48) == [7 + 3 * shuffled(i, 16) for i in range(16)]
    assert [r[56:61] for r in device.requests] == [b"%05d" % ((99998 + i % 12) % 100000) for i in range(16)]


@pytest.mark.parametrize("count", [1, 2, 8, 64, 4096])
def test_shuffling_visits_every_place_once(count):
    assert sorted(shuffled(i, count) for i in range(count)) == list(range(count))
    assert count < 8 or [shuffled(i, count) for i in range(count)] != list(range(count))


def test_a_request_may_hold_what_an_earlier_reply_said(answering):
    def answer(r):
        return (0, (int.from_bytes(r[8:16], "little") * 3).to_bytes(8, "little") + r[40:48])

    queue, device = answering(answer)
    steps = [(request(), [40, 16], [16, 16], 32)] * 3
    load = Load(queue, steps, 3, DATA)
    load.number(0, 48)
    load.copy(2, 16, 0, 16)  # into the header's node id
    load.copy(2, 40, 1, 24, 8)
    load.copy(1, 40, 0, 20, 4)
    load.run(10)
    by_node = {}
    for r in device.requests:
        by_node.setdefault(int.from_bytes(r[16:24], "little"), []).append(int.from_bytes(r[8:16], "little"))
    plain = by_node.pop(1)  # steps 0 and 1 name node 1
    assert len(plain) == 20 and len(by_node) == 10
    assert all(node % 3 == 0 and node // 3 in plain for node in by_node)


def direntplus(nodeid, name):
    record = nodeid.to_bytes(8, "little") + bytes(120) + struct.pack("<QQII", 9, 1, len(name), 8) + name
    return record + bytes(-len(record) % 8)


def test_nodes_of_a_directory_are_forgotten_together(answering):
    listing = direntplus(0, b".") + direntplus(77, b"a-name-of-some-length") + direntplus(78, b"b")
    listed = [(request(), [40, 16], [16, 4096], 16 + len(listing))]
    forget = [(request(b"\x02\0\0\0" + bytes(4 + 32)), [40, 40], [], 0)]
    queue, device = answering(lambda r: (0, listing) if len(r) == 56 else (0, b""))
    load = Load(queue, listed + forget, 1, DATA)
    load.forget_entries(1, 48)
    load.run(2)
    assert [r[48:] for r in device.requests if len(r) == 80] == [struct.pack("<QQQQ", 77, 1, 78, 1)] * 2


def test_other_requests_run_beside(answering):
    queue, device = answering(lambda r: (0, b""))
    mark = (5).to_bytes(8, "little") + bytes(8)
    beside = [(request(mark), [40, 16], [16], 16)] * 2
    load = Load(queue, [(request(), [40, 16], [16], 16)], 2, DATA, beside)
    load.run(40)
    assert sent(device).count(0) == 40
    assert sent(device).count(5) == 2 * load.rounds_beside > 0
    assert load.latency(0.5, beside=True) > 0


def test_an_error_may_be_what_is_expected(answering):
    queue, device = answering(lambda r: (-2, b""))
    load = Load(queue, [(request(), [40, 16], [16, 104], 16, -2)], 1, DATA)
    load.run(3)
    assert len(device.requests) == 3
    with pytest.raises(DriverError, match="error -2"):
        Load(queue, [(request(), [40, 16], [16, 104], 16)], 1, DATA).run(1)


@pytest.mark.parametrize(
    "edit",
    [
        lambda load: load.number(0, 36),
        lambda load: load.number(0, 52),
        lambda load: load.number(1, 40),
        lambda load: load.number(0, 40, count=6, shuffled=True),
        lambda load: load.digits(0, 40, 4, count=0),
        lambda load: load.copy(0, 40, 0, 16),
        lambda load: load.forget_entries(0, 40),
    ],
)
def test_edits_that_fit_nowhere_are_refused(edit):
    queue, _ = make()
    load = Load(queue, [(request(), [40, 16], [16, 104], 120)], 1, DATA)
    with pytest.raises(ValueError, match=r"step|place|numbers|piece"):
        edit(load)


def test_a_load_may_hold_requests_without_a_reply(answering):
    queue, device = answering(lambda r: (0, b""))
    load = Load(queue, [(request(), [56], [], 0), (request(), [56], [16], 16)], 3, DATA)
    load.run(30)
    assert len(device.requests) == 60


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda r: (-5, b""), "error -5"),
        (lambda r: (0, b"short"), "used length 21"),
    ],
)
def test_a_load_stops_at_a_reply_that_is_wrong(answering, answer, message):
    queue, _ = answering(answer)
    load = Load(queue, [(request(), [40, 16], [16, 104], 120)], 1, DATA)
    with pytest.raises(DriverError, match=message):
        load.run(10)


@pytest.mark.parametrize("polled", [False, True])
def test_a_load_gives_up_on_a_silent_device(eventfds, polled):
    queue, _ = make(8, True, 8, *eventfds)
    load = Load(queue, [(request(), [40, 16], [16, 104], 120)], 1, DATA)
    with pytest.raises(DriverError, match="no reply"):
        load.run(1, polled, timeout=0.05)


@pytest.mark.parametrize(
    ("readable", "writable"),
    [([40], [16]), ([56, 1], [16]), ([20, 36], [16]), ([40, 16], [8, 112]), ([], [16]), ([40, 16, 0], [16])],
)
def test_a_load_of_impossible_pieces_is_refused(readable, writable):
    queue, _ = make()
    with pytest.raises(ValueError, match="piece"):
        Load(queue, [(request(), readable, writable, -1)], 1, DATA)


def test_a_load_outside_memory_is_refused():
    queue, _ = make()
    requests = [(request(), [40, 16], [16, 104], 120)]
    for address in (BASE + MEMORY, DATA + 1):
        with pytest.raises(ValueError, match=r"outside|fit"):
            Load(queue, requests, 1, address)
    with pytest.raises(ValueError, match="depth"):
        Load(queue, requests, 9, DATA)

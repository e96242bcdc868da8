# SPDX-License-Identifier: Apache-2.0
"""The driver end of the ring, against a model of the device end written from the specification."""

import select
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ring_model import BASE, make

from virtiofs.virtqueue.driver import DriverError, DriverQueue, QueueFull, memory_needed

DATA = BASE + (1 << 20)
piece = st.tuples(st.integers(DATA, DATA + 65536), st.integers(1, 5000))


@pytest.mark.parametrize("size", [1, 2, 256, 32768])
def test_rings_lie_one_after_another_and_are_aligned(size):
    queue, _ = make(size, indirect=0)
    assert queue.desc_address % 16 == 0
    assert queue.avail_address == queue.desc_address + 16 * size
    assert queue.used_address % 4 == 0
    assert queue.used_address >= queue.avail_address + 6 + 2 * size
    assert memory_needed(size) >= queue.used_address + 6 + 8 * size - BASE


@pytest.mark.parametrize(
    ("base", "size", "indirect"),
    [(BASE, 3, 0), (BASE, 0, 0), (BASE, 65536, 0), (BASE + 8, 8, 0), (BASE - 16, 8, 0), (BASE, 8, 1 << 17)],
)
def test_a_queue_that_cannot_be_is_refused(base, size, indirect):
    queue, _ = make()
    with pytest.raises(ValueError, match=r"queue|table"):
        DriverQueue(queue.memory, base, size, True, indirect)


@given(
    readable=st.lists(piece, max_size=8),
    writable=st.lists(piece, max_size=8),
    indirect=st.sampled_from([0, 8, 16]),
)
def test_the_device_sees_the_pieces_that_were_added(readable, writable, indirect):
    queue, device = make(16, indirect=indirect)
    if not readable and not writable:
        with pytest.raises(ValueError, match="pieces"):
            queue.add(readable, writable)
        return
    head = queue.add(readable, writable)
    assert device.pop() == (head, readable, writable, 2 <= len(readable + writable) <= indirect)
    assert device.pop() is None


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_order_of_adding_and_using_keeps_every_chain_apart(data):
    """Oracle: each chain comes to the device as added and back with its own head and length, and none is
    lost."""
    size = data.draw(st.sampled_from([2, 8, 32]))
    queue, device = make(size, data.draw(st.booleans()), data.draw(st.sampled_from([0, 4])))
    added, held = {}, []
    for _ in range(data.draw(st.integers(1, 120))):
        action = data.draw(st.integers(0, 2))
        if action == 0:
            readable = data.draw(st.lists(piece, min_size=1, max_size=2))
            writable = data.draw(st.lists(piece, max_size=2))
            if len(readable) + len(writable) > size:
                continue
            try:
                head = queue.add(readable, writable)
            except QueueFull:
                assert queue.free_count < len(readable) + len(writable)
                continue
            assert head not in added
            added[head] = (readable, writable)
        elif action == 1:
            chain = device.pop()
            if chain:
                assert added[chain[0]] == (chain[1], chain[2])
                held.append(chain)
        elif held:
            head, _, writable, _ = held.pop(data.draw(st.integers(0, len(held) - 1)))
            length = data.draw(st.integers(0, sum(n for _, n in writable)))
            device.push(head, length)
            assert queue.poll() == (head, length)
            del added[head]
        assert queue.in_flight == len(added)
    assert queue.poll() is None


def test_indices_wrap_at_65536():
    queue, device = make(4)
    for _ in range(70000):
        head = queue.add([(DATA, 8)], [])
        assert device.pop()[0] == head
        device.push(head, 0)
        assert queue.poll() == (head, 0)
    assert queue.next_avail == 70000 & 0xFFFF
    assert queue.free_count == 4


def test_a_full_queue_says_so_and_recovers():
    queue, device = make(4, indirect=0)
    queue.add([(DATA, 1)], [(DATA, 1), (DATA, 1)])
    with pytest.raises(QueueFull):
        queue.add([(DATA, 1)], [(DATA, 1)])
    device.push(device.pop()[0], 2)
    queue.poll()
    queue.add([(DATA, 1)] * 2, [(DATA, 1)] * 2)


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_are_needed_only_when_the_device_asks(event_idx):
    queue, device = make(8, event_idx)
    device.want_kick(True)
    queue.add([(DATA, 1)], [])
    assert queue.kick_needed()
    device.pop()
    device.want_kick(False)
    queue.add([(DATA, 1)], [])
    assert not queue.kick_needed()
    device.pop()
    device.want_kick(True)
    queue.add([(DATA, 1)], [])
    assert queue.kick_needed()


@pytest.mark.parametrize(
    ("event", "old", "new", "wanted"),
    [
        *((0, 0, 1, True), (1, 0, 1, False), (5, 3, 6, True), (5, 6, 9, False)),
        *((65535, 65535, 0, True), (2, 65534, 3, True), (3, 65534, 3, False)),
    ],
)
def test_the_rule_of_the_event_index(event, old, new, wanted):
    """The worked numbers of virtio 1.3 section 2.7.7.2, as kicks."""
    queue, device = make(32)
    for _ in range(old):
        queue.add([(DATA, 1)], [])
        device.push(device.pop()[0], 0)
        queue.poll()
    queue.kick_needed()
    for _ in range((new - old) & 0xFFFF):
        queue.add([(DATA, 1)], [])
    device.put16(device.used + 4 + 8 * device.size, event)
    assert queue.kick_needed() == wanted


@pytest.mark.parametrize("event_idx", [False, True])
def test_waiting_asks_to_be_called_and_wakes(event_idx, eventfds):
    kick_fd, call_fd = eventfds
    queue, device = make(8, event_idx, 0, kick_fd, call_fd)
    head = queue.add([(DATA, 1)], [(DATA, 4)])
    assert queue.wait(0.01) is None
    device.push(device.pop()[0], 4)
    assert device.call_if_wanted()
    assert queue.wait(5) == (head, 4)


def test_waiting_sleeps_until_the_call(eventfds):
    kick_fd, call_fd = eventfds
    queue, device = make(8, True, 0, kick_fd, call_fd)
    queue.add([(DATA, 1)], [(DATA, 4)])
    queue.wait(0)  # the wish to be called is in the ring now

    def answer():
        select.select([kick_fd], [], [])
        device.push(device.pop()[0], 1)
        device.call_if_wanted()

    thread = threading.Thread(target=answer)
    thread.start()
    queue.kick()
    assert queue.wait(5) == (0, 1)
    thread.join()
    assert device.calls == 1


@pytest.mark.parametrize(
    ("head", "length", "message"),
    [
        (1, 0, "not in flight"),
        (8, 0, "not in flight"),
        (0xFFFFFFFF, 0, "not in flight"),
        (0, 5, "more bytes"),
    ],
)
def test_a_device_that_lies_is_caught(head, length, message):
    queue, device = make(8)
    assert queue.add([(DATA, 1)], [(DATA, 4)]) == 0
    device.push(head, length)
    with pytest.raises(DriverError, match=message):
        queue.poll()


def test_a_device_that_uses_more_than_it_got_is_caught():
    queue, device = make(8)
    queue.add([(DATA, 1)], [(DATA, 4)])
    device.put16(device.used + 2, 2)
    with pytest.raises(DriverError, match="more chains"):
        queue.poll()


def test_a_device_that_uses_a_chain_twice_is_caught():
    queue, device = make(8)
    heads = [queue.add([(DATA, 1)], []) for _ in range(3)]
    device.push(heads[1], 0)
    device.push(heads[1], 0)
    assert queue.poll() == (heads[1], 0)
    with pytest.raises(DriverError, match="not in flight"):
        queue.poll()


def test_what_the_device_does_to_the_descriptors_does_not_matter():
    queue, device = make(8, indirect=0)
    head = queue.add([(DATA, 1)] * 3, [(DATA, 4)])
    device.pop()
    queue.memory.write(queue.desc_address, b"\xff" * 16 * 8)
    device.push(head, 4)
    assert queue.poll() == (head, 4)
    assert queue.free_count == 8
    queue.add([(DATA, 1)] * 4, [(DATA, 4)] * 4)
    assert len(device.pop()[1]) == 4

# SPDX-License-Identifier: Apache-2.0
"""What an `async def` method may do, whichever thread runs the loop, and that no coroutine is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import threading
from collections.abc import Iterator

import pytest

import devices
from expect import failure
from virtiofs.fs.python.awaiting import Awaiting


@pytest.fixture
def awaiting() -> Iterator[Awaiting]:
    made = Awaiting()
    yield made
    made.close()


def test_what_waits_for_nothing_is_done_on_the_thread_that_asks(awaiting):
    async def method():
        return threading.current_thread(), asyncio.current_task() is not None, asyncio.get_running_loop()

    thread, is_task, loop = awaiting.result(method())
    assert thread is threading.current_thread() and is_task
    assert awaiting.result(method())[2] is loop
    assert "event loop" not in [one.name for one in threading.enumerate()]


def test_timeouts_groups_executors_and_processes_are_those_of_asyncio(awaiting):
    async def late():
        async with asyncio.timeout(0.001):
            await asyncio.sleep(3600)

    async def in_time():
        async with asyncio.timeout(3600):
            return "in time"

    async def group():
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(asyncio.sleep(0.001 * number, number)) for number in range(3)]
        return [task.result() for task in made]

    async def process():
        made = await asyncio.create_subprocess_exec("echo", "said", stdout=asyncio.subprocess.PIPE)
        return (await made.communicate())[0]

    with pytest.raises(TimeoutError):
        awaiting.result(late())
    assert awaiting.result(in_time()) == "in time"
    assert awaiting.result(group()) == [0, 1, 2]
    assert awaiting.result(asyncio.to_thread(lambda: 7)) == 7
    assert awaiting.result(process()) == b"said\n"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyError("k"), SystemExit(3)])
def test_what_a_method_raises_is_raised_where_it_is_waited_for(awaiting, error):
    async def at_once():
        raise error

    async def later():
        await asyncio.sleep(0)
        raise error

    for method in (at_once, later):
        with pytest.raises(type(error)) as caught:
            awaiting.result(method())
        assert caught.value is error
    assert awaiting.result(asyncio.sleep(0, "goes on")) == "goes on"


def test_tasks_that_a_method_leaves_go_on_when_nobody_waits(awaiting):
    done = threading.Event()

    async def leave():
        async def rest():
            for _ in range(3):
                await asyncio.sleep(0.001)
            done.set()

        leave.task = asyncio.create_task(rest())

    awaiting.result(leave())
    assert done.wait(20)
    # Then methods are run by those who wait for them again.
    assert devices.wait_until(lambda: not awaiting._is_run)


def test_methods_wait_for_each_other(awaiting):
    event = asyncio.Event()
    found: list[int] = []

    async def wait(number: int) -> None:
        await event.wait()
        found.append(number)

    async def wake() -> None:
        event.set()

    threads = [threading.Thread(target=awaiting.result, args=(wait(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    # One of them runs the loop, for all.
    assert devices.wait_until(lambda: awaiting._sleepers == 3)
    awaiting.result(wake())
    for thread in threads:
        thread.join(20)
    assert sorted(found) == [0, 1, 2, 3]


def test_what_waits_for_nothing_is_done_at_once_while_others_wait(awaiting):
    event = asyncio.Event()
    thread = threading.Thread(target=awaiting.result, args=(event.wait(),))
    thread.start()
    assert devices.wait_until(lambda: awaiting._is_run)

    async def method():
        return threading.current_thread()

    assert awaiting.result(method()) is threading.current_thread()

    async def wake():
        # A timer that is earlier than what the thread that runs the loop is waiting for.
        asyncio.get_running_loop().call_later(0.001, event.set)

    awaiting.result(wake())
    thread.join(20)
    assert not thread.is_alive()


def test_many_threads_get_each_its_own_results(awaiting):
    wrong: list[object] = []

    async def method(number: int) -> int:
        if number % 3 == 0:
            await asyncio.sleep(0.0001 * (number % 7))
        return number

    def ask(thread: int) -> None:
        for number in range(thread * 1000, thread * 1000 + 100):
            found = awaiting.result(method(number))
            if found != number:
                wrong.append((number, found))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def test_generators_that_are_not_exhausted_are_closed(awaiting):
    closed = threading.Event()

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.set()

    async def first():
        async for number in numbers():
            return number

    assert awaiting.result(first()) == 1
    gc.collect()
    assert closed.wait(20)
    assert awaiting.result(numbers()) == [1, 2]


@pytest.mark.parametrize("others", [0, 1])
def test_a_request_is_interrupted_whoever_runs_it(awaiting, others):
    started = threading.Semaphore(0)

    async def wait():
        started.release()
        await asyncio.sleep(3600)

    def other():
        awaiting.serve(1)
        with contextlib.suppress(InterruptedError):
            awaiting.result(wait())

    def interrupt():
        started.acquire(timeout=20)
        awaiting.interrupt(2)

    threads = [threading.Thread(target=other) for _ in range(others)]
    for thread in threads:
        thread.start()
        started.acquire(timeout=20)
    threads.append(threading.Thread(target=interrupt))
    threads[-1].start()
    awaiting.serve(2)
    assert failure(awaiting.result, wait()) == errno.EINTR
    awaiting.interrupt(1)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_an_interrupt_may_come_before_its_request(awaiting):
    awaiting.interrupt(5)
    awaiting.serve(5)
    assert failure(awaiting.result, asyncio.sleep(3600)) == errno.EINTR


def test_the_end_cancels_what_runs(awaiting):
    found: list[int] = []
    started = threading.Event()

    async def wait():
        started.set()
        await asyncio.sleep(3600)

    thread = threading.Thread(target=lambda: found.append(failure(awaiting.result, wait())))
    thread.start()
    assert started.wait(20)
    awaiting.close()
    thread.join(20)
    assert found == [errno.EINTR] and awaiting._loop.is_closed()

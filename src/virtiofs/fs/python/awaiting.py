# SPDX-License-Identifier: Apache-2.0
"""`async def` methods: one event loop, of asyncio or trio.

A thread that has a coroutine of asyncio to wait for takes its first step at once, up to where it has to wait for
something.  So a method that has nothing to wait for costs no hand-over to another thread and back, which is ten times
its own work.  Then, if no other thread runs the loop, it does so itself until its coroutine is done, else it sleeps
until then.  One thread at a time has the *turn* to touch the loop; the one that runs it gives the turn away while it
waits for events.

What is left in the loop when nobody runs it (timers, connections, tasks that methods began, coroutines of threads that
sleep) is taken care of by a thread that stands by, started when it is first needed.

The loop of trio has a thread of its own.  An INTERRUPT of the guest cancels a coroutine.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import os
import selectors
import sys
import threading
import time
from asyncio import events
from collections import OrderedDict
from collections.abc import AsyncIterable, Awaitable, Callable
from functools import partial
from types import CoroutineType
from typing import Any

# INTERRUPTs remembered that came before the request they are about, or long after it.
MOST_EARLY = 64
# How long what was cancelled at the end may take to notice (seconds).
CANCEL_SECONDS = 2.0
# How long the thread that stands by goes on before it looks whether anything is left, doubled each time (seconds).
FIRST_LOOK_SECONDS = 0.001
LAST_LOOK_SECONDS = 0.064


class Watched(selectors.DefaultSelector):
    """Gives the turn away while it waits."""

    def __init__(self, turn: threading.Lock):
        super().__init__()
        self._turn = turn

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        self._turn.release()
        try:
            found = super().select(timeout)
        finally:
            self._turn.acquire()
        # Another thread may have closed a file meanwhile, and be waiting for another one of its number.
        return [(key, events) for key, events in found if self.watches(key)]

    def watches(self, key: selectors.SelectorKey) -> bool:
        try:
            return self.get_key(key.fileobj) is key
        except (KeyError, ValueError):
            return False


class Loop(asyncio.SelectorEventLoop):
    """Takes a coroutine's first step without going round, and knows what is left in it to do.

    `turn`: who has it may use the loop, also while another thread runs it and waits.  `told` is called when a thread
    left something to do without it.
    """

    def __init__(self, turn: threading.Lock, told: Callable[[], None]) -> None:
        self._told = told
        self._watched = Watched(turn)
        self._catching = False
        self._caught: tuple[Callable[..., object], contextvars.Context] | None = None
        self._hooked = threading.local()
        super().__init__(self._watched)
        self.set_debug(False)  # or it refuses threads other than the one that runs it, turn or not
        # What it would have set, for as long as it runs, to finish generators that nobody iterates any more.
        hooks: list[Any] = []
        self.call_soon(lambda: hooks.extend(sys.get_asyncgen_hooks()))
        self.stop()
        self.run_forever()
        self._hooks = hooks

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        if self._catching:
            self._catching = False
            self._caught = (callback, context)
            return None
        return super().call_soon(callback, *args, context=context)

    def begin(self, coroutine: Any) -> asyncio.Task[Any]:
        """A task that has taken its first step, on the calling thread, which has the turn."""
        if not hasattr(self._hooked, "yes"):
            self._hooked.yes = True
            sys.set_asyncgen_hooks(*self._hooks)
        self._catching = True
        try:
            task = self.create_task(coroutine)
        finally:
            self._catching = False
        if self._caught is None:
            return task  # a Python whose tasks begin in another way
        step, context = self._caught
        self._caught = None
        events._set_running_loop(self)
        try:
            context.run(step)
        except (SystemExit, KeyboardInterrupt):
            pass  # it is the task's result, too
        finally:
            events._set_running_loop(None)
        return task

    def call_soon_threadsafe(self, *args: Any, **settings: Any) -> Any:  # type: ignore[override]
        handle = super().call_soon_threadsafe(*args, **settings)
        self._told()
        return handle

    # The next three look at what is the loop's own.  Where a Python to come has it otherwise, the loop is never taken
    # to be empty, and is woken more often: slower, and right.

    def first_timer(self) -> object:
        """What it wakes up for if nothing else happens."""
        return next(iter(getattr(self, "_scheduled", ())), None)

    def has_more(self, timer: object) -> bool:
        """Whether there is something that it would not wake up for since `timer` was the first."""
        return bool(getattr(self, "_ready", True)) or self.first_timer() is not timer

    def is_left(self, without: object) -> bool:
        """Whether there is anything to do or to wait for, but for a certain timer.

        A task that waits for nothing of this needs nobody: what it waits for comes by `call_soon_threadsafe`.
        """
        if getattr(self, "_ready", True) or len(self._watched.get_map()) > 1:  # one is the loop's own
            return True
        timers = getattr(self, "_scheduled", ())
        return any(timer is not without and not timer.cancelled() for timer in timers)


class Awaiting:
    """Awaits what methods return.  The loop is made now, while its socket pair can be; `close` ends it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._loop = Loop(self._turn, self._told)
        # These three change only by who has the turn.
        self._is_run = False  # by some thread
        self._sleepers = 0  # threads whose coroutines another one runs
        self._look: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()
        self._serving = threading.local()
        self._cancels: dict[int, Callable[[], object]] = {}  # what is under way, by the request's number
        self._early: OrderedDict[int, None] = OrderedDict()
        self._thread: threading.Thread | None = None  # that stands by
        self._called = threading.Event()
        self._ending = False

    def serve(self, unique: int) -> None:
        """The calling thread begins to serve this request."""
        self._serving.unique = unique

    def result(self, awaitable: Awaitable[Any] | AsyncIterable[Any]) -> Any:
        """Wait for an awaitable, or for all that an asynchronous generator yields: the result, or a list.

        Raises what it raises, and EINTR if the guest interrupts the request.
        """
        coroutine: Any = awaitable
        if type(awaitable) is not CoroutineType:
            coroutine = collect(awaitable) if isinstance(awaitable, AsyncIterable) else settle(awaitable)
        try:
            with self._turn:
                timer = self._loop.first_timer()
                task = self._loop.begin(coroutine)
                if self._is_run:
                    if self._loop.has_more(timer):
                        self._loop.call_soon_threadsafe(lambda: None)
                elif task.done() and self._loop.is_left(None):
                    self._call()
                if task.done():
                    return task.result()
                unique = getattr(self._serving, "unique", 0)
                cancel = partial(self._loop.call_soon_threadsafe, task.cancel)
                self._begin(unique, cancel)
                if self._is_run:
                    woken = self._sleep_for(task)
                else:
                    self._run_for(task)
                    woken = None
            if woken is not None:
                woken.acquire()
            self._end(unique, cancel)
            return task.result()
        except asyncio.CancelledError:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR)) from None

    def _run_for(self, task: asyncio.Task[Any]) -> None:
        """Run the loop until a task is done."""
        self._is_run = True
        task.add_done_callback(lambda _task: self._loop.stop())
        while not task.done():
            self._go_on()
        self._is_run = False
        if self._sleepers or self._loop.is_left(None):
            self._call()

    def _sleep_for(self, task: asyncio.Task[Any]) -> threading.Lock:
        """Leave a task to the thread that runs the loop: what to acquire, which takes until it is done."""
        woken = threading.Lock()
        woken.acquire()

        def wake(_task: object) -> None:
            self._sleepers -= 1
            woken.release()

        self._sleepers += 1
        task.add_done_callback(wake)
        return woken

    def _go_on(self) -> None:
        """Run the loop until it is stopped.  What ends it otherwise (SystemExit) is the result of a task, too."""
        with contextlib.suppress(BaseException):
            self._loop.run_forever()

    def _begin(self, unique: int, cancel: Callable[[], object]) -> None:
        with self._lock:
            self._cancels[unique] = cancel
            early = unique in self._early
        if early:
            cancel()

    def _end(self, unique: int, cancel: Callable[[], object]) -> None:
        with self._lock:
            if self._cancels.get(unique) is cancel:
                del self._cancels[unique]

    def interrupt(self, unique: int) -> None:
        """Give up the request `unique`, which may be known only later."""
        with self._lock:
            cancel = self._cancels.get(unique)
            self._early[unique] = None
            if len(self._early) > MOST_EARLY:
                self._early.popitem(last=False)
        if cancel is not None:
            cancel()

    # --- the thread that stands by ---

    def _told(self) -> None:
        # Without the turn: whoever stops running the loop looks, afterwards, at what is left in it.
        if not self._is_run:
            self._call()

    def _call(self) -> None:
        """Have the loop run though nobody waits for it."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._stand_by, name="event loop", daemon=True)
                    self._thread.start()
        self._called.set()

    def _stand_by(self) -> None:
        while True:
            self._called.wait()
            self._called.clear()
            with self._turn:
                if self._is_run:
                    continue  # that thread calls again if need be
                if (self._ending and not self._sleepers) or self._loop.is_closed():
                    return
                self._is_run = True
                self._look = self._loop.call_later(FIRST_LOOK_SECONDS, self._look_again, FIRST_LOOK_SECONDS)
                self._go_on()
                self._look.cancel()
                self._look = None
                self._is_run = False
                if self._ending or self._sleepers or self._loop.is_left(None):
                    self._called.set()

    def _look_again(self, waited: float) -> None:
        """Stop running the loop if nothing is left."""
        if not self._sleepers and (self._ending or not self._loop.is_left(self._look)):
            self._loop.stop()
            return
        waited = min(2 * waited, LAST_LOOK_SECONDS)
        self._look = self._loop.call_later(waited, self._look_again, waited)

    def close(self) -> None:
        """Cancel all that still runs, and end the thread."""
        if self._loop.is_closed():
            return
        with self._lock:
            self._ending = True
            cancels, thread = list(self._cancels.values()), self._thread
        for cancel in cancels:
            cancel()
        self._called.set()
        if thread is not None:
            thread.join(CANCEL_SECONDS)
        deadline = time.monotonic() + CANCEL_SECONDS
        while self._is_run and time.monotonic() < deadline:
            time.sleep(0.001)
        if self._turn.acquire(timeout=CANCEL_SECONDS):
            if not self._is_run:
                self._loop.close()
            self._turn.release()


async def settle(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def collect(entries: AsyncIterable[Any]) -> list[Any]:
    return [entry async for entry in entries]


class TrioAwaiting:
    """As `Awaiting`, on a loop of trio."""

    def __init__(self) -> None:
        import trio
        import trio.from_thread

        self._trio: Any = trio
        self._token: Any = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._serving = threading.local()
        self._running: dict[int, Any] = {}
        self._early: OrderedDict[int, None] = OrderedDict()

    def _run(self) -> None:
        async def main() -> None:
            self._token = self._trio.lowlevel.current_trio_token()
            self._stop = self._trio.Event()
            self._ready.set()
            await self._stop.wait()

        self._trio.run(main)

    def serve(self, unique: int) -> None:
        self._serving.unique = unique

    def result(self, awaitable: Awaitable[Any] | AsyncIterable[Any]) -> Any:
        coroutine = collect(awaitable) if isinstance(awaitable, AsyncIterable) else settle(awaitable)
        unique = getattr(self._serving, "unique", 0)
        scope = self._trio.CancelScope()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="event loop", daemon=True)
                self._thread.start()
            self._running[unique] = scope
        self._ready.wait()

        async def scoped() -> Any:
            with scope:
                # Asked here: an INTERRUPT that came before the loop could be told anything has left no more than this.
                if unique in self._early:
                    scope.cancel()
                return await coroutine

        try:
            found = self._trio.from_thread.run(scoped, trio_token=self._token)
            if scope.cancelled_caught:
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            return found
        except (self._trio.Cancelled, self._trio.RunFinishedError):
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR)) from None
        finally:
            coroutine.close()
            with self._lock:
                if self._running.get(unique) is scope:
                    del self._running[unique]

    def interrupt(self, unique: int) -> None:
        with self._lock:
            scope = self._running.get(unique)
            self._early[unique] = None
            if len(self._early) > MOST_EARLY:
                self._early.popitem(last=False)
        if scope is not None and self._token is not None:
            self._token.run_sync_soon(scope.cancel)

    def close(self) -> None:
        with self._lock:
            scopes, thread = list(self._running.values()), self._thread
        if thread is None:
            return
        self._ready.wait()
        for scope in scopes:
            self._token.run_sync_soon(scope.cancel)
        self._token.run_sync_soon(self._stop.set)
        thread.join(CANCEL_SECONDS)

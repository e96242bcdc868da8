# SPDX-License-Identifier: Apache-2.0
"""`async def` methods: one event loop, of asyncio or trio, on a thread of its own, started when the first is called.

The thread that serves the request waits for the coroutine, and an INTERRUPT of the guest cancels it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterable, Awaitable
from typing import Any

# INTERRUPTs remembered that came before the request they are about, or long after it.
MOST_EARLY = 64
# How long what was cancelled at the end may take to notice (seconds).
CANCEL_SECONDS = 2.0


class Awaiting:
    """Awaits what methods return.  The loop is made now, while its socket pair can be; `close` ends it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._serving = threading.local()
        self._running: dict[int, concurrent.futures.Future[Any]] = {}
        self._early: OrderedDict[int, None] = OrderedDict()

    def serve(self, unique: int) -> None:
        """The calling thread begins to serve this request."""
        self._serving.unique = unique

    def result(self, awaitable: Awaitable[Any] | AsyncIterable[Any]) -> Any:
        """Wait for an awaitable, or for all that an asynchronous generator yields: the result, or a list.

        Raises what it raises, and EINTR if the guest interrupts the request.
        """
        coroutine = collect(awaitable) if isinstance(awaitable, AsyncIterable) else settle(awaitable)
        unique = getattr(self._serving, "unique", 0)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True)
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._running[unique] = future
            if unique in self._early:
                future.cancel()
        try:
            return future.result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR)) from None
        finally:
            with self._lock:
                if self._running.get(unique) is future:
                    del self._running[unique]

    def interrupt(self, unique: int) -> None:
        """Give up the request `unique`, which may be known only later."""
        with self._lock:
            future = self._running.get(unique)
            self._early[unique] = None
            if len(self._early) > MOST_EARLY:
                self._early.popitem(last=False)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Cancel all that still runs, and end the thread."""
        with self._lock:
            futures, thread = list(self._running.values()), self._thread
        for future in futures:
            future.cancel()
        if thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(CANCEL_SECONDS)
        if not self._loop.is_running():
            self._loop.close()


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
            early = unique in self._early
        self._ready.wait()

        async def scoped() -> Any:
            with scope:
                if early:
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

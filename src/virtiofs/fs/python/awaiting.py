# SPDX-License-Identifier: Apache-2.0
"""`async def` methods: one event loop on a thread of its own, started when the first is called.

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

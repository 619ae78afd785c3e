"""Keyed work queue: one key is never worked on twice at once, and is asked for once however often it is added."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from . import metrics
from .kube import ApiError

Key = TypeVar("Key", bound=Hashable)
log = logging.getLogger(__name__)

FIRST_BACKOFF = 0.5  # seconds after the first error of a key; doubles each time
LAST_BACKOFF = 120.0


class WorkQueue(Generic[Key]):
    """De-duplicating queue with delays and per-key exponential backoff, served by a fixed number of workers.

    `work(key)` returns the seconds after which the key wants to be looked at again, or None. An exception in it is
    logged and the key is tried again with backoff and jitter; it never ends a worker.
    """

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], workers: int) -> None:
        self._work, self._workers = work, workers
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()  # in the queue, not yet taken
        self._active: set[Key] = set()  # being worked on
        self._again: set[Key] = set()  # added while being worked on
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._errors: dict[Key, int] = {}

    def add(self, key: Key) -> None:
        """Ask for a key to be worked on soon. Cancels a delay: whoever has news wants it now."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._active:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)
            metrics.queue_depth.set(self._ready.qsize())

    def add_after(self, key: Key, seconds: float) -> None:
        """Ask for a key to be worked on later; an earlier date that is set already stays."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if timer := self._timers.get(key):
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self.add, key)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._active.add(key)
            try:
                await self._once(key)
            finally:
                self._active.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    async def _once(self, key: Key) -> None:
        with metrics.reconcile_seconds.time():
            try:
                after = await self._work(key)
            except Exception as error:  # whatever it is, this key is tried again and the other keys go on
                count = self._errors[key] = self._errors.get(key, 0) + 1
                delay = min(LAST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(count - 1, 16)) * random.uniform(0.8, 1.2)  # noqa: S311  jitter
                metrics.reconciles.labels(result="error").inc()
                log.warning("%s: %s; trying again in %.1f s", key, error, delay, exc_info=count == 1 and not isinstance(error, ApiError))
                self.add_after(key, delay)
            else:
                self._errors.pop(key, None)
                metrics.reconciles.labels(result="success").inc()
                if after is not None:
                    self.add_after(key, after)

"""The work queue: one key at a time, once, and never lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from finetune_operator import queue as module
from finetune_operator.queue import WorkQueue


@asynccontextmanager
async def running(queue: WorkQueue[str]) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.005)


async def test_a_key_added_many_times_is_worked_on_once() -> None:
    seen: list[str] = []

    async def work(key: str) -> None:
        seen.append(key)

    queue = WorkQueue[str](work, 4)
    for _ in range(100):
        queue.add("a")
    async with running(queue):
        await until(lambda: bool(seen))
        await asyncio.sleep(0.05)
    assert seen == ["a"]


async def test_a_key_is_never_worked_on_twice_at_once_and_news_during_work_brings_another_round() -> None:
    active, most, rounds = 0, 0, 0

    async def work(_key: str) -> None:
        nonlocal active, most, rounds
        active += 1
        most, rounds = max(most, active), rounds + 1
        await asyncio.sleep(0.03)
        active -= 1

    queue = WorkQueue[str](work, 8)
    async with running(queue):
        queue.add("a")
        await until(lambda: active == 1)
        for _ in range(10):
            queue.add("a")
        await until(lambda: rounds == 2)
        await asyncio.sleep(0.1)
    assert (most, rounds) == (1, 2)


async def test_an_error_is_tried_again_and_other_keys_go_on(monkeypatch: object) -> None:
    module.FIRST_BACKOFF, before = 0.02, module.FIRST_BACKOFF
    seen: list[str] = []

    async def work(key: str) -> None:
        seen.append(key)
        if key == "bad" and seen.count("bad") < 4:
            raise RuntimeError("no")

    queue = WorkQueue[str](work, 2)
    try:
        async with running(queue):
            queue.add("bad")
            queue.add("good")
            await until(lambda: seen.count("bad") == 4)
            await asyncio.sleep(0.1)
    finally:
        module.FIRST_BACKOFF = before
    assert (seen.count("bad"), seen.count("good")) == (4, 1)


async def test_a_delay_asked_for_by_the_work_is_kept_and_the_earlier_date_wins() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()

    async def work(_key: str) -> float | None:
        times.append(loop.time())
        return 0.1 if len(times) == 1 else None

    queue = WorkQueue[str](work, 1)
    async with running(queue):
        queue.add("a")
        await until(lambda: len(times) == 1)
        queue.add_after("a", 30)
        await until(lambda: len(times) == 2)
    assert 0.08 < times[1] - times[0] < 5


async def test_news_does_not_wait_for_a_delay() -> None:
    times: list[float] = []

    async def work(_key: str) -> None:
        times.append(0)

    queue = WorkQueue[str](work, 1)
    async with running(queue):
        queue.add_after("a", 60)
        queue.add("a")
        await until(lambda: len(times) == 1)

from __future__ import annotations

import asyncio

from worker.app import _end


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    await asyncio.wait_for(_end(tasks), 10)
    assert all(task.cancelled() for task in tasks)
    assert swallowed == 3


async def test_there_may_be_nothing_to_end() -> None:
    await asyncio.wait_for(_end([]), 1)

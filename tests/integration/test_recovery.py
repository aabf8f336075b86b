"""What is claimed, released and counted as backlog, on a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import pytest
from redis.asyncio import Redis as AsyncRedis

from tests.support import Queue
from worker import recovery

T = TypeVar("T")
GROUP = "routers"
IDLE_MS = 600_000
On = Callable[[Callable[[AsyncRedis], Coroutine[Any, Any, T]]], T]


@pytest.fixture
def on(redis_url: str) -> On[Any]:
    """Runs something on a client of its own."""

    def run(work: Callable[[AsyncRedis], Coroutine[Any, Any, Any]]) -> Any:
        async def with_client() -> Any:
            async with AsyncRedis.from_url(redis_url) as client:
                return await work(client)

        return asyncio.run(with_client())

    return run


def read(queue: Queue, consumer: str, count: int) -> None:
    queue.redis.xreadgroup(GROUP, consumer, {queue.streams.queries: ">"}, count=count)


def idle(queue: Queue, consumer: str, ids: list[str]) -> None:
    queue.redis.xclaim(queue.streams.queries, GROUP, consumer, 0, ids, idle=IDLE_MS, justid=True)  # type: ignore[arg-type]


def claim(queue: Queue, on: On[Any], count: int) -> list[str]:
    found = on(lambda client: recovery.claim_stuck(client, queue.streams.queries, GROUP, "heir", idle_ms=IDLE_MS, count=count))
    return [entry.id for entry in found]


def test_entries_trimmed_before_they_were_read_are_no_backlog(queue: Queue, on: On[Any]) -> None:
    """Some versions of Redis go on counting them in the group's lag (redis/redis#13957)."""
    ids = queue.add_all(["a"] * 5)
    queue.redis.xgroup_create(queue.streams.queries, GROUP, id="0")
    read(queue, "me", 1)
    queue.redis.xtrim(queue.streams.queries, minid=ids[3], approximate=False)
    read(queue, "me", 10)
    found = on(lambda client: recovery.backlog(client, queue.streams.queries, GROUP))
    assert (found.lag, found.pending) == (0, 3)


def test_a_living_workers_entry_that_was_trimmed_stays_its_own_and_hides_no_other(queue: Queue, on: On[Any]) -> None:
    """It has the text, and delivers it as soon as Redis takes it."""
    ids = queue.add_all(["a"] * 6)
    queue.redis.xgroup_create(queue.streams.queries, GROUP, id="0")
    read(queue, "holder", 5)
    read(queue, "dead", 1)
    idle(queue, "holder", ids[:5])
    idle(queue, "dead", ids[5:])
    queue.redis.xtrim(queue.streams.queries, minid=ids[5], approximate=False)
    assert claim(queue, on, 2) == ids[5:], "beyond two pages of what is gone"
    pending = {row["message_id"].decode(): row["consumer"] for row in queue.pending_rows()}
    assert pending == dict.fromkeys(ids[:5], b"holder") | {ids[5]: b"heir"}


def test_a_worker_all_of_whose_entries_were_trimmed_is_seen_to_live(queue: Queue, on: On[Any]) -> None:
    ids = queue.add_all(["a"] * 3)
    queue.redis.xgroup_create(queue.streams.queries, GROUP, id="0")
    read(queue, "holder", 3)
    queue.redis.xtrim(queue.streams.queries, maxlen=0, approximate=False)
    time.sleep(0.5)
    before = consumer_idle_ms(queue)
    on(lambda client: recovery.keep_fresh(client, queue.streams.queries, GROUP, "holder", ids))
    assert consumer_idle_ms(queue) < before
    assert len(queue.pending_rows()) == 3


def consumer_idle_ms(queue: Queue) -> int:
    (row,) = cast("Any", queue.redis.xinfo_consumers(queue.streams.queries, GROUP))
    return int(row["idle"])


def test_what_is_handed_over_again_and_again_counts_as_delivered_once(queue: Queue, on: On[Any]) -> None:
    ids = queue.add_all(["a"])
    queue.redis.xgroup_create(queue.streams.queries, GROUP, id="0")
    read(queue, "heir", 1)
    for _ in range(8):
        on(lambda client: recovery.release(client, queue.streams.queries, GROUP, "heir", idle_ms=IDLE_MS))
        (entry,) = on(lambda client: recovery.claim_stuck(client, queue.streams.queries, GROUP, "heir", idle_ms=IDLE_MS, count=1))
        assert (entry.id, entry.deliveries) == (ids[0], 1)
    on(lambda client: recovery.release(client, queue.streams.queries, GROUP, "heir", idle_ms=IDLE_MS, blameless=False))
    (entry,) = on(lambda client: recovery.claim_stuck(client, queue.streams.queries, GROUP, "heir", idle_ms=IDLE_MS, count=1))
    assert entry.deliveries == 2, "a stuck model is a reason to count"

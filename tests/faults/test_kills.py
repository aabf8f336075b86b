"""Faults: killed and stopped workers, lost groups, a restarted Redis, poison, and the order in delivery.lua."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from tests.conftest import StartWorker
from tests.faults.parts import held, to
from tests.support import GROUP, PATIENCE_S, QUICK_CLAIM, Queue, RedisServer, wait_for
from worker import recovery
from worker.delivery import Delivered, Delivery, Duplicate, refusal_code
from worker.errors import NotDelivered

TEXTS = ("query 0", "query 1", "query 2", "query 3")

ONLY_RELEASED = {"claim_after_s": 600, "claim_every_s": 0.2}
"""Settings with which nothing but a released entry is claimed within a test."""


def test_a_killed_workers_entries_are_taken_over_and_each_arrives_once(start_worker: StartWorker, queue: Queue, texts: list[str]) -> None:
    first = start_worker(pace_s=0.5, **QUICK_CLAIM | {"batch_size": 1, "max_in_flight": 60})
    ids = queue.add_all(texts[:60])
    wait_for(queue.arrived, "the first of what takes it half a minute")
    first.kill()
    held = queue.pending_rows()
    assert held, "it died with nothing in its hands"
    second = start_worker(**QUICK_CLAIM)
    queue.assert_each_once(ids)
    assert second.metrics()["pointsman_reclaimed_total"] >= len(held)


def test_a_worker_thought_dead_that_comes_back_publishes_nothing_twice(start_worker: StartWorker, queue: Queue, texts: list[str]) -> None:
    sleeper = start_worker(pace_s=0.1, **QUICK_CLAIM | {"batch_size": 4, "max_in_flight": 60})
    ids = queue.add_all(texts[:60])
    wait_for(lambda: queue.pending() >= 20, "the sleeper to hold a part of what takes it six seconds")
    sleeper.signal(signal.SIGSTOP)
    assert queue.pending() > 0, "it fell asleep with nothing in its hands"
    start_worker(**QUICK_CLAIM)
    queue.wait_until_arrived(ids)
    sleeper.signal(signal.SIGCONT)
    wait_for(lambda: sleeper.metrics()["pointsman_duplicates_total"] > 0, "the sleeper to try to publish what it held")
    wait_for(sleeper.ready, "the sleeper to be ready again")
    assert sleeper.stop() == 0, "which it does once it has tried all of it"
    queue.assert_each_once(ids)


def test_a_busy_workers_entries_are_not_claimed_however_long_they_wait(start_worker: StartWorker, queue: Queue) -> None:
    # claiming begins when half of it is done, and late enough for a slow machine to keep the rest fresh
    quick = {"claim_after_s": 6, "claim_every_s": 0.2, "batch_timeout_s": 3, "batch_size": 1}
    busy = start_worker(pace_s=0.2, max_in_flight=60, **quick)
    ids = queue.add_all([f"query {number}" for number in range(60)])
    wait_for(lambda: queue.pending() >= 30, "the worker to hold most of what takes it twelve seconds")
    other = start_worker(pace_s=0.0, **quick)
    queue.assert_each_once(ids)
    assert other.metrics()["pointsman_reclaimed_total"] == 0
    assert busy.metrics()["pointsman_reclaimed_total"] == 0, "nor by itself"
    assert busy.metrics()["pointsman_duplicates_total"] == 0
    assert busy.metrics()["pointsman_published_total"] == len(ids)


def test_a_stuck_models_entries_are_claimed_and_its_worker_asks_for_a_restart(start_worker: StartWorker, queue: Queue) -> None:
    quick = {"claim_after_s": 2, "claim_every_s": 0.2, "batch_timeout_s": 1}
    stuck = start_worker(pace_s=1000.0, drain_timeout_s=0.5, **quick)
    ids = queue.add_all(["query 1", "query 2"])
    wait_for(lambda: len(queue.pending_rows()) == 2, "the stuck worker to hold both")
    wait_for(lambda: stuck.get("/healthz")[0] == 503, "the stuck worker to ask for a restart")
    assert stuck.get("/readyz")[0] == 503
    other = start_worker(pace_s=0.0, **quick)
    queue.assert_each_once(ids)
    assert other.metrics()["pointsman_reclaimed_total"] == 2
    assert stuck.metrics()["pointsman_reclaimed_total"] == 0, "a stuck worker takes its own entries back"
    assert queue.read(queue.streams.dead) == []
    assert stuck.stop() == 1


async def test_what_a_lost_group_had_not_finished_is_where_the_next_one_starts(client: AsyncRedis, queue: Queue) -> None:
    key, delivery = queue.streams.queries, Delivery(client, queue.streams, GROUP, "keep")
    entries = await held(client, queue, *TEXTS[:4])
    await delivery.deliver([to(queue, entry) for entry in (entries[0], entries[2])])
    known = await recovery.backlog(client, key, GROUP)
    assert known is not None
    await client.xgroup_destroy(key, GROUP)
    assert await recovery.backlog(client, key, GROUP) is None
    assert await recovery.make_group(client, key, GROUP, known.resume_from) == known.resume_from
    answer: Any = await client.xreadgroup(GROUP, "me", {key: ">"})
    ((_, rows),) = answer
    assert [entry_id.decode() for entry_id, _ in rows] == [entry.id for entry in entries[1:]]
    await delivery.deliver([to(queue, entry) for entry in entries[1:]])
    after = await recovery.backlog(client, key, GROUP)
    assert after is not None
    assert (after.pending, after.resume_from) == (0, entries[3].id)


async def test_keeping_entries_fresh_takes_none_that_another_has_claimed(client: AsyncRedis, queue: Queue) -> None:
    mine, lost = await held(client, queue, *TEXTS[:2])
    key = queue.streams.queries
    await client.xclaim(key, GROUP, "other", min_idle_time=0, message_ids=[lost.id], idle=600_000)
    await client.xclaim(key, GROUP, "me", min_idle_time=0, message_ids=[mine.id], idle=600_000, justid=True)
    await recovery.keep_fresh(client, key, GROUP, "me", [mine.id, lost.id, "1-1"])
    rows = {row["message_id"].decode(): row for row in queue.pending_rows()}
    assert rows[mine.id]["consumer"] == b"me"
    assert rows[mine.id]["time_since_delivered"] < 600_000
    assert rows[mine.id]["times_delivered"] == 1, "keeping is no delivery"
    assert rows[lost.id]["consumer"] == b"other"
    assert rows[lost.id]["time_since_delivered"] >= 600_000
    assert set(rows) == {mine.id, lost.id}


def test_a_stopped_worker_exits_0_and_the_next_has_at_once_what_it_left(start_worker: StartWorker, queue: Queue, texts: list[str]) -> None:
    first = start_worker(pace_s=0.1, batch_size=8, max_in_flight=32, **ONLY_RELEASED)
    ids = queue.add_all(texts[:200])
    wait_for(queue.arrived, "the first of what takes it twenty seconds")
    assert first.stop() == 0
    assert "Traceback" not in first.log
    assert len(queue.arrived()) < len(ids), "it finished the whole queue before it stopped"
    stayed = f"-{first.process.pid}-" in " ".join(queue.consumers())
    assert stayed is (queue.pending() > 0), "a worker leaves the group unless it holds something that others must claim from it"
    second = start_worker(wait=False, **ONLY_RELEASED)
    queue.assert_each_once(ids)
    assert second.stop() == 0


def test_a_worker_that_is_stopped_while_it_opens_its_model_exits_0(start_worker: StartWorker, tmp_path: Path) -> None:
    model = tmp_path / "slow.gguf"
    os.mkfifo(model)
    worker = start_worker(wait=False, model=model)
    with model.open("wb"):  # returns once the worker has it open, too, and waits for its first bytes
        assert worker.stop() == 0


def test_entries_that_a_stopping_worker_cannot_finish_are_released(start_worker: StartWorker, queue: Queue, texts: list[str]) -> None:
    first = start_worker(pace_s=0.25, drain_timeout_s=0.2, batch_size=8, max_in_flight=32, **ONLY_RELEASED)
    ids = queue.add_all(texts[:48])
    wait_for(lambda: queue.pending() >= 24, "the worker to hold what takes it six seconds")
    assert first.stop() == 0
    released = queue.pending_rows()
    assert released, "nothing was left to release"
    assert all(row["time_since_delivered"] >= 1000 * ONLY_RELEASED["claim_after_s"] for row in released)
    assert {row["times_delivered"] for row in released} == {0}, "however often it is handed over, it is no poison"
    second = start_worker(**ONLY_RELEASED)
    queue.assert_each_once(ids)
    assert second.metrics()["pointsman_reclaimed_total"] == len(released)


def test_a_second_signal_ends_a_worker_at_once_however_much_waits(start_worker: StartWorker, queue: Queue, texts: list[str]) -> None:
    worker = start_worker(pace_s=0.25, drain_timeout_s=PATIENCE_S, batch_size=8, max_in_flight=8, **ONLY_RELEASED)
    queue.add_all(texts[:800])
    wait_for(lambda: queue.pending() >= 16, "the worker to hold entries, and to have more at its door")
    worker.signal(signal.SIGTERM)
    time.sleep(0.5)
    worker.signal(signal.SIGTERM)
    started = time.monotonic()
    worker.process.wait(2 * PATIENCE_S)
    assert time.monotonic() - started < PATIENCE_S / 2, "it waited for what it was told to leave"
    assert "second signal" in worker.log
    assert queue.pending() >= 8, "and left it pending"


@pytest.mark.parametrize("loss", ["stream deleted", "group destroyed", "FLUSHALL"])
def test_a_lost_group_is_made_again_and_work_goes_on(
    loss: str, start_worker: StartWorker, own_redis: RedisServer, own_queue: Queue, texts: list[str]
) -> None:
    worker = start_worker(redis_url=own_redis.url, namespace=own_queue.namespace)
    before = own_queue.add_all(texts[:5])
    own_queue.assert_each_once(before)
    if loss == "stream deleted":
        own_queue.redis.delete(own_queue.streams.queries)
    elif loss == "FLUSHALL":
        own_queue.redis.flushall()
    else:
        _wait_until_noted_how_far_the_group_is(own_queue)
        own_queue.redis.xgroup_destroy(own_queue.streams.queries, GROUP)
    after = own_queue.add_all(texts[5:15])
    own_queue.wait_until_arrived(after)
    wait_for(worker.ready, "the worker to be ready again")
    last = own_queue.add_all(texts[15:20])
    own_queue.assert_each_once([*after, *last] if loss == "FLUSHALL" else [*before, *after, *last])
    assert worker.process.poll() is None


def _wait_until_noted_how_far_the_group_is(queue: Queue) -> None:
    """A worker asks once a second, and when it asks again it has noted the answer."""
    with queue.redis.monitor() as seen:
        asked = (one for one in seen.listen() if one["command"].startswith("XINFO GROUPS"))
        next(asked)
        next(asked)


def test_a_worker_survives_a_restart_of_redis(
    start_worker: StartWorker, own_redis: RedisServer, own_queue: Queue, texts: list[str]
) -> None:
    own_queue.redis.config_set("appendfsync", "always")  # else what it answered may be lost when it is killed
    where = {"redis_url": own_redis.url, "namespace": own_queue.namespace, "redis_timeout_s": 2}
    worker = start_worker(pace_s=0.1, batch_size=8, max_in_flight=32, claim_after_s=20, claim_every_s=0.2, **where)
    ids = own_queue.add_all(texts[:60])
    wait_for(own_queue.arrived, "the first of what takes it six seconds")
    own_redis.kill()
    wait_for(lambda: worker.get("/readyz")[0] == 503, "readiness to fall")
    wait_for(lambda: "Redis does not take results, trying again" in worker.log, "the worker to have results that Redis does not take")
    assert worker.get("/healthz")[0] == 200
    own_redis.start()
    wait_for(worker.ready, "the worker to be ready again")
    ids += own_queue.add_all(texts[60:80])
    own_queue.assert_each_once(ids)


def test_an_entry_delivered_too_often_goes_to_the_dead_stream(start_worker: StartWorker, queue: Queue, texts: list[str]) -> None:
    queue.redis.xgroup_create(queue.streams.queries, GROUP, id="0", mkstream=True)
    poison, innocent = queue.add({"text": texts[0], "id": "7"}), queue.add(texts[1])
    queue.redis.xreadgroup(GROUP, "crashed", {queue.streams.queries: ">"})
    # the fifth delivery has ended in a crash; the innocent was caught in the fourth
    for entry_id, count in ((poison, 5), (innocent, 4)):
        queue.redis.xclaim(
            queue.streams.queries, GROUP, "crashed", min_idle_time=0, message_ids=[entry_id], idle=600_000, retrycount=count, justid=True
        )
    worker = start_worker(max_deliveries=5)
    queue.assert_each_once([poison, innocent])
    ((stream, fields),) = queue.arrived()[poison]
    assert stream == queue.streams.dead
    assert fields[b"pointsman.reason"] == b"poison"
    assert fields[b"pointsman.deliveries"] == b"6"
    assert (fields[b"text"], fields[b"id"]) == (texts[0].encode(), b"7")
    assert queue.arrived()[innocent][0][0] != queue.streams.dead
    assert worker.metrics()['pointsman_dead_total{reason="poison"}'] == 1


async def test_delivery_publishes_and_acknowledges_in_one_step(client: AsyncRedis, queue: Queue) -> None:
    entries = await held(client, queue, *TEXTS[:3])
    results = await Delivery(client, queue.streams, GROUP, "keep").deliver([to(queue, entry) for entry in entries])
    assert all(isinstance(result, Delivered) for result in results)
    queue.assert_each_once([entry.id for entry in entries])
    assert len(queue.read(queue.streams.queries)) == 3, "retention `keep` leaves the entries in the stream"


async def test_delivery_with_retention_delete_removes_the_entry(client: AsyncRedis, queue: Queue) -> None:
    entries = await held(client, queue, *TEXTS[:2])
    await Delivery(client, queue.streams, GROUP, "delete").deliver([to(queue, entries[0])])
    assert [entry_id for entry_id, _ in queue.read(queue.streams.queries)] == [entries[1].id]


async def test_an_entry_that_is_not_pending_is_not_published(client: AsyncRedis, queue: Queue) -> None:
    one, two = await held(client, queue, *TEXTS[:2])
    delivery = Delivery(client, queue.streams, GROUP, "keep")
    await delivery.deliver([to(queue, one)])
    results = await delivery.deliver([to(queue, one, label="fence"), to(queue, two)])
    assert isinstance(results[0], Duplicate)
    assert isinstance(results[1], Delivered)
    assert {stream for stream, _ in queue.arrived()[one.id]} == {queue.streams.topic("pool")}
    queue.assert_each_once([one.id, two.id])


async def test_an_entry_that_redis_refuses_stays_pending_and_its_neighbours_go(client: AsyncRedis, queue: Queue) -> None:
    entries = await held(client, queue, *TEXTS[:3])
    await client.set(queue.streams.topic("fence"), "not a stream")
    batch = [to(queue, entries[0]), to(queue, entries[1], label="fence"), to(queue, entries[2])]
    results = await Delivery(client, queue.streams, GROUP, "keep").deliver(batch)
    assert [type(result) for result in results] == [Delivered, NotDelivered, Delivered]
    assert "WRONGTYPE" in str(results[1])
    assert [row["message_id"].decode() for row in queue.pending_rows()] == [entries[1].id]


async def test_delivery_to_a_group_that_is_gone_publishes_nothing(client: AsyncRedis, queue: Queue) -> None:
    entries = await held(client, queue, *TEXTS[:1])
    await client.xgroup_destroy(queue.streams.queries, GROUP)
    results = await Delivery(client, queue.streams, GROUP, "keep").deliver([to(queue, entries[0])])
    assert [type(result) for result in results] == [Duplicate]
    assert queue.outputs() == {}


async def test_out_of_memory_leaves_every_entry_pending(own_redis: RedisServer, own_queue: Queue) -> None:
    client = AsyncRedis.from_url(own_redis.url)
    entries = await held(client, own_queue, *TEXTS[:2])
    delivery = Delivery(client, own_queue.streams, GROUP, "keep")
    await client.config_set("maxmemory", "1")
    with pytest.raises(RedisError) as refused:
        await delivery.deliver([to(own_queue, entry) for entry in entries])
    assert refusal_code(refused.value) == "OOM"
    assert own_queue.pending() == 2
    assert own_queue.arrived() == {}
    await client.config_set("maxmemory", "0")
    assert all(isinstance(result, Delivered) for result in await delivery.deliver([to(own_queue, entry) for entry in entries]))
    await client.aclose()

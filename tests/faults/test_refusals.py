"""Redis says no, hangs, or goes away: nothing is acknowledged that was not published, and work goes on without a restart."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError

from tests.conftest import StartWorker
from tests.faults.parts import held, to
from tests.support import GROUP, PATIENCE_S, QUICK_CLAIM, Queue, RedisServer, WorkerProcess, wait_for
from worker import recovery
from worker.delivery import Delivered, Delivery, Duplicate, Repeated, Result
from worker.errors import NotDelivered

REFUSED = "Redis does not take results, trying again"
TAKEN = "Redis takes results again"
Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(start_worker: StartWorker, own_redis: RedisServer, own_queue: Queue) -> Start:
    """A worker on this test's own Redis, whose model is the stand-in: half a second a message, unless told otherwise."""

    def starting(**settings: Any) -> WorkerProcess:
        given = {"redis_url": own_redis.url, "namespace": own_queue.namespace, "pace_s": 0.5, "redis_timeout_s": 1}
        return start_worker(**given | QUICK_CLAIM | {"batch_timeout_s": 10, "claim_after_s": 20} | settings)

    return starting


def read_by(queue: Queue, *texts: str) -> list[str]:
    """Add entries and wait until the worker has them in its hands: its model is at them for as many half seconds."""
    ids = queue.add_all(texts)
    wait_for(lambda: queue.pending() == len(ids), "the worker to read them", 10)
    return ids


def assert_nothing_is_done(worker: WorkerProcess, queue: Queue, ids: list[str], reason: str) -> None:
    """Redis refuses: all is held back, none published, none acknowledged; readiness tells, and the process lives."""
    retries = f'pointsman_delivery_retries_total{{reason="{reason}"}}'
    wait_for(lambda: worker.metrics().get(retries, 0) >= 2, f"deliveries to be refused with {reason}")
    wait_for(lambda: worker.metrics()["pointsman_held_back"] == len(ids), "all to be held back")
    assert worker.get("/readyz")[0] == 503
    assert worker.get("/healthz")[0] == 200
    assert queue.arrived() == {}
    assert queue.pending() == len(ids)


def assert_all_is_done(worker: WorkerProcess, queue: Queue, ids: list[str]) -> None:
    """Redis takes it: each entry arrives once, new ones too, and the log has told of the trouble once."""
    queue.assert_each_once([*ids, queue.add("one more")])
    wait_for(worker.ready, "the worker to be ready again")
    assert worker.metrics()["pointsman_held_back"] == 0
    assert worker.log.count(REFUSED) == 1
    assert worker.log.count(TAKEN) == 1


REFUSALS: dict[str, tuple[list[str], list[str]]] = {
    "OOM": (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
    "READONLY": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
    "NOPERM": (["ACL", "SETUSER", "default", "-xadd"], ["ACL", "SETUSER", "default", "+xadd"]),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_redis_refuses_is_held_back_until_it_takes_it(reason: str, start: Start, own_queue: Queue) -> None:
    begin, end = REFUSALS[reason]
    worker = start()
    ids = read_by(own_queue, "one", "two", "three")
    own_queue.redis.execute_command(*begin)
    assert_nothing_is_done(worker, own_queue, ids, reason)
    own_queue.redis.execute_command(*end)
    assert_all_is_done(worker, own_queue, ids)


def test_a_worker_that_may_publish_but_not_acknowledge_publishes_nothing(start: Start, own_queue: Queue) -> None:
    worker = start()
    ids = read_by(own_queue, "one", "two")
    own_queue.redis.execute_command("ACL", "SETUSER", "default", "-xack")
    assert_nothing_is_done(worker, own_queue, ids, "NOPERM")
    own_queue.redis.execute_command("ACL", "SETUSER", "default", "+xack")
    assert_all_is_done(worker, own_queue, ids)


def test_a_worker_that_may_no_longer_read_says_so_once_and_reads_on_when_it_may(start: Start, own_queue: Queue) -> None:
    worker = start(pace_s=0.0)
    own_queue.assert_each_once([first := own_queue.add("one")])
    own_queue.redis.execute_command("ACL", "SETUSER", "default", "-xreadgroup")
    wait_for(lambda: worker.get("/readyz")[0] == 503, "readiness to fall", 10)
    second = own_queue.add("two")
    time.sleep(3)
    assert second not in own_queue.arrived()
    own_queue.redis.execute_command("ACL", "SETUSER", "default", "+xreadgroup")
    own_queue.assert_each_once([first, second])
    wait_for(worker.ready, "the worker to be ready again")
    assert worker.log.count("cannot read queries, trying again") == 1
    assert worker.log.count("reads queries again") == 1


def test_a_topic_of_the_wrong_type_holds_back_its_own_entries_alone(start: Start, own_queue: Queue) -> None:
    worker = start(pace_s=0.0)
    own_queue.redis.set(own_queue.streams.topic("appliances"), "not a stream")  # the stand-in's first label of 19
    ids = own_queue.add_all([f"query {number}" for number in range(19)])
    own_queue.wait_until_arrived(ids[1:])
    assert worker.metrics()["pointsman_held_back"] == own_queue.pending() == 1
    own_queue.redis.delete(own_queue.streams.topic("appliances"))
    own_queue.assert_each_once(ids)
    assert worker.log.count(REFUSED) == 1


def test_a_full_topic_holds_back_its_own_entries_until_its_reader_makes_room(start: Start, own_queue: Queue) -> None:
    worker = start(pace_s=0.0, max_topic_length=2, max_in_flight=64)
    topic = own_queue.streams.topic("appliances")
    first = own_queue.add_all([f"query {number}" for number in range(3 * 19)])  # three for each label
    wait_for(lambda: len(own_queue.arrived()) == 2 * 19, "two of each to arrive")
    wait_for(lambda: worker.metrics()["pointsman_held_back"] > 0, "the rest to be held back")
    wait_for(lambda: own_queue.pending() == 19, "the rest to be read")
    assert {len(rows) for rows in own_queue.outputs().values()} == {2}
    taken = own_queue.read(topic)
    own_queue.redis.xtrim(topic, maxlen=0)
    wait_for(lambda: own_queue.redis.xlen(topic) == 1, "the topic that has room to get its third")
    assert own_queue.pending() == 18
    for name in own_queue.keys() - {own_queue.streams.queries, topic}:
        taken += own_queue.read(name)
        own_queue.redis.xtrim(name, maxlen=0)
    wait_for(lambda: own_queue.pending() == 0, "all to be delivered")
    taken += [row for name in own_queue.keys() - {own_queue.streams.queries} for row in own_queue.read(name)]
    assert sorted(fields[b"pointsman.id"].decode() for _, fields in taken) == sorted(first)


def test_dead_letters_are_taken_however_many_there_are(start: Start, own_queue: Queue) -> None:
    start(pace_s=0.0, max_topic_length=1)
    own_queue.assert_each_once(own_queue.add_all([""] * 5))
    assert own_queue.redis.xlen(own_queue.streams.dead) == 5


def test_a_flushed_script_is_loaded_again(start: Start, own_queue: Queue) -> None:
    worker = start()
    ids = read_by(own_queue, "one", "two")
    own_queue.redis.script_flush()
    own_queue.assert_each_once(ids)
    assert REFUSED not in worker.log


def test_a_stream_of_queries_of_the_wrong_type_is_waited_out(start: Start, own_queue: Queue) -> None:
    worker = start(pace_s=0.0)
    own_queue.assert_each_once([own_queue.add("one")])
    own_queue.redis.delete(own_queue.streams.queries)
    own_queue.redis.set(own_queue.streams.queries, "not a stream")
    wait_for(lambda: worker.get("/readyz")[0] == 503, "readiness to fall", 20)
    assert worker.get("/healthz")[0] == 200
    own_queue.redis.delete(own_queue.streams.queries)
    wait_for(worker.ready, "the worker to be ready again")
    own_queue.wait_until_arrived([own_queue.add("two")])


def test_a_worker_that_redis_lets_in_but_not_read_ends_with_one_line(
    start_worker: StartWorker, own_redis: RedisServer, own_queue: Queue
) -> None:
    """Its first connection is the last that Redis takes. Standing, it would look alive and read nothing."""
    own_queue.redis.config_set("maxclients", len(cast("Any", own_queue.redis.client_list())) + 1)
    worker = start_worker(wait=False, redis_url=own_redis.url, namespace=own_queue.namespace)
    assert worker.process.wait(PATIENCE_S) == 1
    assert worker.log.splitlines()[-1].startswith("error: the worker stopped: "), worker.log


def test_a_worker_that_may_not_read_from_the_start_ends(start_worker: StartWorker, own_redis: RedisServer, own_queue: Queue) -> None:
    own_queue.redis.execute_command("ACL", "SETUSER", "default", "-xreadgroup")
    worker = start_worker(wait=False, redis_url=own_redis.url, namespace=own_queue.namespace)
    assert worker.process.wait(PATIENCE_S) == 1
    assert "xreadgroup" in worker.log.splitlines()[-1], worker.log


def test_killed_connections_are_made_again(start: Start, own_queue: Queue) -> None:
    worker = start()
    ids = read_by(own_queue, "one", "two")
    for _ in range(3):
        own_queue.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(0.3)
    own_queue.assert_each_once([*ids, own_queue.add("three")])
    wait_for(worker.ready, "the worker to be ready again")


def test_a_redis_that_hangs_without_closing_is_given_up_and_found_again(start: Start, own_redis: RedisServer, own_queue: Queue) -> None:
    worker = start()
    ids = read_by(own_queue, "one", "two")
    own_redis.signal(signal.SIGSTOP)
    try:
        wait_for(lambda: worker.get("/readyz")[0] == 503, "readiness to fall", 15)
        assert worker.get("/healthz")[0] == 200
    finally:
        own_redis.signal(signal.SIGCONT)
    own_queue.assert_each_once([*ids, own_queue.add("three")])
    wait_for(worker.ready, "the worker to be ready again")


def test_a_redis_that_comes_back_empty_is_worked_on(start: Start, own_redis: RedisServer, own_queue: Queue) -> None:
    """A restart without persistence: what was in Redis is gone, and no worker can bring it back; what comes next is routed."""
    worker = start(pace_s=0.0)
    own_queue.assert_each_once(own_queue.add_all(["one", "two"]))
    own_redis.kill()
    own_redis.forget()
    wait_for(lambda: worker.get("/readyz")[0] == 503, "readiness to fall", 15)
    own_redis.start()
    wait_for(worker.ready, "the worker to be ready again")
    own_queue.assert_each_once(own_queue.add_all(["three", "four"]))


def test_a_dead_workers_consumer_is_removed_and_a_living_one_works_on(start: Start, own_queue: Queue) -> None:
    quick = {"pace_s": 0.0, "claim_after_s": 2, "batch_timeout_s": 1, "claim_every_s": 0.2}
    dead, alive = start(**quick), start(**quick)
    ids = own_queue.add_all([f"query {number}" for number in range(30)])
    own_queue.assert_each_once(ids)
    own_queue.redis.xgroup_createconsumer(own_queue.streams.queries, GROUP, dead_name := f"host-{dead.process.pid}-a")
    dead.kill()
    wait_for(lambda: not any(f"-{dead.process.pid}-" in name for name in own_queue.consumers()), f"{dead_name} to be forgotten")
    last = own_queue.add("one more")
    own_queue.assert_each_once([*ids, last])
    assert all(f"-{alive.process.pid}-" in name for name in own_queue.consumers())


def test_a_message_that_is_sent_twice_is_published_once(start: Start, own_queue: Queue) -> None:
    worker = start(pace_s=0.0, deduplicate_by="order")
    rows = [
        {"text": "one", "order": "7"},
        {"text": "two", "order": "8"},
        {"text": "one", "order": "7"},
        {"text": "three"},
        {"text": "three"},
    ]
    ids = own_queue.add_all(rows)
    own_queue.wait_until_arrived([ids[0], ids[1], ids[3], ids[4]])
    wait_for(lambda: own_queue.pending() == 0, "nothing to be pending")
    assert own_queue.arrived().keys() == {ids[0], ids[1], ids[3], ids[4]}
    assert worker.metrics()["pointsman_deduplicated_total"] == 1
    assert 0 < own_queue.redis.ttl(own_queue.streams.seen) <= 3600


# What follows needs no worker: the delivery script alone, entry by entry.


def kinds(results: list[Result]) -> list[type[Result]]:
    return [type(result) for result in results]


async def test_a_repeated_message_is_acknowledged_within_the_window_and_published_after_it(client: AsyncRedis, queue: Queue) -> None:
    one, again, other, late = await held(client, queue, "one", "again", "other", "late")
    delivery = Delivery(client, queue.streams, GROUP, "keep", deduplicate_for_s=2.0)
    assert kinds(await delivery.deliver([to(queue, one, b"a"), to(queue, again, b"a"), to(queue, other, b"b")])) == [
        Delivered, Repeated, Delivered
    ]  # fmt: skip
    await client.zadd(queue.streams.seen, {b"a": time.time() * 1000 - 2001})
    assert kinds(await delivery.deliver([to(queue, late, b"a")])) == [Delivered]
    queue_ids = {one.id, other.id, late.id}
    assert queue.arrived().keys() == queue_ids
    assert queue.pending() == 0


async def test_a_message_that_redis_did_not_take_is_not_remembered(client: AsyncRedis, queue: Queue) -> None:
    (one,) = await held(client, queue, "one")
    delivery = Delivery(client, queue.streams, GROUP, "keep", deduplicate_for_s=60)
    await client.set(queue.streams.topic("pool"), "not a stream")
    (refused,) = await delivery.deliver([to(queue, one, b"a")])
    assert isinstance(refused, NotDelivered)
    assert (refused.code, refused.temporary) == ("WRONGTYPE", True)
    await client.delete(queue.streams.topic("pool"))
    assert kinds(await delivery.deliver([to(queue, one, b"a")])) == [Delivered]
    assert kinds(await delivery.deliver([to(queue, one, b"a")])) == [Duplicate]


async def test_what_must_be_remembered_but_cannot_be_is_not_published(client: AsyncRedis, queue: Queue) -> None:
    (one,) = await held(client, queue, "one")
    await client.set(queue.streams.seen, "not a sorted set")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await Delivery(client, queue.streams, GROUP, "keep", deduplicate_for_s=60).deliver([to(queue, one, b"a")])
    assert queue.pending() == 1
    assert queue.arrived() == {}


async def test_a_full_stream_refuses_and_the_dead_stream_never_does(client: AsyncRedis, queue: Queue) -> None:
    entries = await held(client, queue, *(f"query {number}" for number in range(5)))
    delivery = Delivery(client, queue.streams, GROUP, "keep", max_topic_length=1)
    batch = [*(to(queue, entry) for entry in entries[:2]), *(to(queue, entry, stream=queue.streams.dead) for entry in entries[2:])]
    results = await delivery.deliver(batch)
    assert kinds(results) == [Delivered, NotDelivered, Delivered, Delivered, Delivered]
    assert isinstance(results[1], NotDelivered)
    assert results[1].code == "FULL"
    assert queue.pending() == 1


async def test_a_consumer_that_holds_something_or_was_just_seen_is_not_forgotten(client: AsyncRedis, queue: Queue) -> None:
    (one,) = await held(client, queue, "one")
    key = queue.streams.queries
    await client.xgroup_createconsumer(key, GROUP, "idle")
    assert await recovery.forget_dead_consumers(client, key, GROUP, idle_ms=60_000) == 0
    assert await recovery.forget_dead_consumers(client, key, GROUP, idle_ms=0) == 1
    assert queue.consumers() == {"me"}
    await Delivery(client, queue.streams, GROUP, "keep").deliver([to(queue, one)])
    assert await recovery.forget_dead_consumers(client, key, GROUP, idle_ms=0) == 1
    assert queue.consumers() == set()

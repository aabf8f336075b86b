"""Delivery and recovery on a real Redis against a plain model of what Redis should hold, in whatever order things happen.

`MODEL_EXAMPLES=2000 python -m pytest tests/faults/test_delivery_model.py` looks longer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError

from worker import recovery
from worker.delivery import Delivered, Delivery, Duplicate, Repeated, Result, Retention
from worker.errors import NotDelivered
from worker.messages import Entry, Outgoing
from worker.recovery import Backlog
from worker.routing import Streams

T = TypeVar("T")
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "60"))
GROUP = "routers"
CONSUMERS = ["anna", "bela", "carl"]
MESSAGE_IDS = st.sampled_from([b"", b"a", b"b", b"c"])
LONG_IDLE_MS = 600_000
"""No example takes so long: only what was released is idle for it."""
WINDOW_S = 3600.0
MORE_THAN_HALF_MS = 0.6 * WINDOW_S * 1000


@dataclass(slots=True)
class Held:
    """A pending entry as the model has it."""

    consumer: str
    deliveries: int
    released: bool = False


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


class DeliveryAgainstModel(RuleBasedStateMachine):
    """What the model knows is in plain attributes; every rule does one thing to Redis and the same to these."""

    redis_url: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.client = self.run(self._connect())
        self.redis: Any = Redis.from_url(self.redis_url)
        """The same Redis for whatever is not the worker's doing."""
        self.streams = Streams(f"model-{uuid4().hex[:10]}")
        self.destinations = [self.streams.topic("pool"), self.streams.topic("fence"), self.streams.review, self.streams.dead]

        self.queries: dict[str, bytes] = {}
        """Entries in the stream of queries, and the message id that each one carries."""
        self.last_read = "0"
        self.pending: dict[str, Held] = {}
        self.known: dict[str, Entry] = {}
        """Whatever any consumer has ever held: it may try to deliver it however late."""
        self.published: dict[str, list[tuple[str, str]]] = {stream: [] for stream in self.destinations}
        """What lies in each destination: its id there and the entry's."""
        self.seen: dict[bytes, int] = {}
        """Message ids, and how often more than half of the window has passed since."""
        self.spoiled: set[str] = set()
        self.life = 0
        """How many groups there have been."""
        self.done: set[str] = set()
        self.done_in_this_life: set[str] = set()
        self.deleted: set[str] = set()
        self.noted = "0"
        """Where a group would start that takes the place of a lost one, as a worker's monitor noted it at some time."""

    async def _connect(self) -> AsyncRedis:
        return AsyncRedis.from_url(self.redis_url)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.redis.delete(self.streams.queries, self.streams.seen, *self.destinations)
        self.redis.close()
        self.run(self.client.aclose())
        self.runner.close()

    @initialize(
        retention=st.sampled_from(["keep", "delete"]),
        max_topic_length=st.sampled_from([None, 1, 4]),
        remembers=st.booleans(),
        message_ids=st.lists(MESSAGE_IDS, min_size=12, max_size=30),
        read=st.tuples(*[st.integers(0, 12)] * 3),
    )
    def start(
        self, retention: Retention, max_topic_length: int | None, remembers: bool, message_ids: list[bytes], read: tuple[int, int, int]
    ) -> None:
        """There is work under way from the first step on: an example that has to make it by chance hardly gets anywhere."""
        self.retention, self.max_topic_length, self.remembers = retention, max_topic_length, remembers
        self.delivery = Delivery(
            self.client, self.streams, GROUP, retention,
            max_topic_length=max_topic_length, deduplicate_for_s=WINDOW_S if remembers else 0,
        )  # fmt: skip
        self._make_group()
        self.producer_adds(message_ids)
        for consumer, count in zip(CONSUMERS, read, strict=True):
            if count:
                self.consumer_reads(consumer, count)

    @rule(message_ids=st.lists(MESSAGE_IDS, min_size=1, max_size=8))
    def producer_adds(self, message_ids: list[bytes]) -> None:
        for message_id in message_ids:
            entry_id = self.redis.xadd(self.streams.queries, {b"text": b"x", b"key": message_id})
            self.queries[entry_id.decode()] = message_id

    @rule(consumer=st.sampled_from(CONSUMERS), count=st.sampled_from([1, 3, 100]))
    def consumer_reads(self, consumer: str, count: int) -> None:
        replies = self.redis.xreadgroup(GROUP, consumer, {self.streams.queries: ">"}, count=count)
        rows = replies[0][1] if replies else []
        expected = [entry_id for entry_id in self.queries if _order(entry_id) > _order(self.last_read)][:count]
        assert [entry_id.decode() for entry_id, _ in rows] == expected
        for entry_id, (_, fields) in zip(expected, rows, strict=True):
            self.last_read = entry_id
            self.pending[entry_id] = Held(consumer, 1)
            self.known[entry_id] = Entry(entry_id, fields)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def consumers_deliver_what_is_pending(self, data: st.DataObject) -> None:
        """By whom does not matter: each worker that has ever held an entry may publish it."""
        self._deliver_some(sorted(self.pending, key=_order), data)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def consumers_deliver_what_they_once_held(self, data: st.DataObject) -> None:
        self._deliver_some(sorted(self.known, key=_order, reverse=True), data)

    def _deliver_some(self, entry_ids: list[str], data: st.DataObject) -> None:
        """One batch: an entry may be in it twice, and to another place than the first time."""
        one = st.tuples(st.sampled_from(entry_ids), st.sampled_from(self.destinations))
        batch = [
            self._outgoing(self.known[entry_id], destination) for entry_id, destination in data.draw(st.lists(one, min_size=1, max_size=8))
        ]
        for outgoing, result in zip(batch, self.run(self.delivery.deliver(batch)), strict=True):
            self._agree(outgoing, result)

    def _outgoing(self, entry: Entry, destination: str) -> Outgoing:
        message_id = b"" if destination == self.streams.dead else entry.fields[b"key"]
        return Outgoing(entry, destination, {b"pointsman.id": entry.id.encode(), b"life": str(self.life).encode()}, message_id)

    def _agree(self, outgoing: Outgoing, result: Result) -> None:
        """The model's result is Redis' result; then what follows from it."""
        entry_id, destination, message_id = outgoing.entry.id, outgoing.stream, outgoing.message_id
        remember = self.remembers and message_id != b""
        limit = self.max_topic_length if destination != self.streams.dead else None
        if entry_id not in self.pending:
            assert result == Duplicate()
            return
        if remember and self.seen.get(message_id, 2) < 2:
            assert result == Repeated()
        elif destination in self.spoiled:
            assert isinstance(result, NotDelivered)
            assert (result.code, result.temporary) == ("WRONGTYPE", True)
            return
        elif limit is not None and len(self.published[destination]) >= limit:
            assert isinstance(result, NotDelivered)
            assert (result.code, result.temporary) == ("FULL", True)
            return
        else:
            assert isinstance(result, Delivered), result
            assert entry_id not in self.done_in_this_life, "published twice"
            self.published[destination].append((result.id, entry_id))
            self.done_in_this_life.add(entry_id)
            if remember:
                self.seen[message_id] = 0
        del self.pending[entry_id]
        self.done.add(entry_id)
        if self.retention == "delete":
            self.queries.pop(entry_id, None)

    @precondition(lambda self: self.remembers and self.pending and not self.seen)
    @rule()
    def what_remembers_is_of_another_type(self) -> None:
        """A whole batch is refused then, before anything of it is published."""
        self.redis.set(self.streams.seen, "not a sorted set")
        batch = [self._outgoing(self.known[entry_id], self.streams.topic("pool")) for entry_id in self.pending]
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            self.run(self.delivery.deliver(batch))
        self.redis.delete(self.streams.seen)

    @precondition(lambda self: not self.spoiled)
    @rule(which=st.sets(st.integers(0, 3), min_size=1, max_size=2))
    def destinations_become_another_type(self, which: set[int]) -> None:
        for stream in (self.destinations[index] for index in which):
            if not self.published[stream]:
                self.redis.set(stream, "not a stream")
                self.spoiled.add(stream)

    @precondition(lambda self: self.spoiled)
    @rule()
    def destinations_are_mended(self) -> None:
        self.redis.delete(*self.spoiled)
        self.spoiled.clear()

    @precondition(lambda self: any(self.published.values()))
    @rule(count=st.integers(1, 4))
    def topics_consumers_delete(self, count: int) -> None:
        for stream, rows in self.published.items():
            if rows:
                self.redis.xdel(stream, *(result_id for result_id, _ in rows[:count]))
                del rows[:count]

    @precondition(lambda self: self.seen)
    @rule()
    def more_than_half_of_the_window_passes(self) -> None:
        """The clock cannot be moved, so what is remembered is made older."""
        for message_id in self.redis.zrange(self.streams.seen, 0, -1):
            self.redis.zincrby(self.streams.seen, -MORE_THAN_HALF_MS, message_id)
        self.seen = {message_id: age + 1 for message_id, age in self.seen.items()}

    @rule(consumer=st.sampled_from(CONSUMERS), idle_ms=st.sampled_from([0, LONG_IDLE_MS]), count=st.sampled_from([1, 3, 100]))
    def consumer_claims(self, consumer: str, idle_ms: int, count: int) -> None:
        claim = recovery.claim_stuck(self.client, self.streams.queries, GROUP, consumer, idle_ms=idle_ms, count=count)
        claimed = self.run(claim)
        idle = [entry_id for entry_id in sorted(self.pending, key=_order) if idle_ms == 0 or self.pending[entry_id].released]
        there = [entry_id for entry_id in idle if entry_id in self.queries]
        assert [entry.id for entry in claimed] == there[: len(claimed)]
        assert len(claimed) <= count
        assert len(claimed) >= min(count, len(there)) - (len(idle) - len(there)), "left idle entries unclaimed"
        for entry in claimed:
            held = self.pending[entry.id] = Held(consumer, self.pending[entry.id].deliveries + 1)
            assert entry.deliveries == held.deliveries
            assert entry.fields[b"key"] == self.queries[entry.id]
            self.known[entry.id] = entry
        self._let_go_of_deleted()

    @rule(consumer=st.sampled_from(CONSUMERS))
    def consumer_keeps_fresh(self, consumer: str) -> None:
        """Whatever it thinks it holds."""
        ids = [*self.known, "1-1"]
        self.run(recovery.keep_fresh(self.client, self.streams.queries, GROUP, consumer, ids))
        for entry_id in ids:
            if entry_id in self.queries and entry_id in self.pending and self.pending[entry_id].consumer == consumer:
                self.pending[entry_id].released = False

    @rule(consumer=st.sampled_from(CONSUMERS), heir=st.sampled_from([None, *CONSUMERS]))
    def consumer_releases(self, consumer: str, heir: str | None) -> None:
        mine = [held for held in self.pending.values() if held.consumer == consumer]
        assert self.run(recovery.release(self.client, self.streams.queries, GROUP, consumer, idle_ms=LONG_IDLE_MS)) == len(mine)
        for held in mine:
            held.released, held.deliveries = True, max(held.deliveries - 1, 0)
        self._let_go_of_deleted()
        if not mine:
            assert consumer not in self._consumers(), "did not leave the group"
        if heir is not None:
            self.consumer_claims(heir, LONG_IDLE_MS, 1)

    @rule(idle_ms=st.sampled_from([0, LONG_IDLE_MS]))
    def dead_consumers_are_forgotten(self, idle_ms: int) -> None:
        before = self._consumers()
        forgotten = self.run(recovery.forget_dead_consumers(self.client, self.streams.queries, GROUP, idle_ms=idle_ms))
        busy = {held.consumer for held in self.pending.values()}
        assert self._consumers() == (before & busy if idle_ms == 0 else before)
        assert forgotten == len(before) - len(self._consumers())

    def _consumers(self) -> set[str]:
        return {row["name"].decode() for row in self.redis.xinfo_consumers(self.streams.queries, GROUP)}

    @precondition(lambda self: self.queries)
    @rule(which=st.integers(0, 99))
    def someone_deletes_an_entry(self, which: int) -> None:
        """As a producer that trims the stream does, whether or not anyone has read the entry."""
        entry_id = list(self.queries)[which % len(self.queries)]
        self.redis.xdel(self.streams.queries, entry_id)
        self.deleted.add(entry_id)
        del self.queries[entry_id]

    def _let_go_of_deleted(self) -> None:
        """Redis from 7 on lets go of pending entries that were deleted when they are claimed; before, they stay."""
        there = {row["message_id"].decode() for row in self._pending_rows()}
        self.pending = {entry_id: held for entry_id, held in self.pending.items() if entry_id in there or entry_id not in self.deleted}

    def _pending_rows(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self.redis.xpending_range(self.streams.queries, GROUP, min="-", max="+", count=10_000))

    @rule()
    def monitor_notes_where_the_group_is(self) -> None:
        found = self._backlog()
        assert found is not None
        self.noted = found.resume_from

    def _backlog(self) -> Backlog | None:
        return self.run(recovery.backlog(self.client, self.streams.queries, GROUP))

    @rule(with_stream=st.booleans(), meanwhile=st.lists(MESSAGE_IDS, max_size=3))
    def group_is_lost_and_made_again(self, with_stream: bool, meanwhile: list[bytes]) -> None:
        """A monitor makes it again, from where it last saw it; what workers still hold is no longer theirs."""
        if with_stream:
            self.redis.delete(self.streams.queries)
            self.deleted |= self.queries.keys()
            self.queries.clear()
            time.sleep(0.002)  # a new stream begins its ids anew: within one millisecond they would be the same
        else:
            self.redis.xgroup_destroy(self.streams.queries, GROUP)
        self.pending.clear()
        self.producer_adds(meanwhile)
        assert self._backlog() is None
        late = [self._outgoing(entry, self.streams.dead) for entry in self.known.values()]
        assert self.run(self.delivery.deliver(late)) == [Duplicate()] * len(late)
        self._make_group()

    def _make_group(self) -> None:
        """A second worker, which has never seen the group, comes too late to move it."""
        self.last_read = self.run(recovery.make_group(self.client, self.streams.queries, GROUP, self.noted))
        self.run(recovery.make_group(self.client, self.streams.queries, GROUP, "0"))
        self.life += 1
        self.done_in_this_life = set()

    @invariant()
    def pending_entries_are_the_models(self) -> None:
        rows = {row["message_id"].decode(): (row["consumer"].decode(), row["times_delivered"]) for row in self._pending_rows()}
        assert rows == {entry_id: (held.consumer, held.deliveries) for entry_id, held in self.pending.items()}

    @invariant()
    def streams_hold_what_the_models_do(self) -> None:
        real = self._read_streams()
        assert list(real.pop(self.streams.queries)) == list(self.queries)
        expected = {stream: {} if stream in self.spoiled else dict(rows) for stream, rows in self.published.items()}
        assert {
            stream: {row: fields[b"pointsman.id"].decode() for row, fields in rows.items()} for stream, rows in real.items()
        } == expected

    def _read_streams(self) -> dict[str, dict[str, dict[bytes, bytes]]]:
        names = [self.streams.queries, *(stream for stream in self.destinations if stream not in self.spoiled)]
        pipe = self.redis.pipeline(transaction=False)
        for name in names:
            pipe.xrange(name)
        found = {name: {row.decode(): fields for row, fields in rows} for name, rows in zip(names, pipe.execute(), strict=True)}
        return found | {stream: {} for stream in self.spoiled}

    @invariant()
    def backlog_is_the_models(self) -> None:
        found = self._backlog()
        assert found is not None
        assert found.pending == len(self.pending)
        start, pending = _order(found.resume_from), sorted(map(_order, self.pending))
        if not pending:
            assert start == _order(self.last_read)
        else:
            assert start < pending[0]
            assert [entry_id for entry_id in self.queries if start < _order(entry_id) < pending[0]] == [], "would route again what is done"

    @precondition(lambda self: self.remembers)
    @invariant()
    def message_ids_are_remembered_as_the_model_does(self) -> None:
        """What is too old may still lie there; what lies there goes by itself if no more is delivered."""
        pipe = self.redis.pipeline(transaction=False)
        rows, expires_ms = pipe.zrange(self.streams.seen, 0, -1, withscores=True).pttl(self.streams.seen).execute()
        ages = {message_id: round((time.time() * 1000 - score) / MORE_THAN_HALF_MS) for message_id, score in rows}
        assert ages.items() <= self.seen.items()
        assert {message_id for message_id, age in self.seen.items() if age < 2} <= ages.keys()
        assert not rows or 0 < expires_ms <= WINDOW_S * 1000

    @invariant()
    def nothing_is_lost(self) -> None:
        """Each entry is done, or held, or still to be read, unless someone has deleted it."""
        read = {entry_id for entry_id in self.queries if _order(entry_id) <= _order(self.last_read)}
        assert read - self.done - self.pending.keys() == set()


@pytest.fixture
def machine(redis_url: str) -> type[DeliveryAgainstModel]:
    class Here(DeliveryAgainstModel):
        pass

    Here.redis_url = redis_url
    return Here


@pytest.mark.timeout(900)
def test_delivery_and_recovery_do_what_the_model_says(machine: type[DeliveryAgainstModel]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def test_an_entry_that_was_deleted_while_pending_keeps_no_other_from_being_claimed(machine: type[DeliveryAgainstModel]) -> None:
    one = machine()
    one.start("keep", None, False, [b""] * 3, (3, 0, 0))
    one.someone_deletes_an_entry(1)
    one.consumer_claims("bela", 0, 1)
    one.consumer_claims("bela", 0, 100)
    one.pending_entries_are_the_models()
    one.teardown()


def test_what_a_dead_worker_left_is_claimed_from_behind_many_entries_that_others_hold(machine: type[DeliveryAgainstModel]) -> None:
    one = machine()
    one.start("keep", None, False, [b""] * 40, (0, 39, 1))
    one.consumer_releases("carl", "anna")
    one.pending_entries_are_the_models()
    one.teardown()

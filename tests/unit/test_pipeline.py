"""The pipeline on a real event loop, with stand-ins for Redis (FakeDelivery) and the model (instant_classify)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from tests.unit.parts import StandIn, a_card, a_decision
from worker.classifier import Decision
from worker.classifier.calibration import Calibration
from worker.delivery import Delivered, Duplicate, Repeated, Result
from worker.errors import NotDelivered
from worker.messages import Entry, Outgoing
from worker.metrics import Metrics
from worker.pipeline import Limits, Pipeline
from worker.routing import Streams

Classify = Callable[[Sequence[str]], list[Decision]]
SHORT_S, PATIENCE_S = 0.05, 60.0


class FakeDelivery:
    """Takes what Redis would take. While `down` it fails as a lost connection does; while `gate` is clear it waits."""

    def __init__(self) -> None:
        self.batches: list[list[Outgoing]] = []
        self.refused: set[str] = set()
        self.later: set[str] = set()
        self.duplicates: set[str] = set()
        self.repeated: set[str] = set()
        self.error: Exception | None = None
        self.attempts = 0
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def taken(self) -> list[Outgoing]:
        return [outgoing for batch in self.batches for outgoing in batch]

    async def deliver(self, batch: Sequence[Outgoing]) -> list[Result]:
        self.attempts += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.batches.append([outgoing for outgoing in batch if outgoing.entry.id not in self.later])
        return [self._result(outgoing.entry.id) for outgoing in batch]

    def _result(self, entry_id: str) -> Result:
        if entry_id in self.refused:
            return NotDelivered("ERR no such thing", "other")
        if entry_id in self.later:
            return NotDelivered("FULL ns:topic:pool holds 9 entries", "FULL")
        if entry_id in self.repeated:
            return Repeated()
        return Duplicate() if entry_id in self.duplicates else Delivered("1-1", 5)


def instant_classify(texts: Sequence[str]) -> list[Decision]:
    """Everything is about the pool, but a text that says `crash` brings its whole call down."""
    if any("crash" in text for text in texts):
        raise RuntimeError("the model fell over")
    return [a_decision("pool") for _ in texts]


def entries(count: int, first: int = 1) -> list[Entry]:
    return [Entry(f"{number}-0", {b"text": b"query %d" % number}) for number in range(first, first + count)]


class Running:
    """A pipeline at work, and what it has delivered."""

    def __init__(self, classify: Classify, limits: Limits, executor: ThreadPoolExecutor) -> None:
        self.delivery, self.metrics = FakeDelivery(), Metrics()
        self.pipeline = Pipeline(StandIn(classify), Streams("ns"), self.delivery, self.metrics, limits, executor)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.pipeline.run())

    async def finish(self) -> list[Outgoing]:
        await self.pipeline.close()
        await asyncio.wait_for(self.task, PATIENCE_S)
        return self.delivery.taken

    def count(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"pointsman_{name}", labels)


Start = Callable[..., Awaitable[Running]]


@asynccontextmanager
async def starting() -> AsyncIterator[Start]:
    made: list[Running] = []
    with ThreadPoolExecutor(1) as executor:

        async def start(
            classify: Classify = instant_classify,
            *,
            batch_size: int = 4,
            batch_tokens: int = 1000,
            max_in_flight: int = 64,
            batch_timeout_s: float = 10.0,
            message_id_field: str | None = None,
        ) -> Running:
            limits = Limits(
                batch_size=batch_size,
                batch_tokens=batch_tokens,
                max_query_tokens=100,
                max_in_flight=max_in_flight,
                max_text_bytes=100,
                max_deliveries=3,
                batch_timeout_s=batch_timeout_s,
                message_id_field=message_id_field,
            )
            made.append(Running(classify, limits, executor))
            return made[-1]

        yield start
        for running in made:
            running.task.cancel()
        await asyncio.gather(*(running.task for running in made), return_exceptions=True)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with starting() as starter:
        yield starter


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {PATIENCE_S:.0f} s"
        await asyncio.sleep(0.002)


def ids(outgoing: Sequence[Outgoing]) -> list[str]:
    return [one.entry.id for one in outgoing]


@pytest.mark.parametrize("sizes", [[1], [4], [50], [1, 7, 2, 30]])
async def test_every_entry_is_delivered_once_and_in_order(start: Start, sizes: list[int]) -> None:
    running = await start()
    first = 1
    for size in sizes:
        await running.pipeline.submit(entries(size, first))
        first += size
    taken = await running.finish()
    assert ids(taken) == ids([Outgoing(entry, "", {}) for entry in entries(sum(sizes))])
    assert {one.stream for one in taken} == {"ns:topic:pool"}
    assert running.count("published_total") == sum(sizes)


async def test_each_decision_goes_by_the_labels_and_thresholds_of_the_model_that_made_it(start: Start) -> None:
    """`dog` is a topic of the second model alone, which wants to be surer than the first and is called otherwise."""
    running = await start()
    await running.pipeline.submit(entries(2))
    await until(lambda: len(running.delivery.taken) == 2)
    card = replace(a_card("dog", "out_of_scope"), version="second", calibration=Calibration(1.0, 0.95, {"dog": 0.99}))
    running.pipeline.model = StandIn(lambda texts: [a_decision("dog", 0.995 if "3" in text else 0.98) for text in texts], card)
    await running.pipeline.submit(entries(2, first=3))
    taken = await running.finish()
    assert [one.stream for one in taken] == ["ns:topic:pool", "ns:topic:pool", "ns:topic:dog", "ns:review"]
    assert [one.fields[b"pointsman.model"] for one in taken] == [b"abc123", b"abc123", b"second", b"second"]


async def test_a_batch_of_long_queries_is_cut_at_the_token_budget_and_one_too_long_goes_alone(start: Start) -> None:
    sizes: list[list[int]] = []

    def measured(texts: Sequence[str]) -> list[Decision]:
        sizes.append([len(text) for text in texts])
        return instant_classify(texts)

    running = await start(measured, batch_size=10, batch_tokens=12)
    lengths = [16, 16, 16, 80, 4, 4]  # by estimate 5, 5, 5, 21, 2, 2 tokens
    await running.pipeline.submit([Entry(f"{number}-0", {b"text": b"x" * length}) for number, length in enumerate(lengths, start=1)])
    assert len(await running.finish()) == len(lengths)
    assert sizes == [[16, 16], [16], [80], [4, 4]]


async def test_a_model_that_is_slow_is_given_less_at_a_time_and_the_next_model_is_not(start: Start) -> None:
    sizes: list[int] = []

    def slow(texts: Sequence[str]) -> list[Decision]:
        sizes.append(len(texts))
        time.sleep(SHORT_S)
        return instant_classify(texts)

    def quick(texts: Sequence[str]) -> list[Decision]:
        sizes.append(len(texts))
        return instant_classify(texts)

    running = await start(slow, batch_size=4, batch_timeout_s=SHORT_S / 10)
    await running.pipeline.submit(entries(7))
    await until(lambda: len(running.delivery.taken) == 7)
    assert sizes == [4, 1, 1, 1], "less than a batch may take is no more than one"
    running.pipeline.model = StandIn(quick)
    await running.pipeline.submit(entries(4, first=8))
    await running.finish()
    assert sizes == [4, 1, 1, 1, 4]


async def test_the_estimate_is_of_the_text_that_is_classified_and_of_the_tokens_that_other_alphabets_may_take(start: Start) -> None:
    sizes: list[int] = []

    def measured(texts: Sequence[str]) -> list[Decision]:
        sizes.append(len(texts))
        return instant_classify(texts)

    running = await start(measured, batch_size=10, batch_tokens=40)
    enveloped = [{b"__data__": b'{"data": "' + b"x" * 80 + b'"}', b"text": b"x"}] * 2
    georgian = [{b"text": "\u10d0".encode() * 10}] * 2  # three bytes a letter
    await running.pipeline.submit([Entry(f"{number}-0", fields) for number, fields in enumerate([*enveloped, *georgian], start=1)])
    assert len(await running.finish()) == 4
    assert sizes == [1, 1, 1, 1]


async def test_no_call_of_the_model_exceeds_the_batch_size(start: Start) -> None:
    sizes: list[int] = []

    def measured(texts: Sequence[str]) -> list[Decision]:
        sizes.append(len(texts))
        return instant_classify(texts)

    running = await start(measured, batch_size=4)
    await running.pipeline.submit(entries(10))
    await running.finish()
    assert sizes == [4, 4, 2]


async def test_the_next_batch_is_classified_while_the_last_is_delivered(start: Start) -> None:
    calls: list[int] = []

    def counted(texts: Sequence[str]) -> list[Decision]:
        calls.append(len(texts))
        return instant_classify(texts)

    running = await start(counted, batch_size=2)
    running.delivery.gate.clear()
    await running.pipeline.submit(entries(4))
    await until(lambda: len(calls) == 2)
    assert running.delivery.batches == []
    running.delivery.gate.set()
    assert len(await running.finish()) == 4


async def test_submit_waits_while_too_much_is_in_flight(start: Start) -> None:
    running = await start(max_in_flight=4)
    running.delivery.gate.clear()
    await running.pipeline.submit(entries(3))
    held_back = asyncio.create_task(running.pipeline.submit(entries(2, first=4)))
    await asyncio.sleep(SHORT_S)
    assert not held_back.done()
    running.delivery.gate.set()
    await asyncio.wait_for(held_back, PATIENCE_S)
    assert len(await running.finish()) == 5


async def test_entries_that_wait_for_room_are_held_too_and_those_delivered_are_not(start: Start) -> None:
    running = await start(max_in_flight=4)
    running.delivery.gate.clear()
    await running.pipeline.submit(entries(4))
    late = asyncio.create_task(running.pipeline.submit(entries(3, first=5)))
    await asyncio.sleep(SHORT_S)
    assert running.pipeline.held == {f"{number}-0" for number in range(1, 8)}
    running.delivery.gate.set()
    await late
    await running.finish()
    assert running.pipeline.held == set()


async def test_how_long_the_model_is_at_a_batch_is_known(start: Start) -> None:
    go_on = threading.Event()

    def slow(texts: Sequence[str]) -> list[Decision]:
        go_on.wait(PATIENCE_S)
        return instant_classify(texts)

    running = await start(slow)
    assert running.pipeline.classifying_for_s == 0
    await running.pipeline.submit(entries(1))
    await until(lambda: running.pipeline.classifying_for_s > SHORT_S)
    go_on.set()
    await running.finish()
    assert running.pipeline.classifying_for_s == 0


async def test_more_entries_than_the_bound_are_taken_when_nothing_is_in_flight(start: Start) -> None:
    running = await start(max_in_flight=2)
    await asyncio.wait_for(running.pipeline.submit(entries(5)), PATIENCE_S)
    assert len(await running.finish()) == 5


@pytest.mark.parametrize("fields", [{}, {b"text": b""}, {b"text": b"\xff"}, {b"text": b"x" * 101}, {b"__data__": b"{"}])
async def test_a_bad_entry_never_disturbs_its_neighbours(start: Start, fields: dict[bytes, bytes]) -> None:
    running = await start()
    before, after = entries(2)
    await running.pipeline.submit([before, Entry("99-0", fields), after])
    streams = {one.entry.id: one.stream for one in await running.finish()}
    assert streams == {"1-0": "ns:topic:pool", "99-0": "ns:dead", "2-0": "ns:topic:pool"}


async def test_a_failing_text_leaves_only_itself_undelivered(start: Start) -> None:
    running = await start()
    first, second, third = entries(3)
    await running.pipeline.submit([first, Entry("99-0", {b"text": b"crash"}), second, third])
    assert ids(await running.finish()) == ["1-0", "2-0", "3-0"]
    assert running.count("failed_total") == 1


async def test_a_text_that_failed_is_tried_again_when_redis_gives_it_out_again(start: Start) -> None:
    healed = False

    def heals(texts: Sequence[str]) -> list[Decision]:
        return [a_decision() for _ in texts] if healed else instant_classify(texts)

    running = await start(heals)
    failing = Entry("99-0", {b"text": b"crash"})
    await running.pipeline.submit([failing])
    await until(lambda: running.count("failed_total") == 1)
    healed = True
    await running.pipeline.submit([failing])
    assert ids(await running.finish()) == ["99-0"]


@pytest.mark.parametrize(("deliveries", "stream"), [(1, "ns:topic:pool"), (3, "ns:topic:pool"), (4, "ns:dead")])
async def test_an_entry_delivered_too_often_is_rejected_as_poison(start: Start, deliveries: int, stream: str) -> None:
    running = await start()
    await running.pipeline.submit([Entry("1-0", {b"text": b"x"}, deliveries)])
    (taken,) = await running.finish()
    assert taken.stream == stream
    assert (taken.fields.get(b"pointsman.reason") == b"poison") is (stream == "ns:dead")


async def test_a_poison_entry_is_not_shown_to_the_model_again(start: Start) -> None:
    running = await start()
    await running.pipeline.submit([Entry("1-0", {b"text": b"crash"}, deliveries=4)])
    assert [one.stream for one in await running.finish()] == ["ns:dead"]
    assert running.count("failed_total") == 0


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), ConnectionResetError("gone"), TimeoutError("slow")])
async def test_redis_errors_are_retried_until_they_pass(start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("worker.pipeline.random.uniform", lambda *_: 0.01)
    running = await start()
    running.delivery.error = error
    await running.pipeline.submit(entries(3))
    await until(lambda: running.delivery.attempts >= 3)
    assert running.delivery.taken == []
    running.delivery.error = None
    assert ids(await running.finish()) == ["1-0", "2-0", "3-0"]
    assert (running.count("delivery_retries_total", reason="unreachable") or 0) >= 3


async def test_what_redis_takes_later_does_not_hold_up_what_follows(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.random.uniform", lambda *_: 0.01)
    running = await start(batch_size=2)
    running.delivery.later = {"1-0"}
    await running.pipeline.submit(entries(6))
    await until(lambda: len(running.delivery.taken) == 5)
    assert running.pipeline.held == {"1-0"}
    assert running.pipeline.held_back == running.count("held_back") == 1
    running.delivery.later.clear()
    assert set(ids(await running.finish())) == {f"{number}-0" for number in range(1, 7)}
    assert running.pipeline.held_back == running.count("held_back") == 0
    assert running.count("failed_total") == 0


async def test_what_redis_takes_later_counts_as_in_flight(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.random.uniform", lambda *_: 0.01)
    running = await start(max_in_flight=2)
    running.delivery.later = {"1-0", "2-0"}
    await running.pipeline.submit(entries(2))
    await until(lambda: running.pipeline.held_back == 2)
    late = asyncio.create_task(running.pipeline.submit(entries(1, first=3)))
    await asyncio.sleep(SHORT_S)
    assert not late.done()
    running.delivery.later.clear()
    await late
    assert len(await running.finish()) == 3


async def test_a_refusal_is_logged_once_for_each_reason_and_once_when_it_is_over(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.random.uniform", lambda *_: 0.01)
    running = await start(batch_size=2)
    running.delivery.later = {f"{number}-0" for number in range(1, 7)}
    with capture_logs() as logs:
        await running.pipeline.submit(entries(6))
        await until(lambda: running.delivery.attempts >= 9)
        running.delivery.error = RedisConnectionError("gone")
        await until(lambda: (running.count("delivery_retries_total", reason="unreachable") or 0) >= 3)
        running.delivery.error, running.delivery.later = None, set()
        await running.finish()
    told = [(entry["event"], entry.get("reason")) for entry in logs]
    refused = "Redis does not take results, trying again"
    assert told == [(refused, "FULL"), (refused, "unreachable"), ("Redis takes results again", None)]


async def test_a_repeated_message_is_done_with(start: Start) -> None:
    running = await start(message_id_field="id")
    running.delivery.repeated = {"2-0"}
    await running.pipeline.submit([Entry(f"{number}-0", {b"text": b"x", b"id": b"order-7"}) for number in (1, 2)])
    taken = await running.finish()
    assert [one.message_id for one in taken] == [b"order-7", b"order-7"]
    assert [running.count(name) for name in ("deduplicated_total", "published_total")] == [1, 1]
    assert running.pipeline.held == set()


async def test_a_dead_letter_carries_no_message_id_so_that_a_corrected_retry_is_published(start: Start) -> None:
    running = await start(message_id_field="id")
    await running.pipeline.submit([Entry("1-0", {b"text": b"", b"id": b"order-7"})])
    (dead,) = await running.finish()
    assert (dead.stream, dead.message_id) == ("ns:dead", b"")


async def test_an_entry_that_redis_refuses_or_another_worker_did_is_no_longer_held(start: Start) -> None:
    running = await start(max_in_flight=2)
    running.delivery.refused, running.delivery.duplicates = {"1-0"}, {"2-0"}
    await running.pipeline.submit(entries(2))
    await asyncio.wait_for(running.pipeline.submit(entries(2, first=3)), PATIENCE_S)
    await running.finish()
    assert [running.count(name) for name in ("failed_total", "duplicates_total", "published_total")] == [1, 1, 2]


async def test_close_drains_what_was_submitted(start: Start) -> None:
    running = await start(batch_size=2)
    running.delivery.gate.clear()
    await running.pipeline.submit(entries(7))
    await running.pipeline.close()
    await asyncio.sleep(SHORT_S)
    assert not running.task.done()
    running.delivery.gate.set()
    await asyncio.wait_for(running.task, PATIENCE_S)
    assert len(running.delivery.taken) == 7


async def test_close_ends_an_idle_pipeline_at_once(start: Start) -> None:
    assert await (await start()).finish() == []


async def test_an_entry_in_flight_is_not_taken_twice(start: Start) -> None:
    running = await start()
    running.delivery.gate.clear()
    await running.pipeline.submit(entries(3))
    await running.pipeline.submit([*entries(3), *entries(1, first=4)])
    running.delivery.gate.set()
    assert ids(await running.finish()) == ["1-0", "2-0", "3-0", "4-0"]


async def test_a_fault_in_delivery_ends_run_even_when_nothing_more_comes(start: Start) -> None:
    running = await start()
    running.delivery.error = AssertionError("a fault in this program")
    await running.pipeline.submit(entries(1))
    with pytest.raises(AssertionError, match="a fault in this program"):
        await asyncio.wait_for(running.task, PATIENCE_S)

"""The benchmark's own parts, on a real Redis and real worker processes, with little to do.

What is fast belongs in the benchmark. Here rates are held against bounds alone that no noise of the machine can break.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from redis import Redis

from tests.support import MODEL
from worker.bench import engine, service
from worker.classifier import Classifier, EngineOptions
from worker.errors import Fatal
from worker.routing import Streams
from worker.settings import load_settings
from worker.worker_process import Running


@pytest.fixture
def bench(redis_url: str, household: Classifier) -> Iterator[service.Bench]:
    settings = load_settings({}, format="original", model=MODEL)
    made = service.make(redis_url, MODEL, EngineOptions(), household.card.labels.names, settings)
    yield made
    service.clear(made)
    made.redis.close()


def published(bench: service.Bench) -> list[tuple[str, int]]:
    """Every message that came out: its id in the stream of queries, and when it was published, in ms of Redis' clock."""
    rows: list[Any] = [row for name in bench.outputs for row in bench.redis.xrange(name)]  # type: ignore[union-attr]
    return [(fields[b"pointsman.id"].decode(), int(entry_id.partition(b"-")[0])) for entry_id, fields in rows]


def assert_each_came_out_once(bench: service.Bench, count: int) -> None:
    sent: Any = bench.redis.xrange(service.STREAMS.queries)
    assert len(sent) == count
    assert sorted(entry_id for entry_id, _ in published(bench)) == sorted(entry_id.decode() for entry_id, _ in sent)


def took_s(bench: service.Bench) -> float:
    """From the first XADD to the last publication, by Redis' clock."""
    rows = published(bench)
    return (max(at_ms for _, at_ms in rows) - min(int(entry_id.partition("-")[0]) for entry_id, _ in rows)) / 1000


def test_a_rate_counts_what_follows_the_first_publication_until_the_last(bench: service.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish(bench: service.Bench, texts: Sequence[str], count: int) -> None:
        for number, at_ms in enumerate((1000, 1000, 1500, 3000)):
            bench.redis.xadd(bench.outputs[number % 2], {"pointsman.id": "1-0"}, id=f"{at_ms}-{number}")

    monkeypatch.setattr(service, "fill", publish)
    assert service.saturated(bench, ["a"], 4, at_once=2).messages_per_s == pytest.approx(2 / 2.0)


def test_the_first_batches_of_many_workers_are_not_counted(bench: service.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers publish two messages each second; what each publishes first was computed before the clock started."""

    def publish(bench: service.Bench, texts: Sequence[str], count: int) -> None:
        for number, at_ms in enumerate((1000, 1001, 1500, 1501, 2000, 2001, 2500, 2501, 3000, 3001, 3500, 3501)):
            bench.redis.xadd(bench.outputs[number % 2], {"pointsman.id": "1-0"}, id=f"{at_ms}-{number}")

    monkeypatch.setattr(service, "fill", publish)
    assert service.saturated(bench, ["a"], 12, at_once=4).messages_per_s == pytest.approx(8 / 2.0)
    assert service.saturated(bench, ["a"], 12, at_once=100).messages_per_s == pytest.approx(12 / 3.5)


def test_a_stand_in_worker_moves_every_message_once_and_bare_redis_is_timed_on_the_same(bench: service.Bench) -> None:
    started = time.monotonic()
    flow, bare = service.stand_in(bench, ["My pool pump is humming"], 3000)
    seconds = time.monotonic() - started
    assert_each_came_out_once(bench, 3000)
    assert bare > 3000 / seconds
    assert flow.messages_per_s > (3000 - 2 * 256) / seconds, "what came out first, a batch or two in the same millisecond, is not counted"
    assert max(flow.messages_per_s, bare) < 1e6, "more than Redis can"
    assert 0 < flow.redis_us < 1e6 * seconds / 3000, "Redis computes with one core"


def test_a_paced_stand_in_takes_its_time(bench: service.Bench) -> None:
    assert service.scale_out(bench, 1, 0.01, 3.0).messages_per_s > 0
    assert_each_came_out_once(bench, 300)
    assert took_s(bench) > 3.0 * 0.99


def test_workers_that_are_scaled_out_share_the_messages(bench: service.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    worker = service.worker

    @contextmanager
    def watched(bench: service.Bench, pace_s: float | None = None, **settings: str) -> Iterator[Running]:
        with worker(bench, pace_s, **settings) as running:
            yield running
            with urllib.request.urlopen(f"{running.url}/metrics", timeout=30) as reply:
                lines = reply.read().decode().splitlines()
            shares.append(next(float(line.split()[1]) for line in lines if line.startswith("pointsman_published_total ")))

    monkeypatch.setattr(service, "worker", watched)
    assert service.scale_out(bench, 2, 0.01, 3.0).messages_per_s > 0, "three seconds' work for each"
    assert_each_came_out_once(bench, 600)
    assert took_s(bench) > 3.0 * 0.99
    assert len(shares) == 2
    assert min(shares) > 0


def test_latency_is_measured_one_at_a_time_and_at_a_rate(bench: service.Bench) -> None:
    def one_pass() -> float:
        time.sleep(0.02)
        return 2.0

    with service.worker(bench, 0.005):
        alone = service.latency(bench, ["a", "b"], 0.0, 3.0, one_pass)
        loaded = service.latency(bench, ["a", "b"], 40.0, 4.0, one_pass)
    assert 2 <= alone.messages <= 3.0 / 0.005 + 1, "one was sent before the last was out"
    assert 20 <= loaded.messages <= 1.5 * 40 * 4.0
    for found in (alone, loaded):
        assert 4 <= found.p50_ms <= found.p99_ms
        assert found.forward_pass_ms >= 10, "two took twenty"


def test_a_worker_with_the_real_model_moves_every_message_once_and_its_engine_is_timed_on_the_same(
    bench: service.Bench, texts: list[str]
) -> None:
    started = time.monotonic()
    through, alone = service.through_redis(bench, texts[:150])
    seconds = time.monotonic() - started
    assert_each_came_out_once(bench, 150)
    assert alone > 150 / seconds
    assert through.messages_per_s > (150 - 64) / seconds, "the first batch is not counted"


def test_a_worker_says_how_much_memory_it_holds_and_stays_under_its_limit(bench: service.Bench, texts: list[str]) -> None:
    found = service.memory(bench, texts, 4000)
    assert 100 < found.early_mb < 700
    assert found.late_mb < found.early_mb + 40
    assert found.peak_mb is not None
    assert found.late_mb <= found.peak_mb < 700


def test_only_one_redis_can_be_measured(household: Classifier) -> None:
    settings = load_settings({}, format="original", model=MODEL)
    with pytest.raises(Fatal, match="one Redis"):
        service.make("redis+cluster://localhost:6379", MODEL, EngineOptions(), household.card.labels.names, settings)


def test_the_engine_is_compared_with_prefill_and_the_ordinary_way(texts: list[str]) -> None:
    steps: list[None] = []
    figures = engine.measure(MODEL, EngineOptions(sequences=16), texts[:48], 3, lambda: steps.append(None))
    assert len(steps) == 3 * 7
    assert figures.prefill_tokens in engine.PREFILL_TOKENS
    assert 0 < figures.batches_to_prefill < 2 * figures.to_prefill, "three batches share less than all at once"
    assert figures.to_server is None
    assert 0.5 < figures.computed_share < 1.1, "up to 63 tokens are computed beside the queries when what is held is chosen anew"
    assert figures.to_ordinary > 1, "batched decoding, six times as fast as create_completion, is slower in two rounds of three"
    assert figures.messages_per_s == pytest.approx(figures.tokens_per_s / figures.tokens_per_message)
    assert 10 < figures.forward_pass_tokens < 40


def test_the_benchmark_leaves_the_streams_of_others_alone(bench: service.Bench, redis: Redis) -> None:
    others = Streams("pointsman-benchmarked-not")
    redis.xadd(others.queries, {"text": "hello"})
    service.fill(bench, ["a", "b", "c"], 7)
    entries: Any = redis.xrange(service.STREAMS.queries)
    assert [fields[b"text"] for _, fields in entries] == [b"a", b"b", b"c", b"a", b"b", b"c", b"a"]
    service.clear(bench)
    service.fill(bench, ["a", "b", "c"], 7, repeats=2)
    entries = redis.xrange(service.STREAMS.queries)
    assert [fields[b"text"] for _, fields in entries] == [b"a", b"a", b"b", b"b", b"c", b"c", b"a"]
    assert all(left != right for left, right in pairwise(entries))
    service.clear(bench)
    assert redis.xlen(others.queries) == 1
    redis.delete(others.queries)

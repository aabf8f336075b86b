"""The benchmark's own parts, on a real Redis and real worker processes, with little to do."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from redis import Redis

from tests.support import MODEL
from worker.bench import engine, service
from worker.classifier import Classifier, EngineOptions
from worker.routing import Streams
from worker.settings import load_settings


@pytest.fixture
def bench(redis_url: str, household: Classifier) -> Iterator[service.Bench]:
    settings = load_settings({}, format="original", model=MODEL)
    made = service.make(redis_url, MODEL, EngineOptions(), household.card.labels.names, settings)
    yield made
    service.clear(made)
    made.redis.close()


def test_a_stand_in_worker_moves_every_message_and_is_compared_with_bare_redis(bench: service.Bench) -> None:
    worker, bare = service.stand_in(bench, ["My pool pump is humming"], 3000)
    assert 0 < worker < 10 * bare
    assert sum(bench.redis.xlen(name) for name in bench.outputs) == 3000


def test_a_paced_stand_in_takes_its_time_and_two_take_half_of_it(bench: service.Bench) -> None:
    one, two = service.scale_out(bench, 1, 0.01, 3.0), service.scale_out(bench, 2, 0.01, 3.0)
    assert one <= 100 * 1.1
    assert two > 1.2 * one


def test_latency_is_measured_one_at_a_time_and_at_a_rate(bench: service.Bench) -> None:
    with service.worker(bench, 0.005):
        alone = service.latency(bench, ["a", "b"], 0.0, 1.5)
        loaded = service.latency(bench, ["a", "b"], 40.0, 2.0)
    assert alone.messages >= 10
    assert 40 <= loaded.messages <= 160
    for found in (alone, loaded):
        assert 4 <= found.p50_ms <= found.p99_ms


def test_a_worker_with_the_real_model_is_compared_with_its_engine(bench: service.Bench, texts: list[str]) -> None:
    through, alone = service.through_redis(bench, texts[:150])
    assert 0 < through < 2 * alone


def test_a_worker_says_how_much_memory_it_holds_and_stays_under_its_limit(bench: service.Bench, texts: list[str]) -> None:
    found = service.memory(bench, texts, 4000)
    assert 100 < found.early_mb < 700
    assert found.late_mb < found.early_mb + 40


def test_the_engine_is_compared_with_prefill_and_the_ordinary_way(texts: list[str]) -> None:
    steps: list[None] = []
    figures = engine.measure(MODEL, EngineOptions(), texts[:48], 1, lambda: steps.append(None))
    assert len(steps) == 6
    assert figures.to_server is None
    assert 0.5 < figures.computed_share < 1.1, "up to 63 tokens are computed beside the queries when what is held is chosen anew"
    assert figures.to_ordinary > 1, "batched decoding is slower than create_completion"
    assert figures.messages_per_s == pytest.approx(figures.tokens_per_s / figures.tokens_per_message)
    assert 0 < figures.forward_pass_s < 2


def test_the_benchmark_leaves_the_streams_of_others_alone(bench: service.Bench, redis: Redis) -> None:
    others = Streams("pointsman-benchmarked-not")
    redis.xadd(others.queries, {"text": "hello"})
    service.fill(bench, ["a", "b", "c"], 7)
    entries = [fields[b"text"] for _, fields in redis.xrange(service.STREAMS.queries)]
    assert entries == [b"a", b"b", b"c", b"a", b"b", b"c", b"a"]
    assert all(left != right for left, right in pairwise(redis.xrange(service.STREAMS.queries)))
    service.clear(bench)
    assert redis.xlen(others.queries) == 1
    redis.delete(others.queries)

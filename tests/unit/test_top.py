"""The pure parts of `worker top`: two readings -> a frame, a frame -> lines, a worker's metrics -> figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from rich.console import Console

from tests.unit.parts import a_card, a_decision
from worker.errors import SettingsError
from worker.metrics import Metrics
from worker.routing import Streams
from worker.top.frame import Frame, Output, Reading, Worker, increase, make_frame, quantile
from worker.top.scrape import Figures, Scrape, check_url, parse
from worker.top.snapshot import Consumer, Count, Dead, Group, Newest, Snapshot
from worker.top.view import render

STREAMS = Streams("ns")
POOL = STREAMS.topic("pool")
START_MS = 1_000_000.0


def a_snapshot(
    at_s: float, queries: Count | None, outputs: dict[str, Count], *, lag: int | None = 0, names: tuple[str, ...] = ()
) -> Snapshot:
    consumers = tuple(Consumer(name, 3, 500) for name in names)
    return Snapshot(START_MS + 1000 * at_s, queries, Group(lag, 0, None), consumers, outputs, None, ())


def counted(added: int, length: int | None = None) -> Count:
    """As Redis 7 counts a stream."""
    return Count(added if length is None else length, added, "1-0")


def uncounted(length: int) -> Count:
    """As Redis before 7.0 does."""
    return Count(length, None, "1-0")


def figures(name: str = "a", published: float = 0.0, latency: tuple[float, float] = (0.0, 0.0), **other: Any) -> Figures:
    """`latency`: how many took no longer than a second, and how many in all."""
    told: dict[str, Any] = {"stream": STREAMS.queries, "group": "routers", "model": "made-up abc123"} | other
    buckets = ((1.0, latency[0]), (math.inf, latency[1]))
    return Figures(consumer=name, published=published, queries=2 * published, calls=published, latency=buckets, **told)


def frame_of(now: Snapshot, before: Snapshot | None = None, told: tuple[Figures, ...] = (), told_before: tuple[Figures, ...] = ()) -> Frame:
    return make_frame(STREAMS, "routers", Reading(now, Scrape(told)), Reading(before, Scrape(told_before)) if before else None)


def shown(frame: Frame, width: int = 100, height: int | None = None) -> list[str]:
    console = Console(file=StringIO(), width=width, color_system=None)
    with console.capture() as printed:
        console.print(render(frame, width, height))
    return printed.get().splitlines()


def test_rates_are_what_was_added_in_between_whatever_was_deleted() -> None:
    before = a_snapshot(0, counted(100), {POOL: counted(50), STREAMS.review: counted(10)})
    now = a_snapshot(4, counted(140, length=0), {POOL: counted(80, length=2), STREAMS.review: counted(12)})
    frame = frame_of(now, before)
    assert (frame.over_s, frame.in_per_s, frame.out_per_s) == (4.0, 10.0, 8.0)
    assert {output.place: (output.total, output.per_s) for output in frame.outputs} == {"pool": (80, 7.5), "review": (12, 0.5)}


def test_the_first_frame_has_no_rates() -> None:
    frame = frame_of(a_snapshot(0, counted(100), {POOL: counted(50)}), told=(figures(published=9),))
    assert (frame.over_s, frame.in_per_s, frame.out_per_s, frame.workers[0].per_s, frame.latency_p50_s) == (None,) * 5
    assert frame.workers[0].model == "made-up abc123"


def test_a_stream_that_is_new_or_made_again_counts_from_zero() -> None:
    before = a_snapshot(0, counted(1000), {POOL: counted(500)})
    now = a_snapshot(2, counted(6), {POOL: counted(4), STREAMS.dead: counted(2)})
    frame = frame_of(now, before)
    assert (frame.in_per_s, frame.out_per_s, frame.dead_per_s) == (3.0, 3.0, 1.0)


def test_without_counts_of_redis_lengths_count_and_one_that_fell_tells_nothing() -> None:
    before = a_snapshot(0, uncounted(10), {POOL: uncounted(50), STREAMS.review: uncounted(5)})
    frame = frame_of(a_snapshot(2, uncounted(14), {POOL: uncounted(40), STREAMS.review: uncounted(7)}), before)
    assert not frame.counts_added
    assert (frame.in_per_s, frame.out_per_s) == (2.0, None)
    assert {output.place: output.per_s for output in frame.outputs} == {"pool": None, "review": 1.0}


def test_redis_clock_that_went_back_tells_no_rates() -> None:
    before, now = a_snapshot(9, counted(1), {POOL: counted(1)}), a_snapshot(0, counted(5), {POOL: counted(5)})
    assert (frame_of(now, before).over_s, frame_of(now, before).in_per_s) == (None, None)


def test_a_worker_is_measured_between_two_readings() -> None:
    before, now = (a_snapshot(at, counted(0), {}, names=("a",)) for at in (0, 2))
    (worker,) = frame_of(now, before, (figures(published=30, latency=(20, 20)),), (figures(published=10, latency=(10, 10)),)).workers
    assert (worker.per_s, worker.batch_size, worker.in_flight, worker.idle_s, worker.not_ready) == (10.0, 2.0, 3, 0.5, ())
    assert worker.latency_p50_s == pytest.approx(0.5)


def test_a_worker_that_started_anew_under_its_name_counts_from_zero() -> None:
    before, now = (a_snapshot(at, counted(0), {}, names=("a",)) for at in (0, 2))
    frame = frame_of(now, before, (figures(published=4, latency=(4, 4)),), (figures(published=900, latency=(900, 900)),))
    assert frame.workers[0].per_s == 2.0
    assert frame.latency_p50_s == pytest.approx(0.5)


def test_a_worker_that_vanished_is_gone_and_one_that_came_has_no_rate_yet() -> None:
    before, now = a_snapshot(0, counted(0), {}, names=("a", "b")), a_snapshot(2, counted(0), {}, names=("b", "c"))
    told_before, told = (figures("a", 5), figures("b", 5)), (figures("b", 9, (4, 4)), figures("c", 5000, (5000, 5000)))
    frame = frame_of(now, before, told, told_before)
    assert [(worker.consumer, worker.per_s) for worker in frame.workers] == [("b", 2.0), ("c", None)]
    assert frame.latency_p99_s == pytest.approx(0.99), "only b's four messages"


def test_workers_are_shown_that_only_redis_or_only_http_knows() -> None:
    frame = frame_of(a_snapshot(0, counted(0), {}, names=("silent",)), told=(replace(figures("new"), not_ready=("redis",)),))
    assert [(worker.consumer, worker.idle_s, worker.not_ready) for worker in frame.workers] == [
        ("new", None, ("redis",)),
        ("silent", 0.5, None),
    ]
    assert "1 of 2 workers tell their own figures" in "\n".join(shown(frame))


def test_a_worker_of_another_group_is_named_and_not_counted() -> None:
    frame = frame_of(a_snapshot(0, counted(0), {}), told=(figures("b", group="others"),))
    assert frame.workers == ()
    assert frame.unreachable == ("worker b is not shown: it reads ns:queries in the group others",)


def test_a_lag_that_redis_cannot_tell_is_null_and_a_question_mark() -> None:
    frame = frame_of(a_snapshot(2, counted(5), {}, lag=None), a_snapshot(0, counted(5), {}))
    assert json.loads(json.dumps(frame.as_dict()))["lag"] is None
    names, values = shown(frame)[2:4]
    assert values[names.index("lag")] == "?"


def test_what_is_missing_is_said() -> None:
    nothing = a_snapshot(0, None, {})
    assert "there is no stream ns:queries" in "\n".join(shown(frame_of(replace(nothing, group=None))))
    no_group = replace(nothing, queries=counted(3), group=None)
    assert "there is no group routers" in "\n".join(shown(frame_of(no_group)))
    assert "no worker is in the group" in "\n".join(shown(frame_of(replace(no_group, group=Group(0, 0, None)))))


def test_ages_and_dead_letters_are_by_redis_clock() -> None:
    now = a_snapshot(0, counted(1), {STREAMS.dead: counted(3)})
    dead = (Dead(int(START_MS) - 2000, "poison"), Dead(int(START_MS) - 9000, "empty_text"), Dead(int(START_MS) - 9500, "empty_text"))
    newest = Newest(int(START_MS) - 100, 40, "abc123")
    frame = frame_of(replace(now, dead=dead, newest=newest, group=Group(0, 1, int(START_MS) - 5000)))
    assert (frame.oldest_pending_s, frame.newest_age_s, frame.newest_latency_s, frame.models) == (5.0, 0.1, 0.04, ("abc123",))
    assert (frame.dead, frame.dead_reasons, frame.newest_dead_age_s) == (3, {"empty_text": 2, "poison": 1}, 2.0)


def test_review_and_dead_come_first_and_then_the_largest_topics() -> None:
    topics = {STREAMS.topic(name): counted(total) for name, total in (("a", 5), ("b", 5), ("c", 9))}
    frame = frame_of(a_snapshot(0, counted(1), topics | {STREAMS.review: counted(2), STREAMS.dead: counted(1)}))
    assert [(output.place, output.kind) for output in frame.outputs[:3]] == [("review", "review"), ("dead", "dead"), ("c", "topic")]
    assert [output.place for output in frame.outputs[3:]] == ["a", "b"]


def test_quantiles_lie_on_a_line_between_the_bounds() -> None:
    buckets = [(1.0, 10.0), (2.0, 20.0), (4.0, 20.0), (math.inf, 40.0)]
    assert [quantile(share, buckets) for share in (0.25, 0.375, 0.5, 0.99)] == [1.0, 1.5, 2.0, 4.0]
    assert quantile(0.5, []) is None
    assert quantile(0.5, [(1.0, 0.0), (math.inf, 0.0)]) is None


def test_a_counter_that_fell_has_begun_anew() -> None:
    assert (increase(3, 5), increase(5, 5), increase(5, 2)) == (2, 0, 2)


def a_full_frame(workers: int, outputs: int, name: str = "host-1234-abcdef") -> Frame:
    frame = frame_of(a_snapshot(2, counted(5000), {}), a_snapshot(0, counted(10), {}))
    return replace(
        frame,
        models=tuple(f"household {number}" for number in range(workers)),
        dead_reasons={"empty_text": 3, "poison": 1},
        newest_dead_age_s=99999.0,
        newest_age_s=0.5,
        workers=tuple(
            Worker(f"{name}-{number}", number, 1e6, 123.4, 8.0, 0.01, 0.02, "household 1d7c24e0ed0d", ()) for number in range(workers)
        ),
        outputs=tuple(Output(f"ns:topic:{name}-{number}", "topic", f"{name}-{number}", 10**number, 1234.5) for number in range(outputs)),
        unreachable=("http://somewhere:8080: Connection refused",) * workers,
    )


@settings(max_examples=40)
@given(st.integers(20, 220), st.integers(24, 80), st.integers(0, 30), st.integers(0, 40))
def test_a_frame_is_never_wider_nor_higher_than_the_terminal(width: int, height: int, workers: int, outputs: int) -> None:
    lines = shown(a_full_frame(workers, outputs), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height


def test_what_does_not_fit_is_counted() -> None:
    lines = shown(a_full_frame(9, 30), 80, 30)
    assert len(lines) == 30
    assert [line.strip() for line in lines if line.startswith("and")] == ["and 6 more that cannot be asked", "and 2 more", "and 24 more"]
    assert len([line for line in lines if line.startswith("host-1234-abcdef")]) == 7 + 6


def test_a_name_cannot_move_the_cursor() -> None:
    text = "\n".join(shown(a_full_frame(2, 2, name="\x1b[2Jname\n[red]")))
    assert "\x1b" not in text
    assert "\ufffd[2Jname\ufffd[red]-0" in text


def test_a_workers_metrics_are_read_as_it_shows_them() -> None:
    metrics = Metrics()
    metrics.worker("ns:queries", "routers", "me")
    metrics.model(a_card(), "none")
    for label in ("pool", "water heater"):
        metrics.decided(a_decision(label), "routed")
        metrics.delivered(0.004, label)
    metrics.batch(2)
    told = parse(generate_latest(metrics.registry).decode())
    assert (told.stream, told.group, told.consumer, told.model) == ("ns:queries", "routers", "me", "made-up abc123")
    assert (told.published, told.queries, told.calls, told.latency[-1]) == (2, 2, 1, (math.inf, 2))
    assert 0.002 < (quantile(0.5, told.latency) or 0) <= 0.005


def test_other_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="not the metrics of a Pointsman worker"):
        parse("# TYPE up gauge\nup 1\n")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("host:8080", "http://host:8080"),
        ("http://host:8080/metrics", "http://host:8080"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("https://host/sidecar/metrics", "https://host/sidecar"),
    ],
)
def test_an_address_may_be_written_in_several_ways(given: str, meant: str) -> None:
    assert check_url(given) == meant


@pytest.mark.parametrize("address", ["file:///etc/passwd", "http://", "http://host:port", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="is no address of a worker"):
        check_url(address)

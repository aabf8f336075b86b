"""What one frame shows: a snapshot and, from the one before it, rates. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from worker.follow import place
from worker.routing import Streams
from worker.top.scrape import Figures, Scrape
from worker.top.snapshot import Consumer, Count, Snapshot

Buckets = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Reading:
    """Redis and the workers, asked at one moment."""

    redis: Snapshot
    workers: Scrape


@dataclass(frozen=True, slots=True)
class Output:
    """One output stream: its part of the label mix."""

    stream: str
    kind: Literal["topic", "review", "dead"]
    place: str
    """The topic's name; `review`, `dead`."""
    total: int
    """Entries ever added; before Redis 7.0, entries that are there."""
    per_s: float | None


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker. What it has not told over HTTP is None."""

    consumer: str
    in_flight: int
    """Entries read and not yet acknowledged."""
    idle_s: float | None
    """Since Redis last heard of it; None if the group does not know it (yet)."""
    per_s: float | None = None
    batch_size: float | None = None
    """Queries in one call of the model, on average."""
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    model: str | None = None
    not_ready: tuple[str, ...] | None = None
    """The checks of /readyz that do not hold; empty if it is ready."""


@dataclass(frozen=True, slots=True)
class Frame:
    """All that is shown. Rates, latencies and batch sizes are of the last `over_s` seconds; None where nothing tells them."""

    stream: str
    group: str
    at_ms: float
    """Redis' clock."""
    over_s: float | None
    """None in the first frame, which has no rates."""
    stream_exists: bool
    group_exists: bool
    counts_added: bool
    """Whether Redis counts what was added (7.0 on). If not, rates and totals are those of the streams' lengths."""
    in_per_s: float | None
    out_per_s: float | None
    """Topics, review and dead letters together."""
    lag: int | None
    """None if Redis cannot say."""
    pending: int
    oldest_pending_s: float | None
    """Since it was added to the stream of queries."""
    latency_p50_s: float | None
    latency_p99_s: float | None
    """By the workers' own histograms, so no finer than their buckets."""
    newest_latency_s: float | None
    """Of the newest message on any output stream."""
    newest_age_s: float | None
    models: tuple[str, ...]
    """Names and versions that the workers tell; or if none does, the version that decided the newest message."""
    dead: int
    """Dead letters that are there."""
    dead_per_s: float | None
    dead_reasons: dict[str, int]
    """Of the newest hundred."""
    newest_dead_age_s: float | None
    outputs: tuple[Output, ...]
    """Review and dead first, then topics, the largest first."""
    workers: tuple[Worker, ...]
    unreachable: tuple[str, ...]
    """For people: which workers could not be asked, and why."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_frame(streams: Streams, group: str, now: Reading, before: Reading | None) -> Frame:
    """Put together what `now` says, and rates since `before`."""
    redis, earlier = now.redis, before.redis if before else None
    over_s = None if earlier is None or redis.at_ms <= earlier.at_ms else (redis.at_ms - earlier.at_ms) / 1000
    figures = [each for each in now.workers.workers if (each.stream, each.group) == (streams.queries, group)]
    strangers = tuple(
        f"worker {each.consumer} is not shown: it reads {each.stream} in the group {each.group}"
        for each in now.workers.workers
        if each not in figures
    )
    was = {each.consumer: each for each in before.workers.workers} if before and over_s else {}
    outputs = [
        Output(
            name,
            "dead" if name == streams.dead else "review" if name == streams.review else "topic",
            place(name),
            _total(count),
            _rate(earlier.outputs.get(name) if earlier else None, count, over_s),
        )
        for name, count in redis.outputs.items()
    ]
    newest, dead = redis.newest, redis.outputs.get(streams.dead)
    grown = [buckets for each in figures if each.consumer in was and (buckets := _grown(was[each.consumer].latency, each.latency))]
    latency = _sum(grown)
    told = sorted({each.model for each in figures if each.model})
    return Frame(
        stream=streams.queries,
        group=group,
        at_ms=redis.at_ms,
        over_s=over_s,
        stream_exists=redis.queries is not None,
        group_exists=redis.group is not None,
        counts_added=all(count.added is not None for count in [*redis.outputs.values(), *([redis.queries] if redis.queries else [])]),
        in_per_s=_rate(earlier.queries if earlier else None, redis.queries, over_s) if redis.queries else None,
        out_per_s=_sum_of_rates(outputs) if over_s else None,
        lag=redis.group.lag if redis.group else None,
        pending=redis.group.pending if redis.group else 0,
        oldest_pending_s=_age(redis.group.oldest_pending_ms if redis.group else None, redis.at_ms),
        latency_p50_s=quantile(0.5, latency),
        latency_p99_s=quantile(0.99, latency),
        newest_latency_s=newest.latency_ms / 1000 if newest and newest.latency_ms is not None else None,
        newest_age_s=_age(newest.published_ms if newest else None, redis.at_ms),
        models=tuple(told) or ((newest.model,) if newest and newest.model else ()),
        dead=dead.length if dead else 0,
        dead_per_s=next((each.per_s for each in outputs if each.kind == "dead"), 0.0 if over_s else None),
        dead_reasons=dict(Counter(letter.reason for letter in redis.dead).most_common()),
        newest_dead_age_s=_age(redis.dead[0].died_ms if redis.dead else None, redis.at_ms),
        outputs=tuple(sorted(outputs, key=lambda each: (each.kind == "topic", -each.total, each.place))),
        workers=_workers(redis.consumers, figures, was, over_s),
        unreachable=now.workers.failed + strangers,
    )


def increase(before: float, now: float) -> float:
    """By how much a counter rose. One that fell has begun anew at zero, as Prometheus sees it."""
    return now - before if now >= before else now


def quantile(share: float, buckets: Buckets) -> float | None:
    """What so large a share of a histogram is below, between its bounds by a straight line; None if it holds nothing."""
    if not buckets or not buckets[-1][1]:
        return None
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


def _workers(
    consumers: Iterable[Consumer], figures: Iterable[Figures], was: dict[str, Figures], over_s: float | None
) -> tuple[Worker, ...]:
    """Whom the group knows and who tells of itself. One that is gone from both is gone."""
    known = {consumer.name: consumer for consumer in consumers}
    told = {each.consumer: each for each in figures}
    return tuple(_worker(name, known.get(name), told.get(name), was.get(name), over_s) for name in sorted(known.keys() | told.keys()))


def _worker(name: str, consumer: Consumer | None, now: Figures | None, before: Figures | None, over_s: float | None) -> Worker:
    in_flight, idle_s = (consumer.pending, consumer.idle_ms / 1000) if consumer else (0, None)
    if now is None:
        return Worker(name, in_flight, idle_s)
    if before is None or not over_s:
        return Worker(name, in_flight, idle_s, model=now.model, not_ready=now.not_ready)
    calls, latency = increase(before.calls, now.calls), _grown(before.latency, now.latency)
    return Worker(
        name,
        in_flight,
        idle_s,
        per_s=increase(before.published, now.published) / over_s,
        batch_size=increase(before.queries, now.queries) / calls if calls else None,
        latency_p50_s=quantile(0.5, latency),
        latency_p99_s=quantile(0.99, latency),
        model=now.model,
        not_ready=now.not_ready,
    )


def _grown(before: Buckets, now: Buckets) -> Buckets:
    """What came into a histogram between two moments; all of it if it has begun anew."""
    if not before or not now or now[-1][1] < before[-1][1]:
        return now
    earlier = dict(before)
    return [(bound, max(0.0, count - earlier.get(bound, 0.0))) for bound, count in now]


def _sum(histograms: Iterable[Buckets]) -> Buckets:
    total: Counter[float] = Counter()
    for buckets in histograms:
        total.update(dict(buckets))
    return sorted(total.items())


def _rate(before: Count | None, now: Count, over_s: float | None) -> float | None:
    """Entries added in a second. A stream that was not there before began at zero."""
    if over_s is None:
        return None
    if now.added is not None:
        return increase((before.added or 0) if before else 0, now.added) / over_s
    added = now.length - (before.length if before else 0)
    return None if added < 0 else added / over_s


def _sum_of_rates(outputs: Sequence[Output]) -> float | None:
    rates = [each.per_s for each in outputs if each.per_s is not None]
    return sum(rates) if len(rates) == len(outputs) else None


def _total(count: Count) -> int:
    return count.length if count.added is None else count.added


def _age(at_ms: float | None, now_ms: float) -> float | None:
    return None if at_ms is None else max(0.0, now_ms - at_ms) / 1000

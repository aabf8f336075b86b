"""Every Prometheus series, in one place. The table in the docs is generated from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from worker.classifier import Decision, ModelCard
from worker.errors import RejectReason
from worker.routing import Outcome

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LATENCY = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The worker's series in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._messages = Counter(
            "pointsman_messages",
            "Entries decided, by outcome (routed, review, dead) and label",
            ["outcome", "label"],
            registry=registry,
        )
        self._dead = Counter("pointsman_dead", "Entries sent to the dead stream, by reason", ["reason"], registry=registry)
        for reason in get_args(RejectReason):  # Prometheus sees a rise only where there was a value before
            self._dead.labels(reason)
        self._published = Counter("pointsman_published", "Entries published and acknowledged", registry=registry)
        self._duplicates = Counter("pointsman_duplicates", "Entries not published because another worker had done it", registry=registry)
        self._failed = Counter("pointsman_failed", "Entries left pending because classifying or delivering them failed", registry=registry)
        self._repeated = Counter(
            "pointsman_deduplicated", "Entries not published because a message of the same id was, of late", registry=registry
        )
        self._delivery_failed = Counter(
            "pointsman_delivery_retries",
            "Batches of which Redis could not take all, by reason (OOM, READONLY, NOPERM, WRONGTYPE, FULL, unreachable...)",
            ["reason"],
            registry=registry,
        )
        self._held_back = Gauge("pointsman_held_back", "Entries decided that Redis does not take for now", registry=registry)
        self._reclaimed = Counter("pointsman_reclaimed", "Entries claimed from stuck or dead workers", registry=registry)
        self._tokens = Counter("pointsman_tokens", "Tokens of the queries decided, suffix included", registry=registry)
        self._truncated = Counter("pointsman_truncated", "Queries cut because they were too long", registry=registry)
        self._latency = Histogram(
            "pointsman_latency_seconds",
            "From the producer's XADD to the publication of the result, by Redis' clock and by label",
            ["label"],
            buckets=_LATENCY,
            registry=registry,
        )
        self._stage = Histogram(
            "pointsman_stage_seconds",
            "Time in each stage: wait (one entry), classify and deliver (one batch)",
            ["stage"],
            buckets=_FAST,
            registry=registry,
        )
        self._batch = Histogram("pointsman_batch_size", "Queries classified in one call", buckets=_SIZES, registry=registry)
        self._confidence = Histogram(
            "pointsman_confidence", "Confidence of decisions, by label", ["label"], buckets=_SHARES, registry=registry
        )
        self._lag = Gauge("pointsman_stream_lag", "Entries not yet read by the group; NaN where Redis cannot say", registry=registry)
        self._pending = Gauge("pointsman_pending", "Entries read by the group and not yet acknowledged", registry=registry)
        self._worker = Info("pointsman_worker", "Which worker this is: what it reads and its name in the group", registry=registry)
        self._ready = Gauge("pointsman_ready", "1 while a check of /readyz holds, else 0", ["check"], registry=registry)
        self._model = Info("pointsman_model", "The model that decides", registry=registry)
        self._model_files = Counter(
            "pointsman_model_swaps",
            "New model files that came while the worker ran, by outcome (swapped, refused)",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("swapped", "refused"):
            self._model_files.labels(outcome)

    def stage(self, stage: str, seconds: float) -> None:
        self._stage.labels(stage).observe(seconds)

    def batch(self, size: int) -> None:
        self._batch.observe(size)

    def decided(self, decision: Decision, outcome: Outcome) -> None:
        self._messages.labels(outcome, decision.label).inc()
        self._confidence.labels(decision.label).observe(decision.confidence)
        self._tokens.inc(decision.tokens)
        self._truncated.inc(decision.truncated)

    def rejected(self, reason: RejectReason) -> None:
        self._messages.labels("dead", "").inc()
        self._dead.labels(reason).inc()

    def delivered(self, latency_s: float, label: str, trace_id: str | None = None) -> None:
        """Count a message that was published.

        Args:
            label: empty for a dead letter.
            trace_id: makes the message an example of its bucket, shown to those who ask for OpenMetrics.
        """
        self._published.inc()
        self._latency.labels(label).observe(latency_s, {"trace_id": trace_id} if trace_id else None)

    def duplicate(self) -> None:
        self._duplicates.inc()

    def failed(self) -> None:
        self._failed.inc()

    def repeated(self) -> None:
        self._repeated.inc()

    def delivery_failed(self, reason: str) -> None:
        self._delivery_failed.labels(reason).inc()

    def held_back(self, entries: int) -> None:
        self._held_back.set(entries)

    def reclaimed(self, count: int) -> None:
        self._reclaimed.inc(count)

    def backlog(self, lag: int | None, pending: int) -> None:
        self._lag.set(float("nan") if lag is None else lag)
        self._pending.set(pending)

    def worker(self, stream: str, group: str, consumer: str) -> None:
        self._worker.info({"stream": stream, "group": group, "consumer": consumer})

    def readiness(self, checks: Callable[[], Mapping[str, bool]]) -> None:
        """Show what `checks` answers at each scrape."""
        for name in checks():
            self._ready.labels(name).set_function(partial(lambda name: checks()[name], name))

    def model(self, card: ModelCard, weight_format: str) -> None:
        self._model.info({"name": card.name, "version": card.version, "base": card.base, "format": weight_format})

    def model_file(self, outcome: Literal["swapped", "refused"]) -> None:
        self._model_files.labels(outcome).inc()


@dataclass(frozen=True, slots=True)
class Series:
    """One of the worker's series as Prometheus has it."""

    name: str
    kind: str
    """counter, gauge, histogram or info."""
    labels: tuple[str, ...]
    """Of its own; Prometheus adds `job` and `instance`."""
    meaning: str

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that queries use."""
        return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count")) if self.kind == "histogram" else (self.name,)


def all_series() -> list[Series]:
    """What a worker shows, in the order of this file; without prometheus-client's own `process_*`."""
    endings = {"counter": "_total", "info": "_info"}
    return [
        Series(found._name + endings.get(kind, ""), kind, tuple(found._labelnames), found._documentation)
        for found in vars(Metrics()).values()
        if isinstance(found, MetricWrapperBase) and (kind := found._type)
    ]

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest

from tests.unit.parts import a_card, a_decision
from worker.errors import RejectReason
from worker.metrics import Metrics, all_series


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, series: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"pointsman_{series}", labels)


def test_a_decision_is_counted_with_its_outcome_label_tokens_and_confidence(metrics: Metrics) -> None:
    metrics.decided(a_decision("pool", 0.93, tokens=7, truncated=True), "routed")
    metrics.decided(a_decision("pool", 0.2, tokens=2), "review")
    assert value(metrics, "messages_total", outcome="routed", label="pool") == 1
    assert value(metrics, "messages_total", outcome="review", label="pool") == 1
    assert value(metrics, "tokens_total") == 9
    assert value(metrics, "truncated_total") == 1
    assert value(metrics, "confidence_sum", label="pool") == pytest.approx(1.13)


def test_a_reject_is_counted_by_reason_and_as_dead(metrics: Metrics) -> None:
    metrics.rejected("empty_text")
    assert value(metrics, "dead_total", reason="empty_text") == 1
    assert value(metrics, "messages_total", outcome="dead", label="") == 1


@pytest.mark.parametrize(
    ("method", "series"),
    [("duplicate", "duplicates_total"), ("failed", "failed_total"), ("repeated", "deduplicated_total")],
)
def test_each_mishap_has_a_counter_of_its_own(metrics: Metrics, method: str, series: str) -> None:
    getattr(metrics, method)()
    counters = ("duplicates_total", "failed_total", "deduplicated_total", "published_total", "reclaimed_total")
    assert {name: value(metrics, name) for name in counters if value(metrics, name)} == {series: 1.0}


def test_what_redis_does_not_take_is_counted_by_reason_and_held_back(metrics: Metrics) -> None:
    metrics.delivery_failed("OOM")
    metrics.delivery_failed("OOM")
    metrics.delivery_failed("FULL")
    metrics.held_back(7)
    assert value(metrics, "delivery_retries_total", reason="OOM") == 2
    assert value(metrics, "delivery_retries_total", reason="FULL") == 1
    assert value(metrics, "held_back") == 7


def test_a_delivery_counts_as_published_and_gives_its_latency_by_label(metrics: Metrics) -> None:
    metrics.delivered(0.04, "pool")
    metrics.delivered(7.0, "")
    assert value(metrics, "published_total") == 2
    assert value(metrics, "latency_seconds_sum", label="pool") == pytest.approx(0.04)
    assert value(metrics, "latency_seconds_bucket", label="pool", le="0.03") == 0
    assert value(metrics, "latency_seconds_bucket", label="pool", le="0.05") == 1
    assert value(metrics, "latency_seconds_count", label="") == 1


def test_each_check_of_readiness_is_shown_as_it_is_at_the_scrape(metrics: Metrics) -> None:
    checks = {"redis": True, "inference": True}
    metrics.readiness(lambda: checks)
    assert (value(metrics, "ready", check="redis"), value(metrics, "ready", check="inference")) == (1, 1)
    checks["redis"] = False
    assert (value(metrics, "ready", check="redis"), value(metrics, "ready", check="inference")) == (0, 1)


def test_every_reason_of_dead_letters_is_there_before_the_first(metrics: Metrics) -> None:
    assert {reason: value(metrics, "dead_total", reason=reason) for reason in get_args(RejectReason)} == dict.fromkeys(
        get_args(RejectReason), 0
    )


def test_the_list_of_series_is_what_prometheus_gets(metrics: Metrics) -> None:
    metrics.decided(a_decision("pool", 0.93), "routed")
    metrics.delivered(0.04, "pool")
    metrics.delivery_failed("OOM")
    metrics.stage("classify", 0.5)
    metrics.readiness(lambda: {"redis": True})
    metrics.model(a_card(), "BF16")
    metrics.worker("pointsman:queries", "routers", "one")
    own = [family for family in metrics.registry.collect() if not family.name.startswith("process_")]
    shown = {
        sample.name: set(sample.labels) - {"le"} for family in own for sample in family.samples if not sample.name.endswith("_created")
    }
    listed = {name: set(series.labels) for series in all_series() for name in series.samples}
    listed["pointsman_worker_info"] |= {"stream", "group", "consumer"}
    listed["pointsman_model_info"] |= {"name", "version", "base", "format"}
    assert shown == listed


def test_a_delivery_of_a_known_trace_is_the_exemplar_of_its_bucket(metrics: Metrics) -> None:
    metrics.delivered(0.04, "pool", "4bf92f3577b34da6a3ce929d0e0e4736")
    metrics.delivered(0.3, "pool")
    (family,) = [family for family in metrics.registry.collect() if family.name == "pointsman_latency_seconds"]
    shown = {sample.labels["le"]: sample.exemplar.labels for sample in family.samples if sample.exemplar is not None}
    assert shown == {"0.05": {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}}


def test_reclaimed_batches_and_stages_are_summed(metrics: Metrics) -> None:
    metrics.reclaimed(3)
    metrics.batch(8)
    metrics.stage("classify", 0.5)
    assert value(metrics, "reclaimed_total") == 3
    assert value(metrics, "batch_size_sum") == 8
    assert value(metrics, "stage_seconds_sum", stage="classify") == pytest.approx(0.5)


def test_an_unknown_lag_is_not_shown_as_zero(metrics: Metrics) -> None:
    metrics.backlog(None, 4)
    lag = value(metrics, "stream_lag")
    assert lag is not None
    assert math.isnan(lag)
    metrics.backlog(9, 4)
    assert (value(metrics, "stream_lag"), value(metrics, "pending")) == (9, 4)


def test_the_model_is_shown_with_name_version_base_and_format(metrics: Metrics) -> None:
    metrics.model(a_card(), "BF16")
    assert value(metrics, "model_info", name="made-up", version="abc123", base="nothing", format="BF16") == 1


def test_every_series_begins_with_the_prefix_and_says_what_it_is(metrics: Metrics) -> None:
    families = [family for family in metrics.registry.collect() if not family.name.startswith("process_")]  # prometheus-client's own
    assert len(families) >= 16
    assert [family.name for family in families if not family.name.startswith("pointsman_") or not family.documentation] == []


def test_a_model_takes_the_place_of_the_one_before_it(metrics: Metrics) -> None:
    metrics.model(a_card(), "BF16")
    metrics.model(replace(a_card(), version="second"), "Q8_0")
    (family,) = [family for family in metrics.registry.collect() if family.name == "pointsman_model"]
    assert [sample.labels["version"] for sample in family.samples] == ["second"]


def test_the_outcomes_of_model_files_are_there_before_the_first(metrics: Metrics) -> None:
    metrics.model_file("refused")
    assert value(metrics, "model_swaps_total", outcome="refused") == 1
    assert value(metrics, "model_swaps_total", outcome="swapped") == 0

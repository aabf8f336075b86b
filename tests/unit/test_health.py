from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from worker.health import REDIS_ANSWER_AGE_S, Health, endpoint


@pytest.fixture
def healthy() -> Health:
    health = Health(consuming=True)
    health.redis_answered()
    return health


def test_a_worker_that_has_just_started_lives_but_is_not_ready() -> None:
    assert all(Health().alive().values())
    assert Health().ready() == {"redis": False, "consuming": False, "delivering": True, "pipeline": True, "inference": True}


def test_a_worker_that_reads_and_hears_from_redis_is_ready(healthy: Health) -> None:
    assert all(healthy.ready().values())


@pytest.mark.parametrize(
    ("attribute", "value", "check"),
    [
        ("consuming", False, "consuming"),
        ("consume_stuck", True, "consuming"),
        ("stopping", True, "consuming"),
        ("held_back", lambda: True, "delivering"),
        ("pipeline_failed", True, "pipeline"),
        ("inference_stuck", lambda: True, "inference"),
    ],
)
def test_readiness_falls_with_each_of_its_checks(healthy: Health, attribute: str, value: object, check: str) -> None:
    setattr(healthy, attribute, value)
    assert [name for name, holds in healthy.ready().items() if not holds] == [check]


@pytest.mark.parametrize(("age_s", "ready"), [(REDIS_ANSWER_AGE_S - 1, True), (REDIS_ANSWER_AGE_S + 1, False)])
def test_readiness_falls_when_redis_stays_silent(healthy: Health, monkeypatch: pytest.MonkeyPatch, age_s: float, ready: bool) -> None:
    now = healthy.redis_answered_at + age_s
    monkeypatch.setattr("worker.health.time.monotonic", lambda: now)
    assert healthy.ready()["redis"] is ready
    assert all(healthy.alive().values()), "a silent Redis is no reason to restart the worker"


def test_a_failed_pipeline_asks_for_a_restart(healthy: Health) -> None:
    healthy.pipeline_failed = True
    assert healthy.alive() == {"pipeline": False, "inference": True, "consuming": True}


def test_a_stuck_model_asks_for_a_restart(healthy: Health) -> None:
    healthy.inference_stuck = lambda: True
    assert healthy.alive() == {"pipeline": True, "inference": False, "consuming": True}


def test_a_stuck_consume_loop_asks_for_a_restart(healthy: Health) -> None:
    healthy.consume_stuck = True
    assert healthy.alive() == {"pipeline": True, "inference": True, "consuming": False}


def test_a_redis_that_takes_no_results_is_no_reason_to_restart_the_worker(healthy: Health) -> None:
    healthy.held_back = lambda: True
    assert all(healthy.alive().values())


@pytest.mark.parametrize(("checks", "status"), [({"a": True, "b": True}, 200), ({"a": True, "b": False}, 503)])
async def test_the_endpoint_answers_with_all_checks_as_json(checks: dict[str, bool], status: int) -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {}

    await endpoint(lambda: checks)({"type": "http"}, receive, send)
    start, body = sent
    assert start["status"] == status
    assert json.loads(body["body"]) == checks
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()

"""A short run of the chaos harness, and proof that its count can fail."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.chaos import Chaos
from tests.faults.reconciliation import Tally, keys_left, reconcile
from tests.faults.report import Report, for_machines, for_people
from tests.faults.schedule import LEGEND, Plan
from tests.support import Queue


def test_nothing_is_lost_or_doubled_while_workers_and_redis_are_killed(tmp_path: Path) -> None:
    plan = Plan(messages=3000, kills=1, workers=2, pace_s=0.001, lose_group=True)
    report = Chaos(plan, tmp_path).run()
    assert report.faults == dict.fromkeys(LEGEND, 1), "not every fault struck"
    assert report.held_by_victims > 0, "the workers that were killed and stopped had nothing to lose"
    assert (report.lost, report.doubled, report.strange) == (0, 0, 0), report
    assert (report.pending, report.left_in_queue, report.keys_left, report.consumers_left) == (0, 0, [], []), report
    assert report.workers_failed == [], report
    assert json.loads(for_machines(report))["ok"]
    assert "doubled              0\n" in for_people(report)


def test_the_same_seed_gives_the_same_faults_and_another_does_not() -> None:
    plan = Plan(messages=1_000_000, kills=200, redis_restarts=7)
    faults = plan.faults()
    assert Counter(fault.kind for fault in faults) == {
        "kill": 200, "restart Redis": 7, "stop": 50, "terminate": 50, "disconnect": 50, "flush scripts": 50,
    }  # fmt: skip
    assert faults == plan.faults()
    assert faults != Plan(messages=1_000_000, kills=200, redis_restarts=7, seed=2).faults()
    assert all(fault.after < 900_000 for fault in faults), "a fault that strikes when all is done proves nothing"


def test_the_count_tells_what_is_lost_doubled_and_unknown(queue: Queue) -> None:
    streams = queue.streams
    for stream, number in (
        (streams.topic("pool"), 0),
        (streams.topic("pool"), 2),
        (streams.review, 2),
        (streams.dead, 3),
        (streams.dead, 7),
    ):
        queue.redis.xadd(stream, {"number": number, "pointsman.id": "1-1"})
    tally = reconcile(queue.redis, streams, 4, page=1)
    assert (tally.lost, tally.examples_lost()) == (1, [1])
    assert (tally.doubled, tally.examples_doubled()) == (1, [2])
    assert tally.strange == 1, "7 was never sent"
    assert tally.dead == 2


def test_a_number_that_came_more_often_than_a_byte_can_count_is_still_doubled() -> None:
    tally = Tally(2)
    for _ in range(300):
        tally.count(b"1")
    assert (tally.lost, tally.doubled, tally.examples_doubled()) == (1, 299, [1])


def test_a_key_beside_the_streams_is_told(queue: Queue) -> None:
    queue.add("query")
    queue.redis.xadd(queue.streams.topic("pool"), {"number": 0})
    assert keys_left(queue.redis, queue.streams) == []
    queue.redis.set(f"{queue.namespace}:forgotten", 1)
    assert keys_left(queue.redis, queue.streams) == [f"{queue.namespace}:forgotten"]


@pytest.mark.parametrize("found", ["lost", "doubled", "strange", "pending", "left_in_queue"])
def test_a_count_that_is_amiss_fails_the_run(found: str) -> None:
    report = Report(Plan(messages=100, kills=0), redis_version="7")
    assert report.ok
    setattr(report, found, 1)
    assert not report.ok


@pytest.mark.parametrize("found", ["keys_left", "consumers_left", "workers_failed"])
def test_whatever_is_left_behind_fails_the_run(found: str) -> None:
    report = Report(Plan(messages=100, kills=0), redis_version="7")
    setattr(report, found, ["worker-1"])
    assert not report.ok

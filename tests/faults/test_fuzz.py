"""A short fuzz, and proof that its reckoning can fail."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from tests.faults.fuzz import Fuzz, Reckoning, for_people
from tests.faults.mutants import Mutants
from worker.errors import RejectReason
from worker.routing import Streams

STREAMS = Streams("fuzz")
PUBLISHED = {b"text": b"x", b"id": b"7", b"pointsman.id": b"5-1", b"pointsman.label": b"pool"}
METRICS = {
    'pointsman_messages_total{label="pool",outcome="routed"}': 1.0,
    "pointsman_published_total": 1.0,
    "pointsman_duplicates_total": 0.0,
}


def test_what_comes_out_of_the_workers_is_what_the_parser_says_of_each_mutant(tmp_path: Path, model_file: Path) -> None:
    report = Fuzz(entries=5000, seed=1, workers=2, directory=tmp_path).run()
    assert report.faults == [], for_people(report)
    assert sum(report.outcomes.values()) == 5000
    assert report.outcomes.keys() == {"routed", "review", *get_args(RejectReason)} - {"poison"}, "not every way was taken"


def test_the_same_seed_gives_the_same_mutants_and_another_does_not() -> None:
    entries = Mutants(["query"], 1).take(300)
    assert Mutants(["query"], 1).take(300) == entries
    assert Mutants(["query"], 2).take(300) != entries
    names = [[name for name, _ in pairs] for pairs in Mutants(["query"], 1).take(3000)]
    assert any(len(set(given)) < len(given) for given in names), "no name comes twice in an entry"


def reckoning() -> Reckoning:
    """One entry has gone in."""
    one = Reckoning(STREAMS)
    one.went_in("5-1", [(b"text", b"first"), (b"id", b"7"), (b"text", b"x"), (b"pointsman.id", b"forged")])
    return one


def test_an_entry_that_comes_out_once_where_it_should_is_no_fault() -> None:
    one = reckoning()
    one.came_out(STREAMS.topic("pool"), PUBLISHED)
    assert (one.faults([METRICS]), one.done, one.under_way) == ([], 1, 0)


@pytest.mark.parametrize(
    ("came_out", "fault"),
    [
        ([(STREAMS.topic("pool"), PUBLISHED)] * 2, "twice"),
        ([(STREAMS.topic("pool"), PUBLISHED | {b"pointsman.id": b"5-2"})], "never went in"),
        ([(STREAMS.dead, PUBLISHED | {b"pointsman.reason": b"missing_text"})], "elsewhere"),
        ([(STREAMS.review, PUBLISHED | {b"id": b"8"})], "other fields"),
        ([(STREAMS.topic("pool"), PUBLISHED | {b"more": b""})], "other fields"),
    ],
)
def test_what_comes_out_wrong_is_told(came_out: list[tuple[str, dict[bytes, bytes]]], fault: str) -> None:
    one = reckoning()
    for stream, fields in came_out:
        one.came_out(stream, fields)
    assert fault in " ".join(one.faults([METRICS]))


@pytest.mark.parametrize("wrong", METRICS)
def test_a_metric_that_does_not_add_up_is_told(wrong: str) -> None:
    one = reckoning()
    one.came_out(STREAMS.topic("pool"), PUBLISHED)
    (fault,) = one.faults([METRICS, {wrong: 1.0}])
    assert fault.startswith("the metrics tell of")

"""The curves of an evaluation, against the same definitions in plain Python."""

from __future__ import annotations

import itertools
from fractions import Fraction
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import a_card
from trainer.dataset import Example
from trainer.evaluate import CURVE_POINTS, FALSE_ALARM_PERCENT, detect_out_of_scope, evaluate, macro_f1, risk_coverage
from trainer.thresholds import least_precision
from worker.classifier import Decision
from worker.classifier.calibration import expected_calibration_error, reliability

LABELS = ("pool", "car", "other")
CONFIDENCES = st.sampled_from([0.2, 0.4, 0.5, 0.55, 0.7, 0.9, 1.0]) | st.floats(0.01, 1.0)

Row = tuple[str, str, float]
"""Right label, label given, confidence."""
rows = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS), CONFIDENCES), min_size=1, max_size=60)


def decisions(table: list[Row]) -> list[Decision]:
    """The rest of the probability lies on one other label."""
    others = {"pool": "car", "car": "pool", "other": "pool"}
    return [Decision(label, sure, {label: sure, others[label]: 1 - sure}, 5, False) for _, label, sure in table]


def truth(table: list[Row]) -> list[str]:
    return [right for right, _, _ in table]


@given(rows)
def test_a_point_of_the_curve_is_what_its_threshold_routes(table: list[Row]) -> None:
    """Where confidences differ, a point is simply the error rate of what is at least as sure as its threshold."""
    table = [(right, label, index / len(table)) for index, (right, label, _) in enumerate(table)]
    found = risk_coverage(decisions(table), truth(table), "other")
    if all(label == "other" for _, label, _ in table):
        assert found is None
        return
    assert found is not None
    for point in found.points:
        routed = [right != label for right, label, sure in table if label != "other" and sure >= point["threshold"]]
        assert point["coverage"] == pytest.approx(len(routed) / len(table))
        assert point["error"] == pytest.approx(mean(routed))
    assert found.points[-1]["coverage"] == pytest.approx(mean(label != "other" for _, label, _ in table))


@given(rows)
def test_the_area_is_the_mean_error_over_every_number_routed_and_over_every_order_of_equals(table: list[Row]) -> None:
    routed = sorted((sure, right != label) for right, label, sure in table if label != "other")[::-1]
    found = risk_coverage(decisions(table), truth(table), "other")
    if not routed:
        assert found is None
        return
    assert found is not None
    expected = []
    for _, group in itertools.groupby(routed, key=lambda row: row[0]):
        wrong = [bad for _, bad in group]
        expected += [Fraction(sum(wrong), len(wrong))] * len(wrong)
    errors = [sum(expected[:count], Fraction(0)) / count for count in range(1, len(expected) + 1)]
    assert found.aurc == pytest.approx(float(mean(errors)))
    assert len(found.points) <= CURVE_POINTS
    assert [point["coverage"] for point in found.points] == sorted({point["coverage"] for point in found.points})


@given(rows, st.randoms())
def test_the_curve_does_not_depend_on_the_order_of_the_queries(table: list[Row], random: np.random.Generator) -> None:
    shuffled = list(table)
    random.shuffle(shuffled)
    one, other = (risk_coverage(decisions(rows), truth(rows), "other") for rows in (table, shuffled))
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.aurc == pytest.approx(other.aurc)


def test_a_model_that_is_surest_where_it_is_right_has_no_errors_at_low_coverage() -> None:
    table = [("pool", "pool", 0.9)] * 10 + [("pool", "car", 0.3)] * 10
    found = risk_coverage(decisions(table), truth(table), "other")
    assert found is not None
    assert [point["error"] for point in found.points if point["coverage"] <= 0.5] == [0.0] * 10
    assert found.points[-1] == {"coverage": 1.0, "error": 0.5, "threshold": 0.3}


def test_an_out_of_scope_query_that_is_routed_is_an_error_and_one_that_is_recognised_is_not_routed() -> None:
    table = [("other", "pool", 0.9), ("other", "other", 0.99)]
    found = risk_coverage(decisions(table), truth(table), "other")
    assert found is not None
    assert found.points == [{"coverage": 0.5, "error": 1.0, "threshold": 0.9}]


@given(rows)
def test_no_higher_threshold_keeps_the_rate_of_false_alarms(table: list[Row]) -> None:
    made = decisions(table)
    found = detect_out_of_scope(made, truth(table), "other")
    scores = [max((value for name, value in d.probabilities.items() if name != "other"), default=0.0) for d in made]
    inside = [score for score, right in zip(scores, truth(table), strict=True) if right != "other"]
    outside = [score for score, right in zip(scores, truth(table), strict=True) if right == "other"]
    if not inside or not outside:
        assert found is None
        return
    assert found is not None
    allowed = Fraction(FALSE_ALARM_PERCENT, 100)
    assert Fraction(sum(score < found.threshold for score in inside), len(inside)) <= allowed
    assert found.false_alarms == pytest.approx(mean(score < found.threshold for score in inside))
    assert found.recall == pytest.approx(mean(score < found.threshold for score in outside))
    higher = np.nextafter(found.threshold, 2)
    assert Fraction(sum(score < higher for score in inside), len(inside)) > allowed


@given(st.lists(st.tuples(CONFIDENCES, st.booleans()), max_size=80))
def test_the_bins_of_the_reliability_table_hold_every_query_once_and_make_the_calibration_error(pairs: list[tuple[float, bool]]) -> None:
    confidences, correct = np.array([sure for sure, _ in pairs]), np.array([right for _, right in pairs], dtype=np.bool_)
    bins = reliability(confidences, correct)
    assert sum(row.n for row in bins) == len(pairs)
    for row in bins:
        inside = [pair for pair in pairs if min(9, int(pair[0] * 10)) == round(row.low * 10)]
        assert row.n == len(inside)
        assert row.confidence == pytest.approx(mean(sure for sure, _ in inside))
        assert row.accuracy == pytest.approx(mean(right for _, right in inside))
    gap = sum(row.n * abs(row.confidence - row.accuracy) for row in bins) / max(1, len(pairs))
    assert expected_calibration_error(confidences, correct) == pytest.approx(gap)


def test_what_is_routed_is_counted_by_label_and_in_all_with_exact_bounds() -> None:
    """At the thresholds of `a_card`: 0.5, and 0.8 for water heater. Out of scope has no row: it is never routed."""
    table = [
        *[("pool", "pool", 0.6)] * 9, ("water heater", "pool", 0.5), ("pool", "pool", 0.4),
        ("water heater", "water heater", 0.7), ("out_of_scope", "out_of_scope", 1.0),
    ]  # fmt: skip
    made = [Decision(label, sure, {label: sure}, 5, False) for _, label, sure in table]
    examples = [Example(f"query {number}", right) for number, (right, _, _) in enumerate(table)]
    found = evaluate(a_card(), examples, made)
    bound = {"precision": 0.9, "least_precision": pytest.approx(least_precision(9, 10, 0.95))}
    assert found.routing == [
        {"label": None, "threshold": None, "answers": 13, "routed": 10, "coverage": 10 / 13} | bound,
        {"label": "pool", "threshold": 0.5, "answers": 11, "routed": 10, "coverage": 10 / 11} | bound,
        {"label": "water heater", "threshold": 0.8, "answers": 1, "routed": 0, "coverage": 0.0},
    ]
    assert found.routed_accuracy == 0.9
    assert found.reviewed == pytest.approx(3 / 13)


def test_where_nothing_is_routed_nothing_is_right_or_wrong_of_it() -> None:
    found = evaluate(a_card(), [Example("query", "pool")], [Decision("pool", 0.1, {"pool": 0.1}, 5, False)])
    assert found.reviewed == 1
    assert found.routed_accuracy is None
    assert found.as_dict()["routed_accuracy"] is None


def test_macro_f1_is_the_mean_over_the_labels_that_there_are() -> None:
    # pool: precision 1/2, recall 1; car: precision 1, recall 1/2.
    assert macro_f1(["pool", "car", "car"], ["pool", "pool", "car"]) == pytest.approx(2 / 3)
    assert macro_f1(["pool", "pool"], ["(no label)", "(no label)"]) == 0.0

"""Thresholds: the estimate against its definition, and the guarantee against a population whose error rates are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.out_of_scope import counts
from trainer.recipe import Review
from trainer.thresholds import NEVER, Answers, Held, calibrate, estimate, guarantee, in_words, least_precision
from worker.classifier.calibration import Calibration

NAMES = ("pool", "car", "fence", "hvac")


def answers(pairs: list[tuple[float, bool]]) -> Answers:
    confidences, right = zip(*pairs, strict=True) if pairs else ((), ())
    return Answers(
        np.zeros(len(pairs), dtype=np.int64), np.array(confidences, dtype=np.float64), np.array(right, dtype=np.bool_), np.ones(len(pairs))
    )


def population(generator: np.random.Generator, n: int) -> Answers:
    """Confident as calibration wants it, but for two labels: 'fence' is surest where it is wrong, and 'hvac' a little too sure."""
    labels = generator.choice(len(NAMES), size=n, p=[0.45, 0.45, 0.05, 0.05])
    confidences = generator.beta(8, 0.6, size=n)
    chance = np.where(labels == 2, 1 - 0.3 * confidences, np.where(labels == 3, confidences - 0.03, confidences))
    return Answers(labels, confidences, generator.random(n) < chance, np.ones(n))


def precision_of(tests: list[Held], everything: Answers) -> list[float]:
    """Of what each test routes in a very large sample."""
    alone = [NAMES.index(test.label) for test in tests if test.label is not None]
    found = []
    for test in tests:
        mine = ~np.isin(everything.labels, alone) if test.label is None else everything.labels == NAMES.index(test.label)
        rows = mine & (everything.confidences >= test.threshold)
        found.append(float(everything.right[rows].mean()) if test.threshold < NEVER and rows.any() else 1.0)
    return found


@given(
    st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9, 1.0]) | st.floats(0, 1), st.booleans()), max_size=40), st.sampled_from([0.5, 0.9])
)
def test_the_estimate_is_the_lowest_confidence_from_which_enough_are_right(pairs: list[tuple[float, bool]], precision: float) -> None:
    def enough(threshold: float) -> bool:
        routed = [right for confidence, right in pairs if confidence >= threshold]
        return bool(routed) and sum(routed) >= precision * len(routed)

    chosen = estimate(answers(pairs), precision)
    good = [confidence for confidence, _ in pairs if enough(confidence)]
    if not good:
        assert chosen == NEVER
    else:
        lowest = min(confidence for confidence, _ in pairs)
        assert chosen == (0.0 if min(good) == lowest else min(good))


def test_the_guarantee_holds_as_often_as_it_says_even_for_a_model_that_is_sure_of_its_mistakes() -> None:
    generator = np.random.default_rng(5)
    everything = population(generator, 400_000)
    trials, broken, alone, routed = 400, 0, 0, []
    for _ in range(trials):
        tests = guarantee(population(generator, 400), population(generator, 1200), NAMES, precision=0.9, confidence=0.8)
        broken += min(precision_of(tests, everything)) < 0.9
        alone += len(tests) - 1
        routed.append(sum(test.routed for test in tests) / sum(test.answers for test in tests))
    assert broken / trials <= 0.2 + 3 * (0.2 * 0.8 / trials) ** 0.5
    assert alone > trials, "most often the two frequent labels are tested by themselves"
    assert np.mean(routed) > 0.6, "it is no guarantee that routes next to nothing"


def test_a_label_with_too_few_queries_shares_the_threshold_of_the_others() -> None:
    generator = np.random.default_rng(6)
    labels = np.repeat([0, 1], [2000, 40])
    sure = Answers(labels, generator.uniform(0.6, 1, len(labels)), np.ones(len(labels), dtype=np.bool_), np.ones(len(labels)))
    pooled, own = guarantee(sure, sure, NAMES, precision=0.95, confidence=0.9)
    assert (pooled.label, pooled.answers, own.label, own.answers) == (None, 40, "pool", 2000)
    assert own.threshold < 0.02, "tested down to the end of the grid, since none is wrong"
    assert own.least_precision == least_precision(2000, 2000, 0.95)
    assert (pooled.threshold, pooled.least_precision) == (NEVER, None), "nor are they enough together"


def test_what_is_right_too_seldom_is_not_routed() -> None:
    generator = np.random.default_rng(7)
    wrong = Answers(np.zeros(900, dtype=np.int64), np.full(900, 0.99), generator.random(900) < 0.9, np.ones(900))
    assert guarantee(wrong, wrong, NAMES, precision=0.95, confidence=0.9) == [Held(None, NEVER, 900, 0, 0, None)]


@pytest.mark.parametrize(("right", "n", "bound"), [(0, 0, 0.0), (0, 9, 0.0), (45, 45, 0.1 ** (1 / 45)), (99, 100, 0.9616)])
def test_the_lower_bound_is_the_exact_one_of_clopper_and_pearson(right: int, n: int, bound: float) -> None:
    assert least_precision(right, n, 0.9) == pytest.approx(bound, abs=1e-4)


def scored(n: int) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities over four labels, the last of them out of scope, that are too sure by a temperature of 2."""
    generator = np.random.default_rng(8)
    scores = generator.normal(0, 4, size=(n, 4))
    chances = np.exp(scores / 2)
    chances /= chances.sum(axis=1, keepdims=True)
    return scores, [int(generator.choice(4, p=row)) for row in chances]


def test_without_a_confidence_one_threshold_is_estimated_on_all_queries() -> None:
    scores, truth = scored(3000)
    found = calibrate(scores, truth, NAMES, "hvac", Review(precision=0.95))
    assert set(found) == {"temperature", "offsets", "threshold", "thresholds"}
    assert found["temperature"] == pytest.approx(2, rel=0.1)
    assert found["offsets"]["hvac"] == pytest.approx(0, abs=0.3), "the model tells out of scope as it tells the others"
    assert found["thresholds"] == {}
    assert 0.5 < found["threshold"] < 0.95
    assert in_words(found).startswith("temperature ")


def test_the_threshold_is_for_as_many_queries_out_of_scope_as_are_to_come() -> None:
    scores, truth = scored(6000)
    as_here, more = (calibrate(scores, truth, NAMES, "hvac", Review(precision=0.95, out_of_scope_share=share)) for share in (None, 0.6))
    assert more["offsets"]["hvac"] > as_here["offsets"]["hvac"] + 0.5
    given = Calibration(more["temperature"], offsets=more["offsets"]).probabilities(scores, NAMES)
    outside = np.array(truth) == 3
    routed = (given.argmax(axis=1) != 3) & (given.max(axis=1) >= more["threshold"])
    right = routed & (given.argmax(axis=1) == truth)
    counted = counts(outside, 0.6)
    assert 0.95 <= counted[right].sum() / counted[routed].sum() < 0.96
    assert routed.mean() > 0.05


def test_nothing_is_offset_without_a_label_for_out_of_scope_or_without_queries_of_both_kinds() -> None:
    scores, truth = scored(500)
    assert "offsets" not in calibrate(scores, truth, NAMES, None, Review())
    assert "offsets" not in calibrate(scores, [label % 3 for label in truth], NAMES, "hvac", Review())
    assert "offsets" not in calibrate(scores, [3] * 500, NAMES, "hvac", Review())


def test_with_a_confidence_the_thresholds_are_those_tested_and_out_of_scope_has_none() -> None:
    scores, truth = scored(24_000)
    found = calibrate(scores, truth, NAMES, "hvac", Review(precision=0.9, confidence=0.9))
    tests = {test["label"]: test for test in found["guarantee"]["tests"]}
    assert found["thresholds"] == {name: tests[name]["threshold"] for name in ("pool", "car", "fence")}
    assert found["threshold"] == tests[None]["threshold"]
    assert "hvac" not in tests
    assert all(test["least_precision"] >= 0.9 for test in tests.values() if test["threshold"] < NEVER)
    assert "3 labels with one of their own, 0 of them not routed; right with at least 0.9 at confidence 0.9" in in_words(found)


def test_where_only_the_labels_without_a_threshold_of_their_own_are_not_routed_that_is_said() -> None:
    guarantee = {"precision": 0.98, "confidence": 0.9}
    calibration = {"temperature": 1.0, "threshold": NEVER, "thresholds": {"pool": 0.9}, "guarantee": guarantee}
    assert "of labels without a threshold of their own nothing is routed, 1 labels" in in_words(calibration)
    assert "temperature 1.000, nothing is routed" in in_words(calibration | {"thresholds": {}})
    assert "temperature 1.000, offset of hvac +2.30, nothing" in in_words(calibration | {"thresholds": {}, "offsets": {"hvac": 2.3}})

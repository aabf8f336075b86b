from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset import Example
from trainer.gate import Verdict, compare, first
from trainer.recipe import Gate

LABELS = ("pool", "car", "fence")
LOOSE = Gate(accuracy_drop=0.99, label_drop=0.99)


def judge(rows: Sequence[tuple[str, bool, bool]], limits: Gate) -> Verdict:
    """Of (right label, old model right, new model right)."""
    wrong = {"pool": "car", "car": "fence", "fence": "pool"}
    examples = [Example(f"query {number}", label) for number, (label, _, _) in enumerate(rows)]
    old, new = ([label if row[which] else wrong[label] for row in rows for label in row[:1]] for which in (1, 2))
    return compare(old, new, examples, LABELS, LABELS, limits)


def rows(label: str, *, kept: int = 0, lost: int = 0, won: int = 0) -> list[tuple[str, bool, bool]]:
    return [(label, True, True)] * kept + [(label, True, False)] * lost + [(label, False, True)] * won


def test_an_equal_model_passes() -> None:
    verdict = judge(rows("pool", kept=20), Gate())
    assert verdict.passed
    assert (verdict.accuracy, verdict.p_worse) == (1.0, 1.0)


@pytest.mark.parametrize(("lost", "won", "p", "passed"), [(5, 0, 1 / 32, False), (4, 0, 1 / 16, True), (7, 2, 46 / 512, True)])
def test_the_paired_test_is_the_exact_one_sided_mcnemar(lost: int, won: int, p: float, passed: bool) -> None:
    verdict = judge(rows("pool", kept=200, lost=lost, won=won), LOOSE)
    assert verdict.p_worse == pytest.approx(p)
    assert verdict.passed is passed
    assert any("worse by the paired test" in reason for reason in verdict.reasons) is not passed


def test_accuracy_may_not_fall_far_even_where_the_test_cannot_tell() -> None:
    verdict = judge(rows("pool", kept=50, lost=2, won=0), Gate())
    assert verdict.p_worse == 0.25
    assert not verdict.passed
    assert "accuracy falls by 0.0385, more than 0.01" in verdict.reasons[0]


def test_a_fall_of_just_the_limit_passes() -> None:
    assert judge(rows("pool", kept=99, lost=1), Gate(accuracy_drop=0.01)).passed


def test_a_label_that_falls_is_refused_though_others_make_up_for_it() -> None:
    verdict = judge(rows("pool", kept=30, lost=8) + rows("car", kept=30, won=20) + rows("fence", kept=9), Gate())
    assert not verdict.passed
    assert verdict.reasons == ("recall of pool falls by 0.211, more than 0.1: 8 lost and 0 won of 38, p = 0.00391",)


def test_a_small_label_may_lose_an_example_and_not_all() -> None:
    others = rows("car", kept=500)
    assert judge(rows("pool", kept=4, lost=1) + others, Gate()).passed
    assert not judge(rows("pool", lost=5) + others, Gate()).passed


def test_a_label_with_too_few_examples_is_named_and_not_judged() -> None:
    verdict = judge(rows("pool", lost=4) + rows("car", kept=500) + rows("fence", kept=5), Gate())
    assert verdict.passed
    assert verdict.reasons[-1] == "too few test examples to judge: pool (4)"


def test_with_other_labels_only_what_both_know_is_compared() -> None:
    examples = [Example("a", "pool")] * 10 + [Example("b", "boat")] * 10
    verdict = compare(["pool"] * 20, ["pool"] * 20, examples, ["pool"], ["pool", "boat"], Gate())
    assert verdict.passed
    assert verdict.accuracy == 0.5
    assert "(new: boat): compared on the 10 examples" in verdict.reasons[1]


def test_a_model_that_has_lost_labels_takes_no_ones_place() -> None:
    verdict = compare(["pool"] * 10, ["pool"] * 10, [Example("a", "pool")] * 10, ["pool", "car", "fence"], ["pool", "boat"], Gate())
    assert not verdict.passed
    assert verdict.reasons[0].startswith("the labels car, fence would be gone")
    assert "(new: boat; gone: car, fence)" in verdict.reasons[1]


def test_a_label_that_is_written_otherwise_keeps_its_topic() -> None:
    examples = [Example("a", "pool")] * 10
    assert compare(["pool"] * 10, ["pool"] * 10, examples, ["pool", "Water heater"], ["pool", "water-heater"], Gate()).passed


def test_without_a_label_in_common_nothing_is_published() -> None:
    verdict = compare(["pool"], ["boat"], [Example("b", "boat")], ["pool", "car"], ["boat", "ship"], Gate())
    assert not verdict.passed
    assert verdict.reasons[-1] == "there is nothing to compare the models by"


def test_the_first_model_passes_unless_it_is_below_the_least_accuracy() -> None:
    examples = [Example("a", "pool"), Example("b", "car")]
    assert first(["pool", "pool"], examples, Gate()) == Verdict(True, ("there is no published model to compare with",), 0.5)
    assert not first(["pool", "pool"], examples, Gate(least_accuracy=0.6)).passed
    assert not first([], [], Gate(least_accuracy=0.6)).passed
    assert first([], [], Gate()).passed


def test_the_least_accuracy_holds_against_an_old_model_that_was_no_better() -> None:
    verdict = compare(["car"] * 2, ["car"] * 2, [Example("a", "pool")] * 2, LABELS, LABELS, Gate(least_accuracy=0.6))
    assert verdict.reasons == (
        "accuracy must be at least 0.6, it is 0.0000",
        "too few test examples to judge: pool (2), car (0), fence (0)",
    )


outcomes = st.lists(st.tuples(st.sampled_from(LABELS), st.booleans(), st.booleans()), min_size=1, max_size=60)
limits = st.builds(
    Gate,
    alpha=st.floats(0.001, 0.4),
    accuracy_drop=st.sampled_from([0.0, 0.01, 0.2]),
    label_drop=st.sampled_from([0.0, 0.1, 0.5]),
    least_accuracy=st.sampled_from([None, 0.5]),
)


@given(outcomes, limits, st.data())
def test_being_right_once_more_never_turns_a_pass_into_a_refusal(
    before: list[tuple[str, bool, bool]], limits: Gate, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(before) - 1))
    label, old, _ = before[index]
    worse = [*before[:index], (label, old, False), *before[index + 1 :]]
    better = [*before[:index], (label, old, True), *before[index + 1 :]]
    assert judge(better, limits).passed >= judge(worse, limits).passed


@given(outcomes, limits)
def test_a_model_that_loses_nothing_passes_every_comparison(before: list[tuple[str, bool, bool]], limits: Gate) -> None:
    rows = [(label, old, old or new) for label, old, new in before]
    assert judge(rows, limits.model_copy(update={"least_accuracy": None})).passed

"""The offset of the label for what belongs to none: found again where it is known, and no more than the queries can tell."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.dataset import DataError, Example
from trainer.out_of_scope import check, fit, weights
from trainer.recipe import RecipeError, review_of
from worker.classifier.calibration import Calibration

NAMES = ("pool", "car", "fence", "other")


def believed(n: int, offset: float, temperature: float, seed: int = 1) -> tuple[np.ndarray, list[int]]:
    """Scores of a model that believes `offset` too little in the last label, and is too sure by `temperature`, with the truth."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, 4, size=(n, 4))
    chances = Calibration(temperature, offsets={"other": offset}).probabilities(scores, NAMES)
    return scores, [int(generator.choice(4, p=row)) for row in chances]


@pytest.mark.parametrize(("offset", "temperature"), [(0.0, 1.0), (3.0, 1.0), (3.0, 2.0), (-2.0, 0.7)])
def test_the_offset_and_temperature_that_made_the_data_are_found_again(offset: float, temperature: float) -> None:
    scores, truth = believed(8000, offset, temperature)
    found_temperature, found_offset = fit(scores, truth, 3, np.ones(len(truth)))
    assert found_temperature == pytest.approx(temperature, rel=0.1)
    assert found_offset == pytest.approx(offset, abs=0.2)


def test_a_dozen_queries_move_the_offset_little() -> None:
    scores, truth = believed(12, 0.0, 1.0)
    for others in (truth, [label % 3 for label in truth]):
        _, offset = fit(scores, others, 3, np.ones(12))
        assert abs(offset) < 2


def test_a_share_to_come_is_fitted_as_if_the_queries_had_it() -> None:
    """The offset rises by as much as the log odds of the share do, since the model tells the queries apart as before."""
    scores, truth = believed(30_000, 0.0, 1.0)
    outside = np.array(truth) == 3
    counts = weights(outside, 0.6)
    assert counts.mean() == pytest.approx(1)
    assert counts[outside].sum() / counts.sum() == pytest.approx(0.6)
    _, offset = fit(scores, truth, 3, counts)
    assert offset == pytest.approx(np.log(0.6 / 0.4) - np.log(outside.mean() / (1 - outside.mean())), abs=0.1)


@pytest.mark.parametrize("outside", [[], [True, True], [False]])
def test_queries_of_one_kind_count_one_each(outside: list[bool]) -> None:
    assert weights(np.array(outside, dtype=np.bool_), 0.3).tolist() == [1.0] * len(outside)


def test_a_share_needs_queries_of_both_kinds() -> None:
    pool, other = Example("pump hums", "pool"), Example("tell a joke", "other")
    check([pool, other], "other", 0.2)
    check([pool], "other", None)
    for examples in ([pool], [other]):
        with pytest.raises(DataError, match=r"must be of both kinds, but \d of 1 are out of scope"):
            check(examples, "other", 0.2)


def test_a_share_and_a_guarantee_exclude_one_another() -> None:
    with pytest.raises(RecipeError, match="out_of_scope_share cannot be given with it"):
        review_of(precision=0.9, confidence=0.9, out_of_scope_share=0.2)

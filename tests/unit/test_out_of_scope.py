"""The offset of the label for what belongs to none: found again where it is known, and no more than the queries can tell."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.dataset import DataError, Example
from trainer.out_of_scope import LEAST, check, counts, fit
from trainer.recipe import RecipeError, review_of
from worker.classifier.calibration import Calibration

NAMES = ("pool", "car", "fence", "other")


def believed(n: int, offset: float, temperature: float) -> tuple[np.ndarray, list[int]]:
    """Scores of a model that believes `offset` too little in the last label, and is too sure by `temperature`, with the truth."""
    generator = np.random.default_rng(1)
    scores = generator.normal(0, 4, size=(n, 4))
    chances = Calibration(temperature, offsets={"other": offset}).probabilities(scores, NAMES)
    return scores, [int(generator.choice(4, p=row)) for row in chances]


def log_odds(share: float) -> float:
    return float(np.log(share / (1 - share)))


@pytest.mark.parametrize(("offset", "temperature"), [(0.0, 1.0), (3.0, 1.0), (3.0, 2.0), (-2.0, 0.7)])
def test_the_offset_and_temperature_that_made_the_data_are_found_again(offset: float, temperature: float) -> None:
    scores, truth = believed(8000, offset, temperature)
    found_temperature, found_offset = fit(scores, truth, 3, None)
    assert found_temperature == pytest.approx(temperature, rel=0.1)
    assert found_offset == pytest.approx(offset, abs=0.2)


def test_the_temperature_stays_within_its_bounds_where_every_query_is_told_perfectly() -> None:
    scores = np.array([[0.0, -9, -9, -9], [-9, -9, -9, 0.0]] * 50)
    temperature, offset = fit(scores, [0, 3] * 50, 3, None)
    assert 0.2 <= temperature < 0.5
    assert offset == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("few", [1, 3])
def test_each_query_out_of_scope_moves_the_offset_by_one_at_most(few: int) -> None:
    scores, truth = believed(600, 0.0, 1.0)
    scores[:, 3] -= 12
    in_scope = [row for row, label in enumerate(truth) if label != 3]
    rows = in_scope + [row for row, label in enumerate(truth) if label == 3][:few]
    _, offset = fit(scores[rows], [truth[row] for row in rows], 3, None)
    assert 0 < offset < few, "they were missed by some ten each"


def test_a_share_to_come_is_fitted_as_if_the_queries_had_it() -> None:
    """The offset rises by as much as the log odds of the share do, since the model tells the queries apart as before."""
    scores, truth = believed(30_000, 0.0, 1.0)
    outside = np.array(truth) == 3
    counted = counts(outside, 0.6)
    assert counted.max() == 1
    assert counted[outside].sum() / counted.sum() == pytest.approx(0.6)
    _, offset = fit(scores, truth, 3, 0.6)
    assert offset == pytest.approx(log_odds(0.6) - log_odds(outside.mean()), abs=0.1)


def test_a_share_moves_a_model_that_knows_the_share_of_its_data_by_their_difference() -> None:
    scores, truth = np.tile([0.0, log_odds(0.025)], (400, 1)), [0] * 390 + [1] * 10
    _, offset = fit(scores, truth, 1, 0.3)
    assert offset == pytest.approx(log_odds(0.3) - log_odds(0.025), abs=0.05)


@pytest.mark.parametrize("outside", [[], [True, True], [False]])
def test_queries_of_one_kind_count_one_each(outside: list[bool]) -> None:
    assert counts(np.array(outside, dtype=np.bool_), 0.3).tolist() == [1.0] * len(outside)


def test_a_share_needs_queries_of_both_kinds_and_a_label_for_one() -> None:
    pool, other = [Example("pump hums", "pool")] * LEAST, [Example("tell a joke", "other")] * LEAST
    check([*pool, *other], "other", 0.2)
    check(pool, "other", None)
    check(pool, None, None)
    for examples in ([*pool, *other[1:]], [*pool[1:], *other]):
        with pytest.raises(DataError, match=rf"at least {LEAST} queries in scope and {LEAST} out of it"):
            check(examples, "other", 0.2)
    with pytest.raises(DataError, match="has no label for what belongs to none"):
        check(pool, None, 0.2)


def test_a_share_and_a_guarantee_exclude_one_another() -> None:
    with pytest.raises(RecipeError, match="there is none with out_of_scope_share"):
        review_of(precision=0.9, confidence=0.9, out_of_scope_share=0.2)

from __future__ import annotations

import numpy as np
import pytest

from trainer.selection import Evaluation, Snapshot, choose, evaluate, has_stalled, mean, worth_keeping


def snapshot(step: int, loss: float, **weights: float) -> Snapshot:
    return Snapshot(Evaluation(step, loss, 0.5), weights, np.zeros((1, 2)))


def steps(snapshots: list[Snapshot]) -> list[int]:
    return [each.evaluation.step for each in snapshots]


def test_the_loss_is_that_after_calibration_so_a_temperature_does_not_count() -> None:
    answers = np.log([[0.7, 0.3], [0.6, 0.4], [0.55, 0.45], [0.2, 0.8]])
    truth = [0, 1, 0, 1]
    found = evaluate(5, answers, truth)
    assert found.accuracy == 0.75
    assert evaluate(5, 2 * answers, truth).loss == pytest.approx(found.loss, rel=1e-4)
    assert found.loss <= -np.log(np.exp(answers)[np.arange(4), truth]).mean()


def test_the_best_and_the_last_few_are_kept_in_their_order() -> None:
    seen = [snapshot(1, 0.9), snapshot(2, 0.1), snapshot(3, 0.5), snapshot(4, 0.4), snapshot(5, 0.3)]
    assert steps(worth_keeping(seen, 2)) == [2, 4, 5]
    assert steps(worth_keeping(seen, 4)) == [2, 3, 4, 5]
    assert steps(worth_keeping(seen, 0)) == [2, 5], "the last is always a candidate"


@pytest.mark.parametrize(
    ("losses", "patience", "stalled"),
    [
        ([3, 2, 1], 1, False),
        ([3, 1, 2], 1, True),
        ([3, 1, 2], 2, False),
        ([3, 1, 2, 1], 2, True),
        ([3, 1, 2, 0.5], 2, False),
        ([1], 1, False),
        ([1, 2, 3, 4], 0, False),
    ],
)
def test_training_ends_after_as_many_evaluations_without_a_better_one(losses: list[float], patience: int, stalled: bool) -> None:
    assert has_stalled([Evaluation(step, loss, 0) for step, loss in enumerate(losses)], patience) == stalled


def test_a_mean_is_taken_of_each_factor() -> None:
    assert mean([snapshot(1, 0, a=1.0, b=2.0), snapshot(2, 0, a=2.0, b=6.0)]) == {"a": 1.5, "b": 4.0}


def test_the_least_loss_is_chosen_and_of_equals_the_first() -> None:
    assert choose({"last": snapshot(3, 0.5), "best": snapshot(2, 0.4), "averaged": snapshot(3, 0.3)}) == "averaged"
    assert choose({"last": snapshot(3, 0.4), "best": snapshot(3, 0.4)}) == "last"

from __future__ import annotations

import numpy as np
import pytest

from trainer.parity import Parity, compare, complaint
from trainer.recipe import Gate
from worker.classifier import ModelCard
from worker.classifier.calibration import Calibration
from worker.classifier.labels import Label, LabelSet
from worker.classifier.prompt import Prompt


def test_equal_answers_are_at_parity() -> None:
    answers = np.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    assert compare("F16", answers, answers) == Parity("F16", 1.0, 0.0, 0.0, len(answers))


def test_of_each_query_the_largest_difference_counts() -> None:
    found = compare("F16", np.log([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]]), np.log([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2]]))
    assert found.same_label == 0.5
    assert found.mean_difference == pytest.approx(0.2)
    assert found.largest_difference == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("same", "mean", "words"),
    [
        (0.98, 0.05, None),
        (0.979, 0.0, "F16 answers unlike the GGUF: 97.9% same label (at least 98.0%)"),
        (1.0, 0.051, "probabilities 0.0510 apart on average (at most 0.05)"),
    ],
)
def test_what_is_too_unlike_is_said(same: float, mean: float, words: str | None) -> None:
    said = complaint(Parity("F16", same, mean, 0.9, 1000), Gate())
    assert said is None if words is None else words in (said or "")


def test_of_few_queries_one_may_be_answered_otherwise() -> None:
    assert complaint(Parity("F16", 11 / 12, 0.01, 0.2, 12), Gate()) is None
    assert complaint(Parity("F16", 10 / 12, 0.01, 0.2, 12), Gate()) is not None


def test_labels_are_compared_as_the_worker_gives_them() -> None:
    """With an offset of 2 the last label comes first in one of these and not in the other."""
    given, expected = np.log([[0.8, 0.2]]), np.log([[0.9, 0.1]])
    labels = LabelSet((Label("pool", "", "A"), Label("other", "", "B")), "other")
    card = ModelCard(
        labels, Prompt("", " Topic"), Calibration(offsets={"other": 2.0}), (), 0.1, evaluation={}, training={}, name="", version="", base=""
    )
    assert compare("F16", given, expected).same_label == 1.0
    assert compare("F16", given, expected, card).same_label == 0.0

"""Which of a training's weights are kept: the last, the best on the validation split, or the mean of the last few. Pure.

What counts is the loss after calibration, since the pipeline fits a temperature to whatever is chosen: the mean of -log of the
right label's probability, at the temperature at which it is least. The offset of out of scope, fitted later, is left out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.classifier.calibration import Floats, fit_temperature, probabilities

Weights = Mapping[str, Any]
"""Tensors by name: the factors A and B of each update."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the validation split says of one set of weights."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights that may be kept, and what they answer to the validation split, shape (examples, labels)."""

    evaluation: Evaluation
    weights: Weights
    answers: Floats


def evaluate(step: int, answers: Floats, truth: Sequence[int]) -> Evaluation:
    """Judge log-probabilities of shape (examples, labels); `truth` holds the right columns."""
    chances = probabilities(answers, fit_temperature(answers, truth))[np.arange(len(truth)), list(truth)]
    loss = float(-np.log(np.maximum(chances, 1e-12)).mean())
    return Evaluation(step, loss, float((answers.argmax(axis=1) == np.asarray(truth)).mean()))


def worth_keeping(snapshots: Sequence[Snapshot], last: int) -> list[Snapshot]:
    """The best one and the last few, in their order: no other can be chosen or be part of a mean."""
    best = min(snapshots, key=lambda snapshot: snapshot.evaluation.loss)
    return [each for place, each in enumerate(snapshots) if each is best or place >= len(snapshots) - max(last, 1)]


def has_stalled(evaluations: Sequence[Evaluation], patience: int) -> bool:
    """Whether the loss has not got better at the last `patience` evaluations; 0 is patience without end."""
    losses = [evaluation.loss for evaluation in evaluations]
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])


def mean(snapshots: Sequence[Snapshot]) -> Weights:
    """A and B are averaged each for itself, which is not the mean of the products: it is near it as long as the weights are near."""
    return {name: sum(each.weights[name] for each in snapshots) / len(snapshots) for name in snapshots[0].weights}


def choose(candidates: Mapping[str, Snapshot]) -> str:
    """The name of the one with the least loss; of equals the first."""
    return min(candidates, key=lambda name: candidates[name].evaluation.loss)

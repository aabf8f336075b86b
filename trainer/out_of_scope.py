"""How readily a query is held for out of scope: an offset of that label's log odds, fitted on held-out queries. Pure.

Questions that belong to no label are of more kinds than training shows, so a model can know those by heart and believe too seldom
that others are any. Temperature and offset together are bias-corrected temperature scaling (Alexandari et al. 2020, "Maximum
Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation"), with a bias for this one label.

Where the share of such queries to come is known, the held-out ones count as if they had it (importance weights under label shift).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax

from trainer.dataset import DataError, Example
from worker.classifier.calibration import Floats

SPREAD = 1.0
"""Standard deviation of the Gaussian prior of the offset, around what the share says: each query moves it by its square at most."""
LEAST = 10
"""Queries of either kind without which a stated share tells nothing."""
_TEMPERATURES = (0.2, 10.0)


def check(examples: Sequence[Example], label: str | None, share: float | None) -> None:
    """Raises DataError where a share is stated, but the examples to calibrate by are too few of one kind."""
    if share is None:
        return
    if label is None:
        raise DataError("out_of_scope_share: the model has no label for what belongs to none")
    outside = sum(example.label == label for example in examples)
    if min(outside, len(examples) - outside) < LEAST:
        raise DataError(
            f"out_of_scope_share: at least {LEAST} queries in scope and {LEAST} out of it are needed to calibrate by, "
            f"there are {len(examples) - outside} and {outside}"
        )


def counts(outside: npt.NDArray[np.bool_], share: float | None) -> Floats:
    """What each query counts, so that those `outside` all labels have this share of the whole: 1 at most.

    Without a share, or where there are queries of one kind alone, each counts 1.
    """
    among = float(outside.mean()) if len(outside) else 0.0
    if share is None or among in (0.0, 1.0):
        return np.ones(len(outside))
    each = np.where(outside, share / among, (1 - share) / (1 - among))
    return np.asarray(each / each.max(), dtype=np.float64)


def fit(log_probs: Floats, truth: Sequence[int], column: int, share: float | None) -> tuple[float, float]:
    """Temperature, and the offset of the label in `column`, of most posterior probability: of softmax(log_probs / temperature + offset).

    In the inverse of the temperature and the offset the loss is convex.

    Args:
        log_probs: uncalibrated, shape (queries, labels).
        truth: the right column of each; there are queries of that label, and others.
        share: of the queries to come that have that label; None if it is that of these.
    """
    right = np.asarray(truth)
    outside = right == column
    counted = counts(outside, share)
    known = 0.0 if share is None else _log_odds(share) - _log_odds(float(outside.mean()))
    chosen = log_probs[np.arange(len(right)), right]

    def loss(point: Floats) -> tuple[float, Floats]:
        scores = point[0] * log_probs
        scores[:, column] += point[1]
        believed = log_softmax(scores, axis=1)
        chances = np.exp(believed)
        away = (point[1] - known) / SPREAD**2
        value = -(counted * believed[np.arange(len(right)), right]).sum() + (point[1] - known) * away / 2
        by_sharpness = -(counted * (chosen - (chances * log_probs).sum(axis=1))).sum()
        by_offset = -(counted * (outside - chances[:, column])).sum() + away
        return float(value), np.array([by_sharpness, by_offset])

    low, high = _TEMPERATURES
    found = minimize(loss, np.array([1.0, known]), jac=True, method="L-BFGS-B", bounds=[(1 / high, 1 / low), (None, None)])
    return float(1 / found.x[0]), float(found.x[1])


def _log_odds(share: float) -> float:
    return float(np.log(share / (1 - share)))

"""How readily a query is held for out of scope: an offset of that label's score, fitted on held-out queries. Pure.

Questions that belong to no label are too many kinds for the few that training shows, so a model knows those by heart and believes too
seldom that others are any. Temperature and offset together are bias-corrected temperature scaling (Alexandari et al. 2020, "Maximum
Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation"), with a bias for this one label.

Where the share of such queries to come is known, the held-out ones count as if they had it (importance weights under label shift).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from trainer.dataset import DataError, Example
from worker.classifier.calibration import Floats, fit_temperature, probabilities

SPREAD = 1.0
"""Standard deviation of the offset in the Gaussian prior: a handful of queries moves it little, hundreds as far as they want."""
_TEMPERATURES = (0.2, 10.0)


def check(examples: Sequence[Example], label: str | None, share: float | None) -> None:
    """Raises DataError where a share is stated, but the examples to calibrate by are not of both kinds."""
    outside = sum(example.label == label for example in examples)
    if share is not None and outside in (0, len(examples)):
        raise DataError(
            f"out_of_scope_share: the queries to calibrate by must be of both kinds, but {outside} of {len(examples)} are out of scope"
        )


def weights(outside: npt.NDArray[np.bool_], share: float | None) -> Floats:
    """What each query counts so that those `outside` all labels have this share of the whole; the mean is 1.

    Without a share, or where there are queries of one kind alone, each counts 1.
    """
    among = float(outside.mean()) if len(outside) else 0.0
    if share is None or among in (0.0, 1.0):
        return np.ones(len(outside))
    return np.where(outside, share / among, (1 - share) / (1 - among))


def fit(log_probs: Floats, truth: Sequence[int], column: int, counts: Floats) -> tuple[float, float]:
    """Temperature, and what to add to the log-probability in `column` before it is divided by it, of most posterior probability.

    Args:
        log_probs: uncalibrated, shape (queries, labels).
        counts: what each query counts, of mean 1.
    """
    rows, columns = np.arange(len(truth)), np.asarray(truth)

    def loss(point: Floats) -> float:
        temperature, offset = float(np.exp(np.clip(point[0], *np.log(_TEMPERATURES)))), float(point[1])
        chosen = probabilities(shifted(log_probs, column, offset), temperature)[rows, columns]
        return float(-(counts * np.log(np.maximum(chosen, 1e-12))).sum() + (offset / SPREAD) ** 2 / 2)

    found = minimize(loss, [np.log(fit_temperature(log_probs, truth)), 0.0], method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-4})
    return float(np.exp(np.clip(found.x[0], *np.log(_TEMPERATURES)))), float(found.x[1])


def shifted(log_probs: Floats, column: int, offset: float) -> Floats:
    """The same with the offset added in one column."""
    moved = log_probs.copy()
    moved[:, column] += offset
    return moved

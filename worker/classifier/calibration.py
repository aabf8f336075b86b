"""From the model's scores to probabilities that mean what they say. Pure.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks"): one number, fitted on
held-out data, divides the log-probabilities before they are normalised again. It never changes which label
comes first; an offset, which a label's log odds may get besides, does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a model's scores become confidences, and below which of them each label goes to a person instead; at 1 it always does."""

    temperature: float = 1.0
    threshold: float = 0.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    """What is added to the score of a label, once the temperature has divided it."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        for name, value in (("default", self.threshold), *self.thresholds.items()):
            if not 0 <= value <= 1:
                raise ValueError(f"threshold of {name!r} must lie between 0 and 1, got {value}")
        for name, value in self.offsets.items():
            if not np.isfinite(value):
                raise ValueError(f"offset of {name!r} must be a number, got {value}")

    def threshold_of(self, label: str) -> float:
        return self.thresholds.get(label, self.threshold)

    def probabilities(self, log_probs: Floats, names: Sequence[str]) -> Floats:
        """What the model believes of each query, by what it answered, both of shape (queries, labels)."""
        offsets = np.array([self.offsets.get(name, 0.0) for name in names])
        return probabilities(log_probs / self.temperature + offsets, 1.0)

    def sure(self, label: str, confidence: float) -> bool:
        """Whether the label may be acted on with this confidence. It never may if that is NaN."""
        return confidence >= self.threshold_of(label) < 1


def probabilities(log_probs: Floats, temperature: float) -> Floats:
    """Row-wise softmax of `log_probs / temperature`; shape (queries, labels)."""
    scaled = log_probs / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    weights = np.exp(scaled)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def fit_temperature(log_probs: Floats, truth: Sequence[int]) -> float:
    """The temperature of least negative log-likelihood, by golden-section search in log space over [0.2, 10]."""
    rows, columns = np.arange(len(truth)), np.asarray(truth)

    def loss(log_temperature: float) -> float:
        chosen = probabilities(log_probs, float(np.exp(log_temperature)))[rows, columns]
        return float(-np.log(np.maximum(chosen, 1e-12)).mean())

    low, high = float(np.log(0.2)), float(np.log(10.0))
    ratio = (5**0.5 - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of like confidence, and how often they are right."""

    low: float
    high: float
    n: int
    confidence: float
    """Their mean."""
    accuracy: float


def reliability(confidences: Floats, correct: npt.NDArray[np.bool_], bins: int = 10) -> list[Bin]:
    """Equal-width bins of confidence, lowest first; those that hold nothing are left out."""
    slot = np.minimum((confidences * bins).astype(int), bins - 1)
    found = []
    for index in np.unique(slot).tolist():
        inside = slot == index
        mean, right = float(confidences[inside].mean()), float(correct[inside].mean())
        found.append(Bin(index / bins, (index + 1) / bins, int(inside.sum()), mean, right))
    return found


def expected_calibration_error(confidences: Floats, correct: npt.NDArray[np.bool_], bins: int = 10) -> float:
    """ECE (Naeini et al. 2015): the mean gap between confidence and accuracy over the bins of `reliability`."""
    gaps = [abs(row.confidence - row.accuracy) * row.n for row in reliability(confidences, correct, bins)]
    return sum(gaps) / max(1, len(confidences))

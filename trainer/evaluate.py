"""How good a model is, measured through the worker's own classifier: what is measured is what is served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score, precision_recall_fscore_support

from trainer.dataset import Example
from trainer.thresholds import least_precision
from worker.classifier import Classifier, Decision, ModelCard
from worker.classifier.calibration import Bin, expected_calibration_error, reliability

CHUNK = 64
CURVE_POINTS = 20
FALSE_ALARM_PERCENT = 5
BOUND_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """How often the surest answers are wrong, by how many of them are routed."""

    aurc: float
    """Area under the curve: the mean error over every number of routed queries."""
    points: list[dict[str, float]]
    """`coverage` (share of all queries that are routed), `error` (share of those that are wrong), `threshold` (the least
    confidence among them); up to CURVE_POINTS of them, coverage rising."""


@dataclass(frozen=True, slots=True)
class OutOfScopeDetection:
    """What one threshold on the highest in-scope probability finds, if FALSE_ALARM_PERCENT of the in-scope queries may fall below it."""

    threshold: float
    recall: float
    """Share of the out-of-scope queries below the threshold."""
    false_alarms: float
    """Share of the in-scope queries below the threshold."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures over one set of examples."""

    n: int
    accuracy: float
    macro_f1: float
    ece: float
    per_label: dict[str, dict[str, float]]
    """Precision, recall, F1 and number of examples of each label."""
    confusions: list[tuple[str, str, int]]
    """(right label, given label, how often), most frequent first."""
    out_of_scope_recall: float | None
    """Share of the out-of-scope queries that would go to review, by label or by low confidence."""
    reviewed: float
    """Share of all queries that would go to review."""
    routed_accuracy: float | None
    """Accuracy of the queries that would be routed to a topic."""
    routing: list[dict[str, Any]]
    """What is routed: a row for all, and one for each label that some query got, but for out of scope. `label` (None for all), `threshold`,
    `answers` (queries that got it), `routed` of these and their share, `coverage`; unless that is none, `precision` of what is routed and
    its lower bound `least_precision`, exact at BOUND_CONFIDENCE for each row by itself."""
    reliability: list[Bin]
    risk_coverage: RiskCoverage | None
    """None if no query would be routed."""
    out_of_scope_detection: OutOfScopeDetection | None
    """None without queries of both kinds."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "accuracy": round(self.accuracy, 4),
            "macro_f1": round(self.macro_f1, 4),
            "ece": round(self.ece, 4),
            "reviewed": round(self.reviewed, 4),
            "routed_accuracy": None if self.routed_accuracy is None else round(self.routed_accuracy, 4),
            "out_of_scope_recall": None if self.out_of_scope_recall is None else round(self.out_of_scope_recall, 4),
            "per_label": {label: {name: round(value, 4) for name, value in row.items()} for label, row in self.per_label.items()},
            "confusions": [{"label": a, "given": b, "count": count} for a, b, count in self.confusions],
            "routing": [{name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} for row in self.routing],
            "reliability": [_rounded(asdict(row)) for row in self.reliability],
            "risk_coverage": self.risk_coverage
            and {"aurc": round(self.risk_coverage.aurc, 5), "points": [_rounded(point) for point in self.risk_coverage.points]},
            "out_of_scope_detection": self.out_of_scope_detection and _rounded(asdict(self.out_of_scope_detection)),
        }


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) for name, value in row.items()}


def decide(classifier: Classifier, examples: Sequence[Example], progress: Callable[[int], None] = lambda _: None) -> list[Decision]:
    """The model's decision for every example; `progress` gets the number done so far."""
    decisions: list[Decision] = []
    for start in range(0, len(examples), CHUNK):
        decisions += classifier.classify([example.text for example in examples[start : start + CHUNK]])
        progress(len(decisions))
    return decisions


def evaluate(card: ModelCard, examples: Sequence[Example], decisions: Sequence[Decision]) -> Evaluation:
    """Compare decisions with the right labels, under the model's own thresholds."""
    truth = [example.label for example in examples]
    given = [decision.label for decision in decisions]
    correct = np.array([a == b for a, b in zip(truth, given, strict=True)], dtype=np.bool_)
    confidences = np.array([decision.confidence for decision in decisions])
    present = [name for name in card.labels.names if name in set(truth)]
    columns = precision_recall_fscore_support(truth, given, labels=present, zero_division=0.0)
    out_of_scope = card.labels.out_of_scope
    to_review = np.array(
        [d.label == out_of_scope or not card.calibration.sure(d.label, d.confidence) for d in decisions],
        dtype=np.bool_,
    )
    outside = np.array([label == out_of_scope for label in truth], dtype=np.bool_)
    wrong = Counter((a, b) for a, b in zip(truth, given, strict=True) if a != b)
    return Evaluation(
        n=len(truth),
        accuracy=float(correct.mean()),
        macro_f1=macro_f1(truth, given),
        ece=expected_calibration_error(confidences, correct),
        per_label={
            label: dict(zip(("precision", "recall", "f1", "n"), (float(v) for v in values), strict=True))
            for label, *values in zip(present, *columns, strict=True)
        },
        confusions=[(a, b, count) for (a, b), count in wrong.most_common()],
        out_of_scope_recall=float(to_review[outside].mean()) if outside.any() else None,
        reviewed=float(to_review.mean()),
        routed_accuracy=float(correct[~to_review].mean()) if (~to_review).any() else None,
        routing=[
            _routing(None, None, correct, ~to_review),
            *(
                _routing(name, card.calibration.threshold_of(name), correct[rows], ~to_review[rows])
                for name in card.labels.names
                if name != out_of_scope and (rows := np.array([label == name for label in given])).any()
            ),
        ],
        reliability=reliability(confidences, correct),
        risk_coverage=risk_coverage(decisions, truth, out_of_scope),
        out_of_scope_detection=detect_out_of_scope(decisions, truth, out_of_scope),
    )


def _routing(label: str | None, threshold: float | None, correct: npt.NDArray[np.bool_], routed: npt.NDArray[np.bool_]) -> dict[str, Any]:
    n, right = int(routed.sum()), int(correct[routed].sum())
    bounds = {"precision": right / n, "least_precision": least_precision(right, n, BOUND_CONFIDENCE)} if n else {}
    return {"label": label, "threshold": threshold, "answers": len(routed), "routed": n, "coverage": n / len(routed)} | bounds


def macro_f1(truth: Sequence[str], given: Sequence[str]) -> float:
    """Mean F1 of the labels that `truth` has."""
    return float(f1_score(truth, given, labels=sorted(set(truth)), average="macro", zero_division=0.0))


def risk_coverage(decisions: Sequence[Decision], truth: Sequence[str], out_of_scope: str | None) -> RiskCoverage | None:
    """Errors among the most confident, by how many are routed (El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017).

    Answers of out of scope are never routed, so coverage ends below 1 where there are some; an out-of-scope query that is
    routed counts as an error. Among equal confidences no order is better than another: each counts with their mean error.
    """
    routed = [(d.confidence, d.label != label) for d, label in zip(decisions, truth, strict=True) if d.label != out_of_scope]
    if not routed:
        return None
    confidences, wrong = (np.array(column, dtype=np.float64) for column in zip(*routed, strict=True))
    levels, level = np.unique(-confidences, return_inverse=True)
    mean_wrong = np.bincount(level, weights=wrong) / np.bincount(level)
    by_confidence = np.sort(level)
    errors = np.cumsum(mean_wrong[by_confidence]) / np.arange(1, len(routed) + 1)
    counts = sorted({-(-len(routed) * step // CURVE_POINTS) for step in range(1, CURVE_POINTS + 1)})
    return RiskCoverage(
        aurc=float(errors.mean()),
        points=[
            {
                "coverage": count / len(decisions),
                "error": float(errors[count - 1]),
                "threshold": float(-levels[by_confidence[count - 1]]),
            }
            for count in counts
        ],
    )


def detect_out_of_scope(decisions: Sequence[Decision], truth: Sequence[str], out_of_scope: str | None) -> OutOfScopeDetection | None:
    """Out-of-scope recall at a fixed rate of false alarms.

    A query is held for out of scope if no in-scope label has a probability of at least the threshold. The threshold is the
    highest that holds no more than FALSE_ALARM_PERCENT of these in-scope queries for it, so this is a point of the ROC curve of
    this data and no promise of what the model's own threshold does.
    """
    scores: dict[bool, list[float]] = {True: [], False: []}
    for decision, label in zip(decisions, truth, strict=True):
        inside = (value for name, value in decision.probabilities.items() if name != out_of_scope)
        scores[label == out_of_scope].append(max(inside, default=0.0))
    if not scores[True] or not scores[False]:
        return None
    threshold = sorted(scores[False])[len(scores[False]) * FALSE_ALARM_PERCENT // 100]
    below = {outside: sum(score < threshold for score in found) / len(found) for outside, found in scores.items()}
    return OutOfScopeDetection(threshold, recall=below[True], false_alarms=below[False])

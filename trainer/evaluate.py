"""How good a model is, measured through the worker's own classifier: what is measured is what is served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import f1_score, precision_recall_fscore_support

from trainer.dataset import Example
from worker.classifier import Classifier, Decision
from worker.classifier.calibration import expected_calibration_error

CHUNK = 64


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
    routed_accuracy: float
    """Accuracy of the queries that would be routed to a topic."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "accuracy": round(self.accuracy, 4),
            "macro_f1": round(self.macro_f1, 4),
            "ece": round(self.ece, 4),
            "reviewed": round(self.reviewed, 4),
            "routed_accuracy": round(self.routed_accuracy, 4),
            "out_of_scope_recall": None if self.out_of_scope_recall is None else round(self.out_of_scope_recall, 4),
            "per_label": {label: {name: round(value, 4) for name, value in row.items()} for label, row in self.per_label.items()},
            "confusions": [{"label": a, "given": b, "count": count} for a, b, count in self.confusions],
        }


def decide(classifier: Classifier, examples: Sequence[Example], progress: Callable[[int], None] = lambda _: None) -> list[Decision]:
    """The model's decision for every example; `progress` gets the number done so far."""
    decisions: list[Decision] = []
    for start in range(0, len(examples), CHUNK):
        decisions += classifier.classify([example.text for example in examples[start : start + CHUNK]])
        progress(len(decisions))
    return decisions


def evaluate(classifier: Classifier, examples: Sequence[Example], decisions: Sequence[Decision]) -> Evaluation:
    """Compare decisions with the right labels, under the model's own thresholds."""
    card = classifier.card
    truth = [example.label for example in examples]
    given = [decision.label for decision in decisions]
    correct = np.array([a == b for a, b in zip(truth, given, strict=True)], dtype=np.bool_)
    confidences = np.array([decision.confidence for decision in decisions])
    present = [name for name in card.labels.names if name in set(truth)]
    columns = precision_recall_fscore_support(truth, given, labels=present, zero_division=0.0)
    out_of_scope = card.labels.out_of_scope
    to_review = np.array(
        [d.label == out_of_scope or d.confidence < card.calibration.threshold_of(d.label) for d in decisions],
        dtype=np.bool_,
    )
    outside = np.array([label == out_of_scope for label in truth], dtype=np.bool_)
    wrong = Counter((a, b) for a, b in zip(truth, given, strict=True) if a != b)
    return Evaluation(
        n=len(truth),
        accuracy=float(correct.mean()),
        macro_f1=float(f1_score(truth, given, labels=present, average="macro", zero_division=0.0)),
        ece=expected_calibration_error(confidences, correct),
        per_label={
            label: dict(zip(("precision", "recall", "f1", "n"), (float(v) for v in values), strict=True))
            for label, *values in zip(present, *columns, strict=True)
        },
        confusions=[(a, b, count) for (a, b), count in wrong.most_common()],
        out_of_scope_recall=float(to_review[outside].mean()) if outside.any() else None,
        reviewed=float(to_review.mean()),
        routed_accuracy=float(correct[~to_review].mean()) if (~to_review).any() else 0.0,
    )


def choose_threshold(decisions: Sequence[Decision], truth: Sequence[str], out_of_scope: str | None, precision: float) -> float:
    """The lowest confidence from which routed queries are right with at least `precision`.

    Queries labelled out of scope are not routed, so they do not count. Ties go to the lower threshold; if no
    threshold reaches the precision, the highest confidence seen is returned.
    """
    routed = sorted(
        ((d.confidence, d.label == label) for d, label in zip(decisions, truth, strict=True) if d.label != out_of_scope),
        reverse=True,
    )
    best, right = 1.0, 0
    for count, (confidence, correct) in enumerate(routed, start=1):
        right += correct
        if right / count >= precision:
            best = confidence
    lowest = min((confidence for confidence, _ in routed), default=0.0)
    return 0.0 if best <= lowest else best

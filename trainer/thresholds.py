"""Below which confidence a query goes to a person: chosen on held-out queries for a stated precision. Pure.

By estimate, one threshold: the lowest from which the queries at hand are right often enough. Nothing is promised of others.

With a guarantee (`guarantee`), where a confidence is stated besides: Learn then Test (Angelopoulos et al. 2021) with exact binomial
tails. Thresholds of a fixed grid are tested from the stated precision downwards, and each of them as long as all before it held, which
needs no correction for their number (fixed-sequence testing). A label that has enough queries is tested by itself, the others
together; the risk is shared evenly among these tests, so all hold at once. What cannot be guaranteed is not routed.

Temperature, offset, and which labels are tested by themselves, are chosen on other queries than the thresholds. So the guarantee is
exact, whatever the model, if the queries to come are drawn as the held-out ones were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom

from trainer import out_of_scope
from trainer.recipe import Review
from worker.classifier.calibration import Calibration, Floats, fit_temperature

NEVER = 1.0
"""The threshold that sends all to review."""
EVERY = 4
"""Of the held-out queries every fourth is for choosing what is tested, where a guarantee is asked for; the others are for testing."""
_STEP = 0.01
_NO_COLUMN = -1


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model says of some queries, a column each."""

    labels: npt.NDArray[np.int64]
    confidences: Floats
    right: npt.NDArray[np.bool_]
    counts: Floats
    """What each query counts; a guarantee is of queries that count one each."""

    def of(self, rows: npt.NDArray[np.bool_]) -> Answers:
        return Answers(self.labels[rows], self.confidences[rows], self.right[rows], self.counts[rows])


@dataclass(frozen=True, slots=True)
class Held:
    """One test: a label, or all that have no test of their own, and the lowest threshold that held."""

    label: str | None
    """None: the labels without a test of their own."""
    threshold: float
    answers: int
    """Queries that got such a label."""
    routed: int
    """Those of them at or above the threshold."""
    wrong: int
    """Those routed that are wrong."""
    least_precision: float | None
    """Lower confidence bound (Clopper-Pearson) at the level of this test; None if no threshold held."""


def calibrate(log_probs: Floats, truth: Sequence[int], names: Sequence[str], outsider: str | None, review: Review) -> dict[str, Any]:
    """The value of `pointsman.calibration`: temperature, perhaps offsets, threshold, thresholds, perhaps the guarantee.

    Args:
        log_probs: uncalibrated, shape (queries, labels), of queries that nothing was trained on.
        truth: the right label of each, by its place in `names`.
        outsider: the label for what belongs to none.
    """
    right = np.asarray(truth)
    sample = np.ones(len(right), dtype=np.bool_) if review.confidence is None else _every_fourth(len(right))
    column = _NO_COLUMN if outsider is None else names.index(outsider)
    scores = _scores(log_probs[sample], right[sample].tolist(), outsider, column, review.out_of_scope_share)
    table = Calibration(**scores).probabilities(log_probs, names)
    given = table.argmax(axis=1)
    answers = Answers(given, table.max(axis=1), given == right, out_of_scope.counts(right == column, review.out_of_scope_share))
    routable = given != column
    if review.confidence is None:
        return scores | {"threshold": estimate(answers.of(routable), review.precision), "thresholds": {}}
    tests = guarantee(answers.of(routable & sample), answers.of(routable & ~sample), names, review.precision, review.confidence)
    pool = next((test.threshold for test in tests if test.label is None), NEVER)
    return scores | {
        "threshold": pool,
        "thresholds": {test.label: test.threshold for test in tests if test.label is not None},
        "guarantee": {"precision": review.precision, "confidence": review.confidence, "tests": [asdict(test) for test in tests]},
    }


def _scores(log_probs: Floats, truth: Sequence[int], outsider: str | None, column: int, share: float | None) -> dict[str, Any]:
    """Temperature and offsets. No offset can be told where no query, or every one, is out of scope."""
    if outsider is None or not 0 < list(truth).count(column) < len(truth):
        return {"temperature": round(fit_temperature(log_probs, truth), 4)}
    temperature, offset = out_of_scope.fit(log_probs, truth, column, share)
    return {"temperature": round(temperature, 4), "offsets": {outsider: round(offset, 4)}}


def _every_fourth(n: int) -> npt.NDArray[np.bool_]:
    """By chance, always the same: a validation part comes sorted by label."""
    fourth: npt.NDArray[np.bool_] = np.random.default_rng(0).permutation(n) % EVERY == 0
    return fourth


def in_words(calibration: Mapping[str, Any]) -> str:
    """One line about a calibration."""
    said = f"temperature {calibration['temperature']:.3f}, "
    said += "".join(f"offset of {name} {offset:+.2f}, " for name, offset in calibration.get("offsets", {}).items())
    others = "of labels without a threshold of their own nothing" if calibration.get("thresholds") else "nothing"
    said += f"{others} is routed" if calibration["threshold"] == NEVER else f"threshold {calibration['threshold']:.3f}"
    if found := calibration.get("guarantee"):
        own = calibration["thresholds"].values()
        said += f", {len(own)} labels with one of their own, {sum(value == NEVER for value in own)} of them not routed"
        said += f"; right with at least {found['precision']} at confidence {found['confidence']}"
    return said


def estimate(answers: Answers, precision: float) -> float:
    """The lowest confidence from which these answers, as they count, are right with at least `precision`; NEVER if none, 0 if all are."""
    order = np.argsort(-answers.confidences, kind="stable")
    confidences = answers.confidences[order]
    counts = answers.counts[order]
    last_of_equals = np.append(confidences[1:] != confidences[:-1], True) if len(order) else np.zeros(0, dtype=np.bool_)
    right, routed = np.cumsum(counts * answers.right[order]), np.cumsum(counts)
    enough = np.nonzero(last_of_equals & (right >= precision * routed))[0]
    if not len(enough):
        return NEVER
    return 0.0 if enough[-1] == len(order) - 1 else float(confidences[enough[-1]])


def guarantee(choosing: Answers, testing: Answers, names: Sequence[str], precision: float, confidence: float) -> list[Held]:
    """The tests and what came of them, that of the remaining labels first.

    With probability `confidence` over the draw of `testing`, the queries to come that are routed by each test's threshold are right
    with at least `precision`, all tests at once; so are all routed queries together.
    """
    risk = 1 - confidence
    times = len(testing.labels) / max(1, len(choosing.labels))
    alone = []
    for label in range(len(names)):
        sure = choosing.of((choosing.labels == label) & (choosing.confidences >= precision))
        likely, wrong = round(times * len(sure.labels)), round(times * int((~sure.right).sum()))
        if binom.cdf(wrong, likely, 1 - precision) <= risk / (len(names) + 1):
            alone.append(label)
    shared = risk / (len(alone) + 1)
    pooled = testing.of(~np.isin(testing.labels, alone))
    return [
        _tested(None, pooled, precision, shared),
        *(_tested(names[label], testing.of(testing.labels == label), precision, shared) for label in alone),
    ]


def _tested(label: str | None, answers: Answers, precision: float, risk: float) -> Held:
    grid = np.arange(precision, 0, -_STEP).round(6)
    routed, wrong = (
        len(some) - np.searchsorted(np.sort(some), grid) for some in (answers.confidences, answers.confidences[~answers.right])
    )
    held = np.cumprod(binom.cdf(wrong, routed, 1 - precision) <= risk).sum()
    if not held:
        return Held(label, NEVER, len(answers.labels), 0, 0, None)
    last = int(held) - 1
    n, errors = int(routed[last]), int(wrong[last])
    return Held(label, float(grid[last]), len(answers.labels), n, errors, least_precision(n - errors, n, 1 - risk))


def least_precision(right: int, n: int, confidence: float) -> float:
    """Exact one-sided lower confidence bound on a precision of which `right` of `n` were seen (Clopper and Pearson 1934)."""
    return float(beta.ppf(1 - confidence, right, n - right + 1)) if right else 0.0

"""Whether a new model may take the place of the old one: both judged on the same examples of the test split. Pure.

The exact McNemar test asks whether the new model loses more of them than it wins. A test says little where there
are few examples, so the fall in accuracy is limited besides, whatever the test says.

A label that the old model has must stay: else nothing would come out on its topic any more, which somebody reads.

A label's recall may fall by so much at most, too. There the examples are so few that one of them may be more than
the limit (1 of 5 is 20 points). So a label is refused only if it falls by more than the limit and the same test,
on that label's examples alone, says that this is no chance. With fewer examples than the test can decide by (five
at a level of 0.05) a label is not judged, and the verdict names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from trainer.dataset import Example
from trainer.recipe import Gate
from worker.classifier.labels import agreement, slug


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the new model may be published, and why or why not."""

    passed: bool
    reasons: tuple[str, ...]
    """Sentences for people: what is against it, or else what was compared."""
    accuracy: float | None = None
    """The new model's, on all examples given; None without any."""
    p_worse: float | None = None
    """Exact one-sided McNemar: the chance of losing so many more than it wins, were both equally good."""


def first(new: Sequence[str], examples: Sequence[Example], limits: Gate) -> Verdict:
    """The verdict where there is no old model: only `least_accuracy` can be against it."""
    accuracy = _accuracy(new, examples)
    refused = _too_low(accuracy, limits)
    return Verdict(not refused, tuple(refused) or ("there is no published model to compare with",), accuracy)


def compare(
    old: Sequence[str], new: Sequence[str], examples: Sequence[Example], old_labels: Sequence[str], new_labels: Sequence[str], limits: Gate
) -> Verdict:
    """Judge the labels that both models gave to the same examples.

    Args:
        old_labels, new_labels: all that each model can answer. Where they differ, models are compared on the examples
            whose right label both know: nobody can be right about the others with both.
    """
    accuracy = _accuracy(new, examples)
    refused, notes = _too_low(accuracy, limits), []
    common = set(old_labels) & set(new_labels)
    rows = [(e.label, a == e.label, b == e.label) for e, a, b in zip(examples, old, new, strict=True) if e.label in common]
    if set(old_labels) != set(new_labels):
        strangers = "; ".join(
            f"{what} {', '.join(sorted(names))}"
            for what, names in (("new:", set(new_labels) - common), ("gone:", set(old_labels) - common))
            if names
        )
        notes.append(f"the models have different labels ({strangers}): compared on the {len(rows)} examples of those that both have")
    topics = {slug(name) for name in new_labels}
    if gone := sorted(name for name in old_labels if slug(name) not in topics):
        refused.append(
            f"the labels {', '.join(gone)} would be gone, and nothing come out there any more: put them back into the data, or give --force"
        )
    if not rows:
        return Verdict(False, (*refused, *notes, "there is nothing to compare the models by"), accuracy)

    lost, won, p_worse = _mcnemar([(a, b) for _, a, b in rows])
    before, after = sum(a for _, a, _ in rows) / len(rows), sum(b for _, _, b in rows) / len(rows)
    told = f"accuracy {before:.4f} before and {after:.4f} now on {len(rows)} test examples; {lost} lost, {won} won, p = {p_worse:.3g}"
    if p_worse < limits.alpha:
        refused.append(f"it is worse by the paired test at {limits.alpha}: {told}")
    if before - after > limits.accuracy_drop + _ROUNDING:
        refused.append(f"accuracy falls by {before - after:.4f}, more than {limits.accuracy_drop}: {told}")

    unjudged = []
    for label in (name for name in new_labels if name in common):
        pairs = [(a, b) for right, a, b in rows if right == label]
        if 0.5 ** len(pairs) >= limits.alpha:
            unjudged.append(f"{label} ({len(pairs)})")
            continue
        lost, won, p_label = _mcnemar(pairs)
        drop = (lost - won) / len(pairs)
        if drop > limits.label_drop + _ROUNDING and p_label < limits.alpha:
            refused.append(
                f"recall of {label} falls by {drop:.3f}, more than {limits.label_drop}: "
                f"{lost} lost and {won} won of {len(pairs)}, p = {p_label:.3g}"
            )
    if unjudged:
        notes.append(f"too few test examples to judge: {', '.join(unjudged)}")
    return Verdict(not refused, (*(refused or [told]), *notes), accuracy, p_worse)


_ROUNDING = 1e-9


def _accuracy(given: Sequence[str], examples: Sequence[Example]) -> float | None:
    return agreement(given, [example.label for example in examples]) if examples else None


def _too_low(accuracy: float | None, limits: Gate) -> list[str]:
    if limits.least_accuracy is None or (accuracy is not None and accuracy >= limits.least_accuracy):
        return []
    found = "unknown, since there is no test split" if accuracy is None else f"{accuracy:.4f}"
    return [f"accuracy must be at least {limits.least_accuracy}, it is {found}"]


def _mcnemar(pairs: Sequence[tuple[bool, bool]]) -> tuple[int, int, float]:
    """(examples lost, examples won, p) of (right before, right now)."""
    lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return lost, won, float(binomtest(lost, lost + won, 0.5, alternative="greater").pvalue) if lost + won else 1.0

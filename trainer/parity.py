"""Whether two forms of one model answer alike: the trained network in torch and its GGUF, the GGUF and its quantised forms."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.recipe import Gate
from worker.classifier import Classifier, ModelCard
from worker.classifier.calibration import Floats
from worker.classifier.formats import FORMATS, in_format
from worker.classifier.labels import agreement
from worker.classifier.model_file import content_hash

__all__ = ["FORMATS", "Parity", "compare", "complaint", "in_formats"]


@dataclass(frozen=True, slots=True)
class Parity:
    """How alike one form and the model's GGUF answer the same queries."""

    form: str
    same_label: float
    """Share of the queries that both give the same label."""
    mean_difference: float
    """Mean over the queries of the largest difference in the probability of any label."""
    largest_difference: float
    n: int


def compare(form: str, given: Floats, expected: Floats, card: ModelCard | None = None) -> Parity:
    """Compare uncalibrated log-probabilities, both of shape (queries, labels), of at least one query.

    Args:
        card: by whose calibration labels are given; without it the likeliest is.
    """
    differences = np.abs(np.exp(given) - np.exp(expected)).max(axis=1)
    believed = [each if card is None else card.calibration.probabilities(each, card.labels.names) for each in (given, expected)]
    same_label = agreement(*(each.argmax(axis=1).tolist() for each in believed))
    return Parity(form, same_label, float(differences.mean()), float(differences.max()), len(given))


def complaint(parity: Parity, limits: Gate) -> str | None:
    """What is too unlike, in words. One query between two labels says nothing, so of few queries one may always be answered otherwise."""
    differ = round((1 - parity.same_label) * parity.n)
    if (parity.same_label >= limits.least_agreement or differ <= 1) and parity.mean_difference <= limits.most_difference:
        return None
    return (
        f"{parity.form} answers unlike the GGUF: {parity.same_label:.1%} same label (at least {limits.least_agreement:.1%}), "
        f"probabilities {parity.mean_difference:.4f} apart on average (at most {limits.most_difference})"
    )


def in_formats(
    model: Path, texts: Sequence[str], formats: Sequence[str], on_form: Callable[[str], None] = lambda _: None
) -> Iterator[Parity]:
    """Make each format of a GGUF, for as long as it takes to compare it.

    Raises:
        ModelFileError: llama.cpp cannot make or load one.
    """
    (expected, card), master_hash = _answers(model, texts), content_hash(model)
    for form in formats:
        on_form(form)
        with tempfile.TemporaryDirectory(prefix="pointsman-") as directory:
            given, _ = _answers(in_format(model, form, Path(directory), master_hash), texts)
        yield compare(form, given, expected, card)


def _answers(model: Path, texts: Sequence[str]) -> tuple[Floats, ModelCard]:
    classifier = Classifier.open(model, check=False)
    try:
        return classifier.log_probabilities([classifier.encode(text) for text in texts]), classifier.card
    finally:
        classifier.close()

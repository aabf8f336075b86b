"""The label set, and the codes with which a model answers it. Pure.

A code is one token of the vocabulary, so one forward pass classifies. It may be a word that the base already
connects with the label, or mean nothing at all; docs/decisions.md has the measurements.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Label:
    """One category: its public name, what it covers, and the code that the model answers with."""

    name: str
    description: str
    code: str


@dataclass(frozen=True, slots=True)
class LabelSet:
    """All labels of one model, in the fixed order of every distribution over them.

    Raises:
        ValueError: fewer than two labels, a name or code that is empty or used twice, names that are one as names of
            streams, or an `out_of_scope` that is not one of the names.
    """

    labels: tuple[Label, ...]
    out_of_scope: str | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise ValueError("a label set needs at least two labels")
        for what, values in (("name", self.names), ("code", self.codes)):
            if not all(values):
                raise ValueError(f"a label's {what} is empty")
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"label {what}s used twice: {', '.join(twice)}")
        check_names(self.names)
        if self.out_of_scope is not None and self.out_of_scope not in self.names:
            raise ValueError(f"the out-of-scope label {self.out_of_scope!r} is not in the label set")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(label.code for label in self.labels)

    def __len__(self) -> int:
        return len(self.labels)


def slug(name: str) -> str:
    """How a label is written in the name of its stream: lower case, words joined by '-'."""
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-")


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError if two labels would share one stream."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(slug(name), name)
        if other != name:
            raise ValueError(f"labels {other!r} and {name!r} would both be published to the topic {slug(name)!r}: rename one")


def agreement(given: Sequence[object], expected: Sequence[object]) -> float:
    """Share of the queries that have the same label in both: accuracy, where `expected` is the truth.

    Raises:
        ValueError: there are no queries, or not as many in both.
    """
    if not given:
        raise ValueError("no queries, so no share of them")
    return sum(a == b for a, b in zip(given, expected, strict=True)) / len(given)

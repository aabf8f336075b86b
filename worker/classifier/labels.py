"""The label set, and the opaque codes with which a model answers it. Pure.

A model that answers with label names drags along what it already believes about those words; one that
answers with codes that mean nothing learns only what the data says (79 % against 92 % on the same data).
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Tokenize = Callable[[str], list[int]]


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
        ValueError: fewer than two labels, a name or code that is empty or used twice, or an
            `out_of_scope` that is not one of the names.
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


def _candidates() -> Iterator[str]:
    yield from string.ascii_uppercase
    for length in (2, 3):
        for letters in itertools.product(string.ascii_uppercase, repeat=length):
            yield "".join(letters)


def choose_codes(names: Sequence[str], tokenize: Tokenize) -> tuple[str, ...]:
    """One code per name, each a single token of the vocabulary: A, B, ... then two and three letters.

    Raises:
        ValueError: the vocabulary has fewer such tokens than there are names.
    """
    singles = (code for code in _candidates() if len(tokenize(code)) == 1)
    codes = tuple(itertools.islice(singles, len(names)))
    if len(codes) < len(names):
        raise ValueError(f"the vocabulary has {len(codes)} single-token codes, {len(names)} labels need one each")
    return codes

"""The codes of labels: the one token of the vocabulary with which a model answers each. Pure.

A word of the label's own name where the vocabulary has it as one token, since the base already connects it with what the label
covers; else opaque letters. docs/decisions.md has the measurements.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

Tokenize = Callable[[str], list[int]]

_SHORT = 1e3
"""Cost of words such as "to" and "my", beside that of a word: how many names have it."""
_NO_WORD = 1e6


def choose_codes(names: Sequence[str], tokenize: Tokenize, given: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """One code per name, each a single token of the vocabulary, no two the same token.

    As many names as possible get a word of their own, and of its words each rather one that few other names have.

    Args:
        given: codes that a person chose, by name; the other names get words, and where there are none A, B, ..., then two and
            three letters; small ones where there are too few capitals.

    Raises:
        ValueError: a given code is not a single token, is used twice or belongs to no name; or the vocabulary
            has fewer single-token codes than are needed.
    """
    given = given or {}
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"codes are given for names that are no labels: {', '.join(unknown)}")
    long = sorted(repr(code) for code in given.values() if len(tokenize(code)) != 1)
    if long:
        raise ValueError(f"codes that are not a single token of the vocabulary: {', '.join(long)}")
    taken = {tokenize(code)[0] for code in given.values()}
    if len(taken) < len(given):
        raise ValueError("a code is given twice")
    rest = [name for name in names if name not in given]
    words = _words(rest, tokenize, taken)
    taken |= {tokenize(code)[0] for code in words.values()}
    opaque = list(itertools.islice(_opaque(tokenize, taken), len(rest) - len(words)))
    if len(words) + len(opaque) < len(rest):
        raise ValueError(f"the vocabulary has {len(words) + len(opaque)} single-token codes, {len(rest)} labels need one each")
    letters = iter(opaque)
    found = {**given, **words}
    return tuple(found[name] if name in found else next(letters) for name in names)


def _words(names: Sequence[str], tokenize: Tokenize, taken: set[int]) -> dict[str, str]:
    """Of as many names as possible one of their own words, written as it follows other text."""
    of_name = [{tokens[0]: f" {word}" for word in _split(name) if len(tokens := tokenize(f" {word}")) == 1} for name in names]
    how_common = Counter(token for words in of_name for token in words)
    columns = {token: place for place, token in enumerate(sorted(how_common.keys() - taken))}
    costs = np.full((len(names), len(columns) + len(names)), _NO_WORD)
    for row, words in enumerate(of_name):
        for token, word in words.items():
            if token in columns:
                costs[row, columns[token]] = how_common[token] + (_SHORT if len(word) <= 3 else 0)
    chosen: dict[str, str] = {}
    for row, column in zip(*linear_sum_assignment(costs), strict=True):
        for token, word in of_name[row].items():
            if columns.get(token) == column:
                chosen[names[row]] = word
    return chosen


def _split(name: str) -> list[str]:
    """The words of card_arrival, cardArrival, "Card arrival": card, arrival."""
    return [word.lower() for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))]


def _opaque(tokenize: Tokenize, taken: set[int]) -> Iterator[str]:
    """Letters that are one token, and none that stands for another already."""
    seen = set(taken)
    for alphabet in (string.ascii_uppercase, string.ascii_lowercase):  # there are vocabularies without capitals
        for length in (1, 2, 3):
            for letters in itertools.product(alphabet, repeat=length):
                tokens = tokenize(code := "".join(letters))
                if len(tokens) == 1 and tokens[0] not in seen:
                    seen.add(tokens[0])
                    yield code

"""What is wrong with a data file, before anything is trained on it: python -m trainer inspect."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from trainer.dataset import DataError, Example, Row
from trainer.near_duplicates import near_duplicates
from worker.classifier.model_file import load
from worker.classifier.prompt import encode_query, normalise

FEW_ROWS = 50
"""A label with fewer is named: it has too few to learn it from."""
STEPS = ("looking for copies", "counting tokens", "looking for suspicious labels")
_FOLDS, _SEED, _FEATURES = 5, 0, 10_000
_TOLERANCE = 3e-4


@dataclass(frozen=True, slots=True)
class Place:
    """A row and what stands in it. `file` is None for the data inspected."""

    file: str | None
    row: int
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows with the same text, or nearly (`exact` is false) the same."""

    left: Place
    right: Place
    exact: bool


@dataclass(frozen=True, slots=True)
class Copies:
    """Rows that repeat others, each with the earliest that it repeats."""

    duplicates: list[Pair]
    """The same text and the same label."""
    near_duplicates: list[Pair]
    """Nearly the same text and the same label."""
    contradictions: list[Pair]
    """The same text, or nearly, under two labels."""
    leaks: list[Pair]
    """A row of the data and its likeness in another file."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Lengths of the queries in the tokens of a model."""

    model: str
    limit: int
    median: float
    p95: float
    longest: int
    longest_row: int
    cut: list[int]
    """Rows longer than `limit`, whose middle the model does not see."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A row whose label a classifier that has not seen it doubts."""

    place: Place
    probability: float
    """Of the label that the row has."""
    suggested: str
    suggested_probability: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that was found."""

    rows: int
    labels: dict[str, int]
    """Rows of each, most frequent first."""
    copies: Copies
    tokens: Tokens
    suspicious: list[Suspicion]
    """The most certain first."""

    @property
    def imbalance(self) -> float:
        """Rows of the largest label by those of the smallest."""
        return max(self.labels.values()) / min(self.labels.values())

    @property
    def few(self) -> dict[str, int]:
        return {label: count for label, count in self.labels.items() if count < FEW_ROWS}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"imbalance": self.imbalance, "few": self.few}


def inspect(
    rows: Sequence[Row], against: Mapping[str, Sequence[Row]], model: Path, token_limit: int, on_step: Callable[[str], None]
) -> Inspection:
    """Look for everything.

    Args:
        against: other files by name, that must not hold what the data holds.
        model: any GGUF; its tokenizer counts.
        on_step: called with each of `STEPS` as it begins.

    Raises:
        DataError: there are not two labels.
        ModelFileError: the GGUF cannot be used.
    """
    counts = dict(Counter(row.example.label for row in rows).most_common())
    if len(counts) < 2:
        raise DataError(f"all rows have the label {next(iter(counts))!r}: a router needs at least two")
    on_step(STEPS[0])
    copies = find_copies(rows, against)
    on_step(STEPS[1])
    tokens = token_lengths(rows, model, token_limit)
    on_step(STEPS[2])
    return Inspection(len(rows), counts, copies, tokens, suspicious_labels(rows))


def find_copies(rows: Sequence[Row], against: Mapping[str, Sequence[Row]]) -> Copies:
    """Duplicates, contradictions and leaks. Texts are the same if the worker sees no difference but that of case."""
    places = [_place(row) for row in rows]
    others = [_place(row, file) for file, found in against.items() for row in found]
    first_elsewhere: dict[str, Place] = {}
    for place in others:
        first_elsewhere.setdefault(_key(place.text), place)
    copies = exact_copies(rows)
    first: dict[str, Place] = {}
    """By text, the first place in the data that has it."""
    labels: dict[str, set[str]] = defaultdict(set)
    for place in places:
        first.setdefault(_key(place.text), place)
        labels[_key(place.text)].add(place.label)
    near_elsewhere: dict[str, Place] = {}
    texts = [*first_elsewhere.values(), *first.values()]
    for left, right in near_duplicates([place.text for place in texts]):
        one, two = texts[left], texts[right]
        if right < len(first_elsewhere):
            continue
        if left < len(first_elsewhere):
            near_elsewhere.setdefault(_key(two.text), one)
        elif labels[_key(one.text)].isdisjoint(labels[_key(two.text)]):
            copies.contradictions.append(Pair(one, two, exact=False))
        else:
            copies.near_duplicates.append(Pair(one, two, exact=False))
    for place in places:
        key = _key(place.text)
        if key in first_elsewhere:
            copies.leaks.append(Pair(place, first_elsewhere[key], exact=True))
        elif key in near_elsewhere:
            copies.leaks.append(Pair(place, near_elsewhere[key], exact=False))
    return copies


def exact_copies(rows: Sequence[Row]) -> Copies:
    """Duplicates and contradictions of the same text alone, in one pass: nothing is compared with what is nearly it."""
    first: dict[str, Place] = {}
    first_of_label: dict[tuple[str, str], Place] = {}
    copies = Copies([], [], [], [])
    for place in map(_place, rows):
        key = _key(place.text)
        earlier = first_of_label.setdefault((key, place.label), place)
        if earlier is not place:
            copies.duplicates.append(Pair(earlier, place, exact=True))
        elif first.setdefault(key, place) is not place:
            copies.contradictions.append(Pair(first[key], place, exact=True))
    return copies


def token_lengths(rows: Sequence[Row], model: Path, limit: int) -> Tokens:
    """How long the queries are for the model, and which are cut at `limit` tokens."""
    vocabulary = load(model, vocab_only=True)

    def tokenize(text: str) -> list[int]:
        return vocabulary.tokenize(text, parse_special=False)

    lengths = [len(tokenize(normalise(row.example.text))) for row in rows]
    cut = [row.number for row in rows if encode_query(row.example.text, [], tokenize, limit).truncated]
    vocabulary.close()
    longest = int(np.argmax(lengths))
    return Tokens(
        model.name, limit, float(np.median(lengths)), float(np.percentile(lengths, 95)), lengths[longest], rows[longest].number, cut
    )


def suspicious_labels(rows: Sequence[Row]) -> list[Suspicion]:
    """Rows whose label may be wrong, by confident learning (Northcutt et al. 2021); the most certain first.

    A label's threshold is the mean probability that it gets where it is given. A row is suspicious where another
    label passes its threshold and is more probable than the row's own. Rows of a label that has too few to stand
    in every fold are not judged.
    """
    counts = Counter(row.example.label for row in rows)
    judged = [row for row in rows if counts[row.example.label] >= _FOLDS]
    names, given = np.unique([row.example.label for row in judged], return_inverse=True)
    if len(names) < 2:
        return []
    found = _probabilities([row.example for row in judged], given)
    every = np.arange(len(judged))
    own = found[every, given]
    thresholds = np.array([own[given == label].mean() for label in range(len(names))])
    rivals = np.where(found >= thresholds, found, 0.0)
    rivals[every, given] = 0.0
    best = rivals.argmax(axis=1)
    lead = rivals[every, best] - own
    suspicious = sorted(np.flatnonzero(lead > 0).tolist(), key=lambda row: -lead[row])
    return [
        Suspicion(_place(judged[row]), round(float(own[row]), 4), str(names[best[row]]), round(float(found[row, best[row]]), 4))
        for row in suspicious
    ]


def _probabilities(examples: Sequence[Example], given: np.ndarray) -> np.ndarray:
    """Of each label for each example, shape (examples, labels), by classifiers that have not seen the example."""
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=_FEATURES, dtype=np.float32)
    features = vectors.fit_transform([example.text for example in examples])
    found = np.zeros((len(examples), given.max() + 1))
    for seen, unseen in StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED).split(features, given):
        model = LogisticRegression(C=10.0, tol=_TOLERANCE, max_iter=200).fit(features[seen], given[seen])
        found[unseen] = model.predict_proba(features[unseen])
    return found


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that a cleaned file does without, and why."""

    place: Place
    kind: Literal["leak", "contradiction", "duplicate"]
    reason: str


def clean(rows: Sequence[Row], copies: Copies) -> tuple[list[Row], list[Dropped]]:
    """The rows without leaked ones, exact duplicates, and what contradicts the label that most rows of its text have.

    Where as many rows of a text have one label as another, nobody can tell which is right, and all go. Near-duplicates
    stay, and so do near-contradictions and suspicious rows: they may be what lies on the border of two labels.
    """
    leaks = {pair.left.row: pair for pair in copies.leaks}
    earlier = {pair.right.row: pair.left.row for pair in copies.duplicates}
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        votes[_key(row.example.text)][row.example.label] += 1
    kept: list[Row] = []
    dropped: list[Dropped] = []
    for row in rows:
        (label, most), *rest = votes[_key(row.example.text)].most_common(2)
        if row.number in leaks:
            leak = leaks[row.number]
            why = f"{'repeats' if leak.exact else 'nearly repeats'} {leak.right.file} row {leak.right.row}"
            dropped.append(Dropped(_place(row), "leak", why))
        elif rest and rest[0][1] == most:
            dropped.append(Dropped(_place(row), "contradiction", f"the same text is as often {label} as {rest[0][0]}"))
        elif row.example.label != label:
            dropped.append(Dropped(_place(row), "contradiction", f"the same text is more often {label}"))
        elif row.number in earlier:
            dropped.append(Dropped(_place(row), "duplicate", f"repeats row {earlier[row.number]}"))
        else:
            kept.append(row)
    return kept, dropped


def _key(text: str) -> str:
    return normalise(text).casefold()


def _place(row: Row, file: str | None = None) -> Place:
    return Place(file, row.number, row.example.text, row.example.label)

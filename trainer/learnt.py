"""Which texts a model has learnt from, as its metadata tell: by hashes, so that no query is in them.

A model is surer of what it has learnt, and right more often. So what it is judged, calibrated and chosen by must not be of that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.dataset import Example, Part, fingerprint, split
from trainer.near_duplicates import plain

ENOUGH = 0.5
"""Share of a part that a model must not have learnt for it to be judged by that share alone."""
RECORDED: tuple[Part, ...] = ("train", "validation")
"""The parts whose texts the metadata record: what was learnt, and what the weights were chosen by."""
_HASH_DIGITS = 10
"""Of 20,000 texts that a model has learnt, one other text in 50 million has the hash of one."""


def text_hashes(examples: Sequence[Example]) -> str:
    """Of each text the first 40 bits of its SHA-256, in hexadecimal, one after another: to know it again without keeping it."""
    return "".join(sorted({_text_hash(example) for example in examples}))


def joined(*hashes: str) -> str:
    """The hashes of all these, once each."""
    return "".join(sorted({one for each in hashes for one in _parted(each)}))


def are_among(examples: Sequence[Example], hashes: str) -> list[bool]:
    """Of each example, whether its text is among those of `text_hashes`; case and punctuation aside."""
    known = _parted(hashes)
    return [_text_hash(example) in known for example in examples]


def unlearnt(examples: Sequence[Example], part: str, training: Mapping[str, Any]) -> list[int] | None:
    """Which of the examples a model has not learnt from; None if that is less than half of them: too few to go by.

    Of a model that recorded no texts either all count or none: by the fingerprints of its parts, where it recorded those.

    Args:
        part: which part of their file they are; `all` if they are all of it.
        training: the model's metadata of that name.
    """
    if "texts" in training:
        rows = [row for row, known in enumerate(are_among(examples, training["texts"]["train"])) if not known]
        return rows if len(rows) >= ENOUGH * len(examples) else None
    recorded = training.get("data_sha256")
    if not isinstance(recorded, dict):
        return list(range(len(examples)))
    if part in ("all", "train"):
        parts = split(examples, **training["recipe"]["split"]) if part == "all" else {"train": list(examples)}
        known = any(found and fingerprint(found) == recorded.get(name) for name, found in parts.items())
    else:
        known = recorded.get(part) != fingerprint(examples)
    return None if known else list(range(len(examples)))


def without_learnt(examples: Sequence[Example], part: str, training: Mapping[str, Any], say: Callable[[str], None]) -> list[Example] | None:
    """The examples that `unlearnt` tells; how many are left out is said, if any are."""
    kept = unlearnt(examples, part, training)
    if kept is None:
        return None
    if len(kept) < len(examples):
        say(f"{len(examples) - len(kept)} of {len(examples)} queries left out: the model has learnt them")
    return [examples[row] for row in kept]


def _parted(hashes: str) -> set[str]:
    return {hashes[start : start + _HASH_DIGITS] for start in range(0, len(hashes), _HASH_DIGITS)}


def _text_hash(example: Example) -> str:
    return hashlib.sha256(plain(example.text).encode()).hexdigest()[:_HASH_DIGITS]

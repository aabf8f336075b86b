"""What a model has learnt from, and what it was kept from seeing, as its metadata tell: by hashes, so that no query is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.dataset import Example, Part, file_fingerprint, fingerprint, load_examples, split
from trainer.near_duplicates import plain

ENOUGH = 0.5
"""Share of a part that a model must not have learnt from for it to be judged by that share alone."""
_HASH_DIGITS = 12


def unlearnt(examples: Sequence[Example], part: Part, training: Mapping[str, Any]) -> list[int] | None:
    """Which of the examples of a part a model has not learnt from; None if it tells so of less than half: too few to go by.

    All of them, where it tells nothing at all.
    """
    rows = [row for row, held in enumerate(were_held_out(examples, part, training, unknown=True)) if held]
    return rows if len(rows) >= ENOUGH * len(examples) else None


def text_hashes(examples: Sequence[Example]) -> str:
    """Of each text the first 48 bits of its SHA-256, in hexadecimal, one after another: to know it again without keeping it."""
    return "".join(sorted(_text_hash(example) for example in examples))


def were_held_out(examples: Sequence[Example], part: Part, training: Mapping[str, Any], *, unknown: bool = False) -> list[bool]:
    """Of each example, whether the metadata of a model tell that its text was in this part of its data, and not trained on.

    Of a model that recorded no texts, all were if the part was the same; `unknown` is said where not even that is recorded.
    """
    if "held_out" not in training:
        data = training.get("data_sha256")
        same = data.get(part) == fingerprint(examples) if isinstance(data, dict) else unknown
        return [same] * len(examples)
    hashes = training["held_out"].get(part, "")
    held = {hashes[start : start + _HASH_DIGITS] for start in range(0, len(hashes), _HASH_DIGITS)}
    return [_text_hash(example) in held for example in examples]


def is_training_file(path: Path, training: Mapping[str, Any]) -> bool:
    """Whether a model was trained on examples of this file.

    It was if its metadata record the file, or a part that the file falls into; or if most of the validation part that would be
    split off it was held out and most of the rest was not: then it is the training file, grown since.
    """
    examples = load_examples(path)
    if file_fingerprint(examples) in training.get("learnt_from_sha256", ()):
        return True
    recorded, parts = training.get("data_sha256"), split(examples, **training["recipe"]["split"])
    if isinstance(recorded, dict) and any(found and fingerprint(found) == recorded.get(part) for part, found in parts.items()):
        return True
    return "held_out" in training and _mostly_held_out(parts["validation"], training) and not _mostly_held_out(parts["train"], training)


def _mostly_held_out(examples: Sequence[Example], training: Mapping[str, Any]) -> bool:
    held = were_held_out(examples, "validation", training)
    return bool(held) and sum(held) >= ENOUGH * len(held)


def _text_hash(example: Example) -> str:
    return hashlib.sha256(plain(example.text).encode()).hexdigest()[:_HASH_DIGITS]

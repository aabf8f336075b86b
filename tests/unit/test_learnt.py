"""What a model has learnt from is known by its metadata, so that nothing is chosen or measured by it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.parts import made_up_examples
from trainer.dataset import PARTS, Example, fingerprint, split
from trainer.learnt import are_among, joined, text_hashes, unlearnt

SPLIT: dict[str, Any] = {"seed": 1, "validation": 0.2, "test": 0.2}
LEARNT, OTHERS = made_up_examples(40), made_up_examples(40, seed=1)


def telling(*examples: Example) -> dict[str, Any]:
    """What the metadata of a model tell that has learnt from these."""
    return {"texts": {"train": text_hashes(examples), "validation": ""}}


def test_texts_are_known_again_by_their_hashes_case_and_punctuation_aside() -> None:
    hashes = text_hashes(LEARNT)
    assert are_among([*LEARNT, *OTHERS], hashes) == [True] * 40 + [False] * 40
    assert are_among([Example(f" {LEARNT[0].text.upper()}! ", "c")], hashes) == [True]
    assert are_among(LEARNT, "") == [False] * 40


def test_hashes_of_two_trainings_are_joined_without_repeats() -> None:
    assert joined(text_hashes(LEARNT[:30]), text_hashes(LEARNT[20:])) == text_hashes(LEARNT)


def test_what_was_not_learnt_is_told_if_it_is_half_or_more() -> None:
    training = telling(*LEARNT)
    assert unlearnt(OTHERS, "all", training) == list(range(40))
    assert unlearnt([*LEARNT[:20], *OTHERS[:20]], "test", training) == list(range(20, 40))
    assert unlearnt([*LEARNT[:21], *OTHERS[:20]], "test", training) is None
    assert unlearnt([*LEARNT, *OTHERS[:20]], "all", training) is None, "the training file, grown since"


@pytest.mark.parametrize("recorded", [{}, {"data_sha256": "of all"}])
def test_of_a_model_that_tells_nothing_all_counts(recorded: dict[str, Any]) -> None:
    assert unlearnt(LEARNT, "test", recorded) == list(range(40))


def test_of_a_model_that_recorded_its_parts_alone_they_count_whole_or_not_at_all() -> None:
    parts = split(LEARNT, **SPLIT)
    training = {"recipe": {"split": SPLIT}, "data_sha256": {part: fingerprint(parts[part]) for part in PARTS}}
    for held_out in ("validation", "test"):
        assert unlearnt(parts[held_out], held_out, training) == list(range(len(parts[held_out])))
        assert unlearnt(OTHERS, held_out, training) is None
    assert unlearnt(parts["train"], "train", training) is None
    assert unlearnt(LEARNT, "all", training) is None
    assert unlearnt(OTHERS, "all", training) == list(range(40))

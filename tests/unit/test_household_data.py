"""The shipped data: enough of it, no copies, no templates, and a split that does not leak."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from trainer.dataset import PARTS, Example, Part, check_labels, load_examples, load_rows, split, without_copies
from trainer.near_duplicates import frames, near_duplicates
from trainer.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = load_recipe(ROOT / "trainer/recipes/household-smollm2.yaml")


def parted(examples: list[Example]) -> dict[Part, list[Example]]:
    return split(examples, seed=RECIPE.split.seed, validation=RECIPE.split.validation, test=RECIPE.split.test)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return load_examples(ROOT / RECIPE.data)


@pytest.fixture(scope="module")
def parts(examples: list[Example]) -> dict[Part, list[Example]]:
    return parted(examples)


def test_there_are_enough_rows_of_every_label(examples: list[Example]) -> None:
    counts = Counter(example.label for example in examples)
    assert len(examples) >= 1600
    assert counts.pop("out_of_scope") >= 180
    assert len(counts) == 18
    assert {label: count for label, count in counts.items() if count < 80} == {}


def test_no_two_texts_are_near_duplicates(examples: list[Example]) -> None:
    texts = [example.text for example in examples]
    assert [(texts[a], texts[b]) for a, b in near_duplicates(texts)] == []


def test_no_frame_is_used_more_than_three_times(examples: list[Example]) -> None:
    found = frames([example.text for example in examples])
    assert found, "no frames were found at all"
    assert {frame: rows for frame, rows in found.items() if len(rows) > 3} == {}


def test_no_near_duplicates_lie_across_parts(parts: dict[Part, list[Example]]) -> None:
    rows = [(example.text, part) for part in PARTS for example in parts[part]]
    pairs = near_duplicates([text for text, _ in rows])
    assert [(rows[a], rows[b]) for a, b in pairs if rows[a][1] != rows[b][1]] == []


@pytest.mark.parametrize(("part", "share"), [("train", 0.70), ("validation", 0.15), ("test", 0.15)])
def test_the_parts_have_their_shares(examples: list[Example], parts: dict[Part, list[Example]], part: Part, share: float) -> None:
    assert len(parts[part]) / len(examples) == pytest.approx(share, abs=0.015)


def test_every_label_is_in_every_part(parts: dict[Part, list[Example]]) -> None:
    assert {part: set(RECIPE.labels) - {example.label for example in parts[part]} for part in PARTS} == {part: set() for part in PARTS}


def test_the_split_does_not_change_with_the_order_of_the_rows(examples: list[Example], parts: dict[Part, list[Example]]) -> None:
    shuffled = examples[:]
    random.Random(4).shuffle(shuffled)
    assert parted(shuffled) == parts


@pytest.mark.parametrize("added", [1, 100])
def test_added_rows_move_few_of_the_others(examples: list[Example], parts: dict[Part, list[Example]], added: int) -> None:
    before = parted(random.Random(6).sample(examples, len(examples) - added))
    place = {example.text: part for part in PARTS for example in parts[part]}
    moved = [example.text for part in PARTS for example in before[part] if place[example.text] != part]
    assert len(moved) <= 0.02 * len(examples), "a split that is drawn anew moves about 45 % of the rows"
    if added == 1:
        assert len(moved) <= 2


def test_what_is_trained_on_alone_copies_nothing_that_is_measured_with(parts: dict[Part, list[Example]]) -> None:
    more = [example for path in RECIPE.train_only for example in check_labels(load_rows(ROOT / path), RECIPE.labels, path, "the recipe")]
    assert more
    assert without_copies(more, of=[*parts["validation"], *parts["test"], *load_examples(ROOT / "models/household/exam.json")]) == more

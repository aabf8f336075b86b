from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from trainer.build import Adapter
from trainer.dataset import DataError, Example
from trainer.learnt import text_hashes
from trainer.parts import fair_share, of
from trainer.recipe import Recipe, load_recipe
from trainer.warm_start import Start


def file(name: str, length: int) -> list[Example]:
    return [Example(f"{name} {number}", name) for number in range(length)]


def counts(taken: list[Example]) -> dict[str, int]:
    return {name: sum(example.label == name for example in taken) for name in ("data", "more", "corrections")}


def recipe(tmp_path: Path, rows: dict[str, list[str]], **changes: object) -> Recipe:
    """A recipe of rows, texts by label."""
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"input": text, "output": label} for label, texts in rows.items() for text in texts]))
    shipped = Path(__file__).parents[2] / "trainer" / "recipes" / "starter.yaml"
    return load_recipe(shipped, {"data": data, "output": tmp_path / "model"} | changes)


ANIMALS = ["a cat on the roof", "barking dogs", "whales sing", "six geese", "moles dig", "an owl at night", "trout leap", "zebra crossing"]
THINGS = ["kettle boils", "broken lamp", "red chair", "my pillow", "fork and knife", "old piano", "umbrella lost", "glue stick"]


def test_a_label_without_held_out_examples_is_named_and_data_without_any_is_refused(tmp_path: Path) -> None:
    said: list[str] = []
    of(recipe(tmp_path, {"animal": ANIMALS, "thing": THINGS[:2]}), said.append)
    assert [line for line in said if "no validation examples of thing" in line]
    with pytest.raises(DataError, match="falls into the validation part: a label needs 4"):
        of(recipe(tmp_path, {"animal": ANIMALS[:3], "thing": THINGS[:3]}), said.append)


def test_a_test_file_that_repeats_what_is_trained_on_is_told_of(tmp_path: Path) -> None:
    test = tmp_path / "test.csv"
    test.write_text("text,label\nA cat on the roof!,animal\nnothing like it,thing\n")
    said: list[str] = []
    split = {"seed": 7, "validation": 0.15, "test": 0}
    parts = of(recipe(tmp_path, {"animal": ANIMALS, "thing": THINGS}, test=test, split=split), said.append).examples
    assert len(parts["test"]) == 2, "a public test file is measured as it is"
    assert [line for line in said if "1 of 2 examples of" in line and "flatter" in line]


def test_copies_and_contradictions_are_not_trained_on_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    many = {"animal": [*ANIMALS, "A Cat on the Roof", "moss grows", "fern"], "thing": [*THINGS, "moss grows", "fern", "Fern"]}
    split = {"seed": 7, "validation": 0, "test": 0}
    held = tmp_path / "held.csv"
    held.write_text("text,label\nmy goldfish,animal\nthe doorbell,thing\n")
    parts = of(recipe(tmp_path, many, validation=held, test=held, split=split), said.append).examples
    texts = [example.text for example in parts["train"]]
    assert sorted(texts) == sorted([*ANIMALS, *THINGS, "fern"])
    assert Example("fern", "thing") in parts["train"], "most rows of that text say so"
    assert "not trained on: 2 copies, 3 examples whose text has another label too" in "".join(said)


def test_examples_that_a_label_has_in_the_data_are_shown_as_often_as_is_said(tmp_path: Path) -> None:
    more = tmp_path / "more.csv"
    more.write_text("text,label\ncandle burns down,thing\n")
    parts = of(recipe(tmp_path, {"animal": ANIMALS, "thing": THINGS}, repeat={"thing": 3}, train_only=more), lambda _: None)
    things = [example for example in parts.examples["train"] if example.label == "thing"]
    further = Example("candle burns down", "thing")
    assert further in things, "once"
    assert Counter(parts.again) == {example: 2 for example in things if example != further}


def a_start(*learnt: Example) -> Start:
    return Start(Adapter({}, 1.0), "0123456789ab", {}, {"texts": {"train": text_hashes(learnt), "validation": ""}})


def test_what_the_model_that_training_goes_on_from_has_learnt_is_held_out_no_more(tmp_path: Path) -> None:
    chosen = recipe(tmp_path, {"animal": ANIMALS, "thing": THINGS}, split={"seed": 7, "validation": 0.25, "test": 0.25})
    said: list[str] = []
    whole = of(chosen, said.append).examples
    assert (len(whole["validation"]), len(whole["test"])) == (4, 4)
    start = a_start(*whole["train"], whole["validation"][0], *whole["test"][:3])
    parts = of(chosen, said.append, start).examples
    assert parts["validation"] == whole["validation"][1:]
    assert "1 of 4 validation examples left out: 0123456789ab has learnt them" in "\n".join(said)
    assert parts["test"] == whole["test"], "too little would be left to measure with"
    assert "0123456789ab may have learnt most of the test examples" in "\n".join(said)
    assert whole["validation"][0] not in parts["train"]


def test_a_test_file_of_its_own_is_measured_as_it_is(tmp_path: Path) -> None:
    test = tmp_path / "test.csv"
    test.write_text("text,label\nmy goldfish,animal\nthe doorbell,thing\na tortoise,animal\n")
    chosen = recipe(tmp_path, {"animal": ANIMALS, "thing": THINGS}, test=test, split={"seed": 7, "validation": 0.25, "test": 0})
    assert len(of(chosen, lambda _: None, a_start(Example("My goldfish!", "animal"))).examples["test"]) == 3


def test_a_label_that_the_recipe_does_not_list_is_refused_with_its_file_and_row(tmp_path: Path) -> None:
    more = tmp_path / "more.csv"
    more.write_text("text,label\ncandle burns down,thing\noak,plant\n")
    with pytest.raises(DataError, match=r"more\.csv has labels that the recipe does not know:\n  'plant' \(1 rows\): row 3"):
        of(recipe(tmp_path, {"animal": ANIMALS, "thing": THINGS}, train_only=more), lambda _: None)


def test_small_files_are_taken_whole_and_larger_ones_share_what_room_is_left() -> None:
    taken = fair_share([file("data", 500), file("more", 900), file("corrections", 20)], 220, "seed")
    assert counts(taken) == {"data": 100, "more": 100, "corrections": 20}
    assert len(set(taken)) == 220


def test_all_are_taken_if_there_is_room() -> None:
    assert counts(fair_share([file("data", 5), file("more", 9)], 100, "seed")) == {"data": 5, "more": 9, "corrections": 0}


def test_each_model_to_go_on_from_draws_others() -> None:
    files = [file("data", 500)]
    assert fair_share(files, 50, "0:abc") == fair_share(files, 50, "0:abc") != fair_share(files, 50, "0:def")

"""What a model has learnt from is known by its metadata, so that nothing is chosen or measured by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit.parts import made_up_examples
from trainer.dataset import PARTS, Example, file_fingerprint, fingerprint, load_examples, split
from trainer.learnt import is_training_file, text_hashes, unlearnt, were_held_out

NO_SPLIT = {"seed": 1, "validation": 0, "test": 0}
SPLIT: dict[str, Any] = {"seed": 1, "validation": 0.2, "test": 0.2}


def file(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_text(content)
    return path


def csv(examples: list[Example]) -> str:
    return "text,label\n" + "".join(f"{example.text},{example.label}\n" for example in examples)


def trained_on(examples: list[Example]) -> dict[str, Any]:
    """What the metadata of a model tell that was trained on these."""
    parts = split(examples, **SPLIT)
    return {
        "recipe": {"split": SPLIT},
        "data_sha256": {part: fingerprint(parts[part]) for part in PARTS},
        "learnt_from_sha256": [file_fingerprint(examples)],
        "held_out": {part: text_hashes(parts[part]) for part in ("validation", "test")},
    }


def test_the_file_that_a_model_has_learnt_from_is_known_again(tmp_path: Path) -> None:
    rows = [f"{number * 'ab'} {number},pool\n" for number in range(1, 40)]
    path = file(tmp_path, "d.csv", "text,label\n" + "".join(rows))
    split_by: dict[str, Any] = {"seed": 1, "validation": 0.2, "test": 0.2}
    recorded: dict[str, str] = {part: fingerprint(found) for part, found in split(load_examples(path), **split_by).items()}
    training = {"recipe": {"split": split_by}, "data_sha256": recorded}
    with_more = {"recipe": {"split": split_by}, "data_sha256": recorded | {"train": "of the file and of another"}}
    others = file(tmp_path, "others.csv", "text,label\n" + "".join(rows[:20]) + "nothing like these,pool\n")
    assert is_training_file(path, training)
    assert is_training_file(path, with_more)
    assert not is_training_file(others, training)
    assert not is_training_file(path, {"recipe": {"split": split_by}})
    whole: dict[str, Any] = {"seed": 1, "validation": 0, "test": 0}
    assert is_training_file(
        path, {"recipe": {"split": whole}, "data_sha256": {"train": fingerprint(split(load_examples(path), **whole)["train"])}}
    )


def test_every_file_that_a_model_has_learnt_from_is_recognised(tmp_path: Path) -> None:
    data, more, new = (file(tmp_path, f"{name}.csv", f"text,label\n{name} hums,pool\n") for name in ("data", "more", "new"))
    more.write_text(more.read_text() + "a heron,pool\n")
    training = {"learnt_from_sha256": [file_fingerprint(load_examples(path)) for path in (data, more)], "recipe": {"split": NO_SPLIT}}
    assert [is_training_file(path, training) for path in (data, more, new)] == [True, True, False]
    header, *rows = more.read_text().splitlines(keepends=True)
    more.write_text("".join([header, *reversed(rows)]))
    assert is_training_file(more, training), "in whatever order"


def test_texts_that_were_held_out_are_known_again_by_their_hashes() -> None:
    parts = split(made_up_examples(60), **SPLIT)
    training = {"held_out": {part: text_hashes(parts[part]) for part in ("validation", "test")}}
    assert all(were_held_out(parts["test"], "test", training))
    assert not any(were_held_out([*parts["train"], *parts["validation"]], "test", training))
    assert were_held_out([Example(f" {parts['test'][0].text.upper()}", "c")], "test", training) == [True], "case and label aside"
    assert not any(were_held_out(parts["test"], "test", {}))


def test_a_training_file_that_has_grown_is_known_again_and_one_that_was_held_out_is_none(tmp_path: Path) -> None:
    examples = made_up_examples(200)
    training = trained_on(examples)
    grown = file(tmp_path, "grown.csv", csv([*examples, *made_up_examples(20, seed=1)]))
    assert is_training_file(grown, training)
    held = file(tmp_path, "held.csv", csv(split(examples, **SPLIT)["validation"]))
    assert not is_training_file(held, training)
    new = file(tmp_path, "new.csv", csv(made_up_examples(200, seed=2)))
    assert not is_training_file(new, training)


def test_of_a_part_what_was_not_learnt_is_told_if_it_is_half_or_more() -> None:
    parts = split(made_up_examples(60), **SPLIT)
    training = {"held_out": {"test": text_hashes(parts["test"])}}
    half = [*parts["test"], *parts["train"][: len(parts["test"])]]
    assert unlearnt(half, "test", training) == list(range(len(parts["test"])))
    assert unlearnt([*half, parts["train"][-1]], "test", training) is None
    assert unlearnt(half, "test", {}) == list(range(len(half))), "nothing is known of it"

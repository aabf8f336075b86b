"""The examples that a recipe names, by the part that they have in a run: trained on, chosen and calibrated by, measured with."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import dataset, inspection, learnt, out_of_scope
from trainer.dataset import DataError, Example, Part, Row
from trainer.recipe import Recipe, with_labels_of
from trainer.warm_start import Start


@dataclass(frozen=True, slots=True)
class Parts:
    """What a recipe's files hold."""

    recipe: Recipe
    """With the labels of the data, where it listed none."""
    examples: dict[Part, list[Example]]
    again: list[Example]
    """What an epoch of training shows besides: examples of `data` whose label is repeated, each as often as it is shown more than once."""


def of(recipe: Recipe, say: Callable[[str], None], start: Start | None = None) -> Parts:
    """All examples of the recipe's files by part.

    Args:
        start: the model that training goes on from. Then so many are trained on as the recipe's `continuing` says, and of what is
            held out that is left out which it has learnt.

    Raises:
        DataError: a file cannot be used, or nothing is left to train on or to validate by.
        RecipeError: the labels of the data do not fit the recipe.
    """
    rows = dataset.load_rows(recipe.data)
    recipe = with_labels_of(recipe, (row.example.label for row in rows))
    examples = dataset.check_labels(rows, recipe.labels, recipe.data, "the recipe")
    parts = dataset.split(examples, **recipe.split.model_dump())
    files: dict[Part, Path | None] = {"validation": recipe.validation, "test": recipe.test}
    for part, path in files.items():
        if path is not None:
            parts[part] = _of_known_labels(recipe, path)
            _say_repeated(part, path, parts, say)
    if not parts["validation"]:
        raise DataError(
            f"no example of {recipe.data} falls into the validation part: a label needs {math.ceil(0.5 / recipe.split.validation)} "
            "that are not nearly the same; add examples, raise split.validation, or name a file of their own (validation)"
        )
    if start is not None:
        _drop_learnt(start, parts, files, say)
    parts["train"] = _curated(recipe.data, parts["train"], say)
    out_of_scope.check(parts["validation"], recipe.out_of_scope, recipe.review.out_of_scope_share)
    _say_untested(recipe, parts, say)
    further = [_of_known_labels(recipe, path) for path in recipe.train_only]
    taught = [parts["train"], *(_train_only(*each, parts, say) for each in zip(recipe.train_only, further, strict=True))]
    if start is not None:
        parts["train"] = fair_share(taught, recipe.continuing.examples, f"{recipe.training.seed}:{start.version}")
    else:
        parts["train"] = [example for file in taught for example in file]
    if not parts["train"]:
        raise DataError(f"no example of {recipe.data} is left to train on: the parts that are held out take all")
    if absent := sorted(set(recipe.labels) - {example.label for example in parts["train"]}):
        say(f"data      no example of {', '.join(absent)} is trained on: the model will hardly give these labels")
    of_data = {id(example) for example in taught[0]}
    again = [example for example in parts["train"] if id(example) in of_data for _ in range(recipe.repeat.get(example.label, 1) - 1)]
    return Parts(recipe, parts, again)


def _curated(source: Path, examples: Sequence[Example], say: Callable[[str], None]) -> list[Example]:
    """The training examples without copies and contradictions. What is held out is measured with as it is."""
    rows = [Row(number, example, {}) for number, example in enumerate(examples, start=1)]
    kept, dropped = inspection.clean(rows, inspection.exact_copies(rows))
    if dropped:
        kinds = Counter(each.kind for each in dropped)
        say(
            f"data      not trained on: {kinds['duplicate']} copies, {kinds['contradiction']} examples whose text has another label too "
            f"(python -m trainer inspect {source})"
        )
    return [row.example for row in kept]


def fair_share(files: Sequence[Sequence[Example]], room: int, seed: str) -> list[Example]:
    """At most `room` examples: small files whole, of larger ones as many of each, by lot."""
    taken: list[Example] = []
    for place, examples in enumerate(sorted(files, key=len)):
        share = (room - len(taken)) // (len(files) - place)
        taken += examples if len(examples) <= share else random.Random(seed).sample(examples, share)
    return taken


def _say_repeated(part: Part, path: Path, parts: dict[Part, list[Example]], say: Callable[[str], None]) -> None:
    """How much of a held-out file the model will have seen: it is measured all the same, since a public test file is what it is."""
    others: list[Example] = [example for other in ("train", "validation") if other != part for example in parts[other]]
    seen = len(parts[part]) - len(dataset.without_copies(parts[part], of=others))
    if seen:
        say(f"data      {seen} of {len(parts[part])} examples of {path} are nearly in the other parts: figures measured by them flatter")


def _say_untested(recipe: Recipe, parts: dict[Part, list[Example]], say: Callable[[str], None]) -> None:
    for part in ("validation", "test"):
        absent = sorted(set(recipe.labels) - {example.label for example in parts[part]})
        if parts[part] and absent:
            say(f"data      no {part} examples of {', '.join(absent)}: nothing is known of how well these are told")


def _of_known_labels(recipe: Recipe, path: Path) -> list[Example]:
    return dataset.check_labels(dataset.load_rows(path), recipe.labels, path, "the recipe")


def _drop_learnt(start: Start, parts: dict[Part, list[Example]], files: dict[Part, Path | None], say: Callable[[str], None]) -> None:
    """Take from what is held out what the model that training goes on from has learnt: data that has grown is split anew.

    Of a file of its own all stays: it repeats what is trained on or not, and is measured as it is.
    """
    for part, own in files.items():
        examples, kept = parts[part], learnt.unlearnt(parts[part], part, start.training)
        if kept is None:
            say(f"data      {start.version} may have learnt most of the {part} examples: what is chosen or measured by them flatters")
        elif own is None and len(kept) < len(examples):
            say(f"data      {len(examples) - len(kept)} of {len(examples)} {part} examples left out: {start.version} has learnt them")
            parts[part] = [examples[row] for row in kept]


def _train_only(path: Path, found: Sequence[Example], parts: dict[Part, list[Example]], say: Callable[[str], None]) -> list[Example]:
    """Further examples for training; none that is nearly in the validation or test part."""
    kept = dataset.without_copies(found, parts["validation"] + parts["test"])
    if len(kept) < len(found):
        say(f"data      {len(found) - len(kept)} examples of {path} left out: near-duplicates of held-out ones")
    return kept

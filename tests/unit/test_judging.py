"""What a new model is held against: its own network, and the published model on examples that this one has not learnt from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.parts import StandIn, a_card, a_decision
from trainer import build, judging, publish
from trainer.answers import Answers, prompt_hash
from trainer.base import BaseError
from trainer.build import BuildError
from trainer.dataset import Example
from trainer.judging import Published, judge, unlike_the_network
from trainer.learnt import text_hashes
from trainer.recipe import Gate, Recipe, RecipeError, load_recipe
from worker.classifier.model_file import ModelFileError

STARTER = Path(judging.__file__).parent / "recipes" / "starter.yaml"
PROMPTS = [[1, 10, 2], [1, 11, 2], [1, 12, 13, 2]]
TEST = [Example("pump hums", "pool"), Example("tyre is flat", "pool"), Example("water is green", "pool")]
SCORES = np.log([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(STARTER, {"data": tmp_path / "data.json", "output": tmp_path / "model"})


@pytest.fixture
def served() -> Answers:
    return Answers(
        SCORES, np.array([2, 2, 3]), np.zeros(3, dtype=np.bool_), np.array([prompt_hash(ids) for ids in PROMPTS], dtype=np.uint64)
    )


def a_model_is_in_place(recipe: Recipe) -> None:
    recipe.output.mkdir()
    (recipe.output / build.METADATA_FILE).write_text("{")


def complaint(recipe: Recipe, served: Answers, **trained: object) -> str | None:
    return unlike_the_network(recipe, a_card("pool", "car"), served, PROMPTS, trained.get("scores", SCORES), lambda _: None)  # type: ignore[arg-type]


def test_a_gguf_that_answers_as_its_network_does_is_not_complained_of(recipe: Recipe, served: Answers) -> None:
    assert complaint(recipe, served) is None


def test_a_gguf_that_answers_otherwise_is_refused(recipe: Recipe, served: Answers) -> None:
    assert "the trained network answers unlike the GGUF" in str(complaint(recipe, served, scores=SCORES[:, ::-1]))


def test_a_gguf_that_reads_a_query_as_other_tokens_is_refused(recipe: Recipe, served: Answers) -> None:
    other = served.prompts.copy()
    other[1] = prompt_hash([1, 99, 2])
    assert "1 queries of the validation split have other token ids" in str(complaint(recipe, replace(served, prompts=other)))


def test_queries_that_training_cut_shorter_are_passed_over_unless_all_are(recipe: Recipe, served: Answers) -> None:
    long = served.lengths + recipe.training.max_query_tokens
    other = np.array([prompt_hash([99]), *served.prompts[1:]], dtype=np.uint64)
    assert complaint(recipe, replace(served, prompts=other, lengths=long)) is None
    none_alike = np.array([prompt_hash([99])] * 3, dtype=np.uint64)
    assert "cannot be compared" in str(complaint(recipe, replace(served, prompts=none_alike, lengths=long)))


@pytest.mark.parametrize(
    ("training", "kept", "told"),
    [
        ({"learnt": []}, 3, None),
        ({"learnt": [1]}, 2, "compared on the 2 of 3 test examples that it has not learnt"),
        ({"learnt": [0, 2]}, 3, "may have been trained on some"),
        ({"data_sha256": {"test": "another"}}, 3, "may have been trained on some"),
        ({}, 3, None),
    ],
)
def test_the_published_model_is_asked_about_what_it_has_not_learnt_where_that_is_enough(
    recipe: Recipe, training: dict[str, Any], kept: int, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "learnt" in training:
        training = {"texts": {"train": text_hashes([TEST[row] for row in training["learnt"]])}}
    model = StandIn(lambda texts: [a_decision("pool")] * len(texts), replace(a_card("pool", "car"), training=training))
    a_model_is_in_place(recipe)
    monkeypatch.setattr(publish, "open_model", lambda *_: model)
    said: list[str] = []
    found = judging.published(recipe, TEST, False, said.append, lambda *_: None)
    assert found is not None
    assert len(found.test) == len(found.answers) == kept
    assert ([line for line in said[1:] if told and told in line] != []) == (told is not None), said
    with pytest.raises(RecipeError, match="without a test split"):
        judging.published(recipe, [], False, said.append, lambda *_: None)
    assert judging.published(recipe, [], True, said.append, lambda *_: None) is None


@pytest.mark.parametrize("error", [ModelFileError("probe 2 failed"), BuildError("no adapter"), BaseError("is not the base")])
def test_a_present_model_that_cannot_be_opened_is_replaced_only_by_force(
    recipe: Recipe, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> None:
        raise error

    a_model_is_in_place(recipe)
    monkeypatch.setattr(publish, "open_model", cannot)
    said: list[str] = []
    with pytest.raises(RecipeError, match=f"cannot be opened .{error}.*--force"):
        judging.published(recipe, TEST, False, said.append, lambda *_: None)
    assert judging.published(recipe, TEST, True, said.append, lambda *_: None) is None
    assert str(error) in said[-1]


def test_metadata_that_cannot_be_read_are_replaced_only_by_force(recipe: Recipe) -> None:
    a_model_is_in_place(recipe)
    with pytest.raises(RecipeError, match=r"cannot be opened .*--force"):
        judging.published(recipe, TEST, False, lambda _: None, lambda *_: None)
    assert judging.published(recipe, TEST, True, lambda _: None, lambda *_: None) is None


def test_the_least_accuracy_is_of_the_whole_test_part(recipe: Recipe, served: Answers) -> None:
    strict = recipe.model_copy(update={"gate": Gate(least_accuracy=0.9)})
    verdict = judge(strict, a_card("pool", "car"), served, Published(("pool", "car"), [TEST[0]], ["pool"]), TEST)
    assert not verdict.passed
    assert verdict.accuracy == pytest.approx(2 / 3)


def test_models_are_compared_on_what_the_published_one_has_not_learnt(recipe: Recipe, served: Answers) -> None:
    """The new one is right about the first and the last; the present one about all, but it has learnt the second by heart."""
    right = [each.label for each in TEST]
    fair = judge(recipe, a_card("pool", "car"), served, Published(("pool", "car"), [TEST[0], TEST[2]], right[:2]), TEST)
    assert fair.passed, fair.reasons
    assert "on 2 test examples" in fair.reasons[0]
    unfair = judge(recipe, a_card("pool", "car"), served, Published(("pool", "car"), TEST, right), TEST)
    assert not unfair.passed

"""What a new model is held against: its own network, and the published model on examples that this one has not learnt from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.parts import a_card
from trainer import judging
from trainer.answers import Answers, prompt_hash
from trainer.dataset import Example
from trainer.judging import Published, judge, unlike_the_network
from trainer.recipe import Recipe, load_recipe

STARTER = Path(judging.__file__).parent / "recipes" / "starter.yaml"
PROMPTS = [[1, 10, 2], [1, 11, 2], [1, 12, 13, 2]]
SCORES = np.log([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(STARTER, {"data": tmp_path / "data.json", "output": tmp_path / "model"})


@pytest.fixture
def served() -> Answers:
    return Answers(
        SCORES, np.array([2, 2, 3]), np.zeros(3, dtype=np.bool_), np.array([prompt_hash(ids) for ids in PROMPTS], dtype=np.uint64)
    )


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


def test_models_are_compared_on_what_the_published_one_has_not_learnt(recipe: Recipe, served: Answers) -> None:
    """The new one is right about the first and the last; the present one about all, but it has learnt the second by heart."""
    test = [Example("pump hums", "pool"), Example("tyre is flat", "pool"), Example("water is green", "pool")]
    right = [each.label for each in test]
    kept = [test[0], test[2]]
    fair = judge(recipe, a_card("pool", "car"), served, Published(("pool", "car"), kept, right[:2]), test)
    assert fair.passed, fair.reasons
    assert "on 2 test examples" in fair.reasons[0]
    unfair = judge(recipe, a_card("pool", "car"), served, Published(("pool", "car"), test, right), test)
    assert not unfair.passed

"""A model that training cannot go on from is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer import build, publish, warm_start
from trainer.base import Base
from trainer.build import Adapter
from trainer.recipe import Recipe, RecipeError, load_recipe

STARTER = Path(warm_start.__file__).parent / "recipes" / "starter.yaml"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(STARTER, {"data": tmp_path / "data.json", "output": tmp_path / "model", "start_from": tmp_path / "present"})


def a_model_of(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Metadata and adapter of a model that was made by this recipe; returns the metadata, to be changed."""
    metadata = {
        "training": {"version": "abc123", **recipe.base.record(), "recipe": {"answers": recipe.answers}},
        "prompt": recipe.prompt.model_dump(),
        "labels": {"labels": [{"name": "pool", "code": "A"}]},
    }
    rank = recipe.training.lora_rank
    adapter = Adapter(
        {"blk.0.attn_q.weight": (np.zeros((rank, 4), np.float32), np.zeros((4, rank), np.float32))}, recipe.training.lora_alpha
    )
    monkeypatch.setattr(build, "read_metadata", lambda _: metadata)
    monkeypatch.setattr(build, "read_adapter", lambda _: adapter)
    monkeypatch.setattr(publish, "mend", lambda _: None)
    monkeypatch.setattr(Base, "path_recorded_in", lambda _: Path("base.gguf"))
    return metadata


def test_a_model_of_the_same_recipe_is_gone_on_from_with_its_codes(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    a_model_of(recipe, monkeypatch)
    start = warm_start.read(recipe)
    assert (start.version, start.codes) == ("abc123", {"pool": "A"})


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("training", {"base_file": "another.gguf"}, "another base or prompt"),
        ("prompt", {"suffix": " another"}, "another base or prompt"),
        ("training", {"recipe": {"answers": "names"}}, "answers with names, the recipe with codes: give --answers names"),
    ],
)
def test_a_model_of_another_base_prompt_or_kind_of_answers_is_refused(
    section: str, change: dict[str, Any], words: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = a_model_of(recipe, monkeypatch)
    metadata[section] |= change
    with pytest.raises(RecipeError, match=words):
        warm_start.read(recipe)


@pytest.mark.parametrize("setting", ["lora_rank", "lora_alpha"])
def test_an_adapter_of_another_shape_is_refused(setting: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    a_model_of(recipe, monkeypatch)
    training = recipe.training.model_copy(update={setting: 2 * getattr(recipe.training, setting)})
    with pytest.raises(RecipeError, match=f"{setting}.* they must be the same"):
        warm_start.read(recipe.model_copy(update={"training": training}))

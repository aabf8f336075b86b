"""A published model as the beginning of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer import build, publish
from trainer.base import Base
from trainer.build import Adapter
from trainer.recipe import Recipe, RecipeError, Training


@dataclass(frozen=True, slots=True)
class Start:
    """A model that training goes on from."""

    adapter: Adapter
    version: str
    codes: Mapping[str, str]
    """What it answers with, by label: it should go on doing so."""
    training: Mapping[str, Any]
    """What its metadata tell of its training."""


def read(recipe: Recipe) -> Start:
    """The model in the recipe's `start_from`.

    Raises:
        BuildError: there is none.
        BaseError: its base cannot be had, or is another than it was trained on.
        RecipeError: it has another base, prompt or kind of answers than the recipe, or an adapter of another shape.
    """
    directory = recipe.start_from
    assert directory is not None
    metadata = build.read_metadata(directory)
    publish.mend(directory)
    if Base.recorded_in(metadata["training"]).record() != recipe.base.record() or metadata["prompt"] != recipe.prompt.model_dump():
        raise RecipeError(f"the model in {directory} has another base or prompt than the recipe, so training cannot go on from it")
    Base.path_recorded_in(metadata["training"])
    answers = metadata["training"]["recipe"].get("answers", "codes")
    if answers != recipe.answers:
        raise RecipeError(f"the model in {directory} answers with {answers}, the recipe with {recipe.answers}: give --answers {answers}")
    adapter = build.read_adapter(directory / build.ADAPTER_FILE)
    _check(adapter, recipe.training)
    codes = {label["name"]: label["code"] for label in metadata["labels"]["labels"]}
    return Start(adapter, metadata["training"]["version"], codes, metadata["training"])


def _check(adapter: Adapter, training: Training) -> None:
    """Raises RecipeError unless the recipe trains updates of the adapter's rank and scale."""
    ranks = sorted({a.shape[0] for a, _ in adapter.updates.values()})
    if ranks != [training.lora_rank] or adapter.alpha != training.lora_alpha:
        raise RecipeError(
            f"the adapter to start from has lora_rank {', '.join(map(str, ranks))} and lora_alpha {adapter.alpha:g}, "
            f"the recipe {training.lora_rank} and {training.lora_alpha}: they must be the same"
        )

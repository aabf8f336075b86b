"""A published adapter as the beginning of a training: its factors, by the names and in the order that PEFT has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from trainer import build, publish
from trainer.build import Adapter
from trainer.recipe import Base, Recipe, RecipeError, Training


@dataclass(frozen=True, slots=True)
class Start:
    """A model that training goes on from."""

    adapter: Adapter
    version: str
    codes: Mapping[str, str]
    """What it answers with, by label: it should go on doing so."""


def read(recipe: Recipe) -> Start:
    """The model in the recipe's `start_from`.

    Raises:
        BuildError: there is none.
        RecipeError: it has another base or prompt than the recipe, or an adapter of another shape.
    """
    directory = recipe.start_from
    assert directory is not None
    metadata = build.read_metadata(directory)
    publish.mend(directory)
    if Base.recorded_in(metadata["training"]) != recipe.base or metadata["prompt"] != recipe.prompt.model_dump():
        raise RecipeError(f"the model in {directory} has another base or prompt than the recipe, so training cannot go on from it")
    adapter = build.read_adapter(directory / build.ADAPTER_FILE)
    _check(adapter, recipe.training)
    codes = {label["name"]: label["code"] for label in metadata["labels"]["labels"]}
    return Start(adapter, metadata["training"]["version"], codes)


def peft_weights(adapter: Adapter, config: Any) -> dict[str, npt.NDArray[np.float32]]:
    """The factors as PEFT names them; the other way of `sft.write_adapter`.

    Args:
        config: of the transformers model.

    Raises:
        RecipeError: the adapter changes other matrices than this model has.
    """
    names = gguf.get_tensor_name_map({"llama": gguf.MODEL_ARCH.LLAMA}[config.model_type], config.num_hidden_layers)
    modules = {
        f"{names.get_name(module)}.weight": module
        for layer in range(config.num_hidden_layers)
        for module in (
            *(f"model.layers.{layer}.self_attn.{name}_proj" for name in "qkvo"),
            *(f"model.layers.{layer}.mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
    }
    if set(modules) != set(adapter.updates):
        raise RecipeError("the adapter to start from changes other matrices than this base has: it belongs to another base")
    found = {}
    for name, (a, b) in adapter.updates.items():
        module = modules[name]
        if module.endswith(("q_proj", "k_proj")):
            b = _rotary_halves_apart(b, config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads)
        found[f"base_model.model.{module}.lora_A.weight"], found[f"base_model.model.{module}.lora_B.weight"] = a, b
    return found


def _check(adapter: Adapter, training: Training) -> None:
    """Raises RecipeError unless the recipe trains updates of the adapter's rank and scale."""
    ranks = sorted({a.shape[0] for a, _ in adapter.updates.values()})
    if ranks != [training.lora_rank] or adapter.alpha != training.lora_alpha:
        raise RecipeError(
            f"the adapter to start from has lora_rank {', '.join(map(str, ranks))} and lora_alpha {adapter.alpha:g}, "
            f"the recipe {training.lora_rank} and {training.lora_alpha}: they must be the same"
        )


def _rotary_halves_apart(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """As transformers has them; llama.cpp has them interleaved."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)

"""A LoRA in torch and llama.cpp's own adapter file (GGUF), which `trainer.build` merges with the base: there and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import get_peft_model_state_dict

from trainer.build import Adapter
from trainer.fast_gguf import gguf
from trainer.recipe import RecipeError

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
"""By transformers' name of the architecture."""
_INTERLEAVED = (gguf.MODEL_ARCH.LLAMA,)
"""Where llama.cpp stores the two rotary halves of each head's query and key rows interleaved (its converter's `permute`)."""


def write_adapter(model: Any, output: Path) -> None:
    """Write a PEFT model's LoRA weights in half precision, atomically.

    Raises:
        ValueError: the network is of an architecture, or has a module, for which no name in llama.cpp is known.
    """
    config = model.config
    architecture = _architecture(config)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    partial = output.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(model.peft_config["default"].lora_alpha))
    for key, tensor in sorted(get_peft_model_state_dict(model).items()):
        module, kind = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        name = names.get_name(module)
        if name is None:
            raise ValueError(f"llama.cpp has no name for the module {module}")
        values = tensor.detach().to(torch.float32).cpu().numpy()
        if kind == "B" and (heads := _interleaved_heads(module, config)):
            values = _interleave_rotary_halves(values, heads)
        writer.add_tensor(f"{name}.weight.lora_{kind.lower()}", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, output)


def peft_weights(adapter: Adapter, config: Any) -> dict[str, npt.NDArray[np.float32]]:
    """The factors as PEFT names them; the other way of `write_adapter`.

    Args:
        config: of the transformers model.

    Raises:
        RecipeError: the adapter changes other matrices than this network has.
        ValueError: the network is of an architecture for which no name in llama.cpp is known.
    """
    names = gguf.get_tensor_name_map(_architecture(config), config.num_hidden_layers)
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
        if heads := _interleaved_heads(module, config):
            b = _rotary_halves_apart(b, heads)
        found[f"base_model.model.{module}.lora_A.weight"], found[f"base_model.model.{module}.lora_B.weight"] = a, b
    return found


def _architecture(config: Any) -> gguf.MODEL_ARCH:
    if config.model_type not in _ARCHITECTURES:
        raise ValueError(f"a {config.model_type} network can have no adapter, only {', '.join(_ARCHITECTURES)}")
    return _ARCHITECTURES[config.model_type]


def _interleaved_heads(module: str, config: Any) -> int | None:
    """How many heads the rows of the module belong to, if llama.cpp interleaves them."""
    if _architecture(config) not in _INTERLEAVED:
        return None
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.rsplit(".", 1)[-1])


def _interleave_rotary_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _rotary_halves_apart(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)

"""A trained LoRA in torch -> llama.cpp's own adapter file (GGUF), which `trainer.build` merges with the base."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from peft import get_peft_model_state_dict

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
    if config.model_type not in _ARCHITECTURES:
        raise ValueError(f"no adapter can be written for a {config.model_type} network, only for {', '.join(_ARCHITECTURES)}")
    architecture = _ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
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
        projection = module.rsplit(".", 1)[-1]
        if kind == "B" and architecture in _INTERLEAVED and projection in heads:
            values = _interleave_rotary_halves(values, heads[projection])
        writer.add_tensor(f"{name}.weight.lora_{kind.lower()}", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, output)


def _interleave_rotary_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)

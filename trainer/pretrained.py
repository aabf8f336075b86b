"""The base model as a network in torch that learns a LoRA adapter: by Unsloth on CUDA where it is installed, else by PEFT alone."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.base import cache_directory
from trainer.network import from_gguf, hardware_precision
from trainer.recipe import Training

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MAX_TOKENS = 2048
"""Unsloth wants to know; prompts are shorter."""


def with_adapter(gguf: Path, checkpoint: Path | None, settings: Training) -> tuple[Any, Any]:
    """The PEFT model, whose adapter changes nothing yet, and the tokenizer.

    Args:
        gguf: the base that the adapter will be merged with.
        checkpoint: the directory that `gguf` was converted from, if it was; its weights are read instead.
    """
    if uses_unsloth():
        return _by_unsloth(gguf, checkpoint, settings)
    network, tokenizer = _plain(gguf, checkpoint)
    return get_peft_model(network, LoraConfig(**_lora(settings), task_type="CAUSAL_LM")), tokenizer


def uses_unsloth() -> bool:
    """Whether Unsloth is installed and can run: on CUDA, or where UNSLOTH_ALLOW_CPU=1 says that it is to be tried without."""
    wanted = torch.cuda.is_available() or os.environ.get("UNSLOTH_ALLOW_CPU") == "1"
    return wanted and importlib.util.find_spec("unsloth") is not None


def precision() -> torch.dtype:
    """What training multiplies in: the hardware's, and bfloat16 for Unsloth."""
    return torch.bfloat16 if uses_unsloth() else hardware_precision()


def _plain(gguf: Path, checkpoint: Path | None) -> tuple[Any, Any]:
    if checkpoint is None:
        network = from_gguf(gguf, precision(), attn_implementation="eager")
        _forget_quantisation(network)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    else:
        network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=precision(), attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return network, tokenizer


def _by_unsloth(gguf: Path, checkpoint: Path | None, settings: Training) -> tuple[Any, Any]:
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_directory() / "unsloth"))  # else it writes programs where one stands
    import unsloth  # changes classes of transformers and trl when it is imported, so only where it is used

    with tempfile.TemporaryDirectory(prefix="pointsman-") as work:
        if checkpoint is None:
            checkpoint = Path(work)
            network, tokenizer = _plain(gguf, None)
            network.save_pretrained(checkpoint)
            tokenizer.save_pretrained(checkpoint)
        network, tokenizer = unsloth.FastModel.from_pretrained(
            str(checkpoint),
            max_seq_length=MAX_TOKENS,
            dtype=precision(),
            load_in_4bit=torch.cuda.is_available(),
            use_gradient_checkpointing=False,
            local_files_only=True,
        )
    adapted = unsloth.FastModel.get_peft_model(
        network, **_lora(settings), use_gradient_checkpointing=False, random_state=settings.seed, finetune_vision_layers=False
    )
    return adapted, tokenizer


def _lora(settings: Training) -> dict[str, Any]:
    return {
        "r": settings.lora_rank,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
        "target_modules": TARGETS,
    }


def _forget_quantisation(network: Any) -> None:
    """The weights were de-quantised into plain torch tensors; transformers still refuses to train them."""
    network.is_quantized = False
    network.hf_quantizer = None
    network.config.__dict__.pop("quantization_config", None)

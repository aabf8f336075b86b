"""Trains a tiny Qwen3 through Unsloth on the CPU: Unsloth changes classes of transformers for the whole process.

    python -m tests.integration.unsloth_in_its_process CHECKPOINT OUTPUT

Prints what the trained network answers as JSON; OUTPUT/adapter.gguf holds what it learnt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import trainer
from trainer import pretrained, sft
from trainer.base import Base
from trainer.recipe import Training, load_recipe

RECIPE = Path(trainer.__path__[0]) / "recipes" / "household-smollm2.yaml"
CODES = (65, 66, 67, 68)


def examples(count: int) -> list[sft.TokenExample]:
    """Byte tokens: the code depends on the first of them."""
    rest = [[40 + (row * step) % 20 for step in range(3 + row % 5)] for row in range(count)]
    return [sft.TokenExample([10 + row % 4, *rest[row]], CODES[row % 4]) for row in range(count)]


def stand_in_for_a_gpu() -> None:
    """Unsloth prints what the GPU is before it loads a model, also where UNSLOTH_ALLOW_CPU=1 says that there is none."""
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(name="no GPU", total_memory=2**33, major=8, minor=0)  # type: ignore[assignment]


def main(checkpoint: Path, output: Path) -> None:
    recipe = load_recipe(RECIPE).model_copy(
        update={
            "base": Base(name="tiny", licence="none", source=str(checkpoint)),
            "training": Training(epochs=8, batch_size=8, learning_rate=2e-2, lora_dropout=0.0, token_dropout=0.2),
        }
    )
    assert pretrained.uses_unsloth()
    stand_in_for_a_gpu()
    log = sft.train_adapter(recipe, Path("no.gguf"), examples(32), examples(16), CODES, output / "adapter.gguf", lambda *_: None)
    print(json.dumps({"steps": log.steps, "losses": log.eval_losses, "answers": log.validation_log_probabilities.tolist()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

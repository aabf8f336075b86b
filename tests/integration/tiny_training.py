"""Trains a tiny Qwen3 in a process of its own: Unsloth changes classes of transformers for good, and several processes train at once.

    python -m tests.integration.tiny_training CHECKPOINT OUTPUT

OUTPUT/adapter.gguf holds what it learnt, OUTPUT/told-RANK.json what each process has to tell.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import trainer
from trainer import pretrained, sft
from trainer.base import Base
from trainer.recipe import Recipe, Training, load_recipe
from trainer.watch import TokenExample

RECIPE = Path(trainer.__path__[0]) / "recipes" / "household-smollm2.yaml"
CODES = (65, 66, 67, 68)
NO_GGUF = Path("no.gguf")
"""The checkpoint is what is read."""


def examples(count: int) -> list[TokenExample]:
    """Byte tokens: the code depends on the first of them."""
    rest = [[40 + (row * step) % 20 for step in range(3 + row % 5)] for row in range(count)]
    return [TokenExample([10 + row % 4, *rest[row]], [CODES[row % 4]]) for row in range(count)]


def stand_in_for_a_gpu() -> None:
    """Unsloth prints what the GPU is before it loads a model, also where UNSLOTH_ALLOW_CPU=1 says that there is none."""
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(name="no GPU", total_memory=2**33, major=8, minor=0)


def sees_hidden_tokens(recipe: Recipe) -> bool:
    """Whether a token that the attention mask hides changes what a network in training computes."""
    network, _ = pretrained.with_adapter(NO_GGUF, recipe.base.checkpoint(), recipe.training)
    causal = network.train().get_base_model()
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    with torch.no_grad():
        answers = [causal.model(input_ids=torch.tensor([[10, 40, x, 50, 58]]), attention_mask=mask).last_hidden_state for x in (41, 59)]
    return not torch.equal(answers[0][:, -1], answers[1][:, -1])


def main(checkpoint: Path, output: Path) -> None:
    recipe = load_recipe(RECIPE).model_copy(
        update={
            "base": Base(name="tiny", licence="none", source=str(checkpoint)),
            "training": Training(epochs=6, batch_size=8, learning_rate=1e-2, lora_dropout=0.0, token_dropout=0.2, patience=0),
        }
    )
    if pretrained.uses_unsloth():
        stand_in_for_a_gpu()
    hidden_tokens_count = sees_hidden_tokens(recipe)
    log = sft.train_adapter(
        recipe, NO_GGUF, examples(32), examples(16), [[code] for code in CODES], output / "adapter.gguf", lambda *_: None
    )
    told = {
        "unsloth": "unsloth" in sys.modules,
        "sees_hidden_tokens": hidden_tokens_count,
        "steps": log.steps,
        "losses": [evaluation.loss for evaluation in log.evaluations],
        "answers": log.validation_log_probabilities.tolist(),
    }
    (output / f"told-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

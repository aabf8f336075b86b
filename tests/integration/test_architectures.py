"""What a LoRA makes of a network in torch, its GGUF answers too: checkpoint -> llama.cpp's converter -> adapter -> build -> worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from tests.integration.parts import metadata
from tests.tiny_checkpoints import checkpoint, write_small_sentencepiece
from trainer import build, parity
from trainer.adapter import write_adapter
from trainer.base import Base
from trainer.network import log_probabilities
from trainer.pretrained import TARGETS
from worker.classifier import Classifier
from worker.classifier.calibration import Floats

CODES = ("A", "B", "C", "D")
TEXTS = ("the pool pump hums", "a fence post is broken", "my car drips", "one light hums", "a pump", "the post drips, my car is broken")
NOISE = 0.02
"""Weights are merged in bfloat16, and the engine's activations are less exact than the float32 here."""


@dataclass(frozen=True, slots=True)
class Merged:
    """One network with a random LoRA: its answers in torch, and those of the GGUFs with the adapter and without."""

    torch: Floats
    served: Floats
    base: Floats
    adapter: build.Adapter
    model: Path


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "gemma3"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Merged:
    directory = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POINTSMAN_CACHE_DIR", str(directory / "cache"))
        source = Base(name="tiny", licence="none", source=str(checkpoint(request.param, directory / "tiny", write_small_sentencepiece)))
        base = source.path()
    network = with_random_lora(source)
    adapter_file, model = directory / build.ADAPTER_FILE, directory / "model.gguf"
    write_adapter(network, adapter_file)
    adapter = build.read_adapter(adapter_file)
    described = metadata(CODES, "", ":")
    answers = {}
    for name, update in (("served", adapter), ("base", None)):
        build.build(base, update, described, model if update else directory / "base.gguf")
        classifier = Classifier.open(model if update else directory / "base.gguf")
        queries = [classifier.encode(text) for text in TEXTS]
        answers[name] = classifier.log_probabilities(queries)
        prompts = [[*classifier.prefix_ids, *query.ids] for query in queries]
        codes = [code for (code,) in classifier.code_ids]
        classifier.close()
    return Merged(log_probabilities(network.get_base_model(), prompts, codes), answers["served"], answers["base"], adapter, model)


def with_random_lora(base: Base) -> Any:
    network = transformers.AutoModelForCausalLM.from_pretrained(base.checkpoint(), dtype=torch.float32)
    wrapped = peft.get_peft_model(network, peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for name, weights in wrapped.named_parameters():
            if "lora_" in name:
                weights.copy_(torch.randn_like(weights).half() * 0.15)
    return wrapped


def test_the_gguf_answers_as_the_network_does(merged: Merged) -> None:
    found = parity.compare("torch", merged.torch, merged.served)
    assert found.same_label == 1
    assert found.largest_difference < NOISE, found


def test_the_adapter_is_what_makes_the_answer(merged: Merged) -> None:
    assert parity.compare("torch", merged.torch, merged.base).largest_difference > 4 * NOISE


def test_every_projection_of_every_layer_is_adapted(merged: Merged) -> None:
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(merged.adapter.updates) == {f"blk.{layer}.{name}.weight" for layer in (0, 1) for name in names}
    assert np.isclose(merged.adapter.alpha, 8)

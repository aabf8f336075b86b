"""Training as on a GPU: through Unsloth, and in several processes. On CPUs: what is computed is tested, not how fast."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.integration.tiny_training import CODES, examples
from tests.support import ROOT
from tests.tiny_checkpoints import checkpoint, write_qwens_own, write_small_bpe
from trainer import parity
from trainer.build import Adapter, read_adapter
from trainer.network import log_probabilities
from trainer.recipe import Gate

PROCESSES = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("qwen3", tmp_path_factory.mktemp("base"), write_small_bpe)


def train(base: Path, output: Path, *launcher: str, **environment: str) -> dict[str, Any]:
    """Train in a process of its own; what the first one has to tell."""
    line: list[str | Path] = [sys.executable, *launcher, "-m", "tests.integration.tiny_training", base, output]
    done = subprocess.run(line, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return told(output, 0)


def told(output: Path, process: int) -> dict[str, Any]:
    return dict(json.loads((output / f"told-{process}.json").read_text()))


def merged_answers(base: Path, adapter: Path | None) -> Any:
    """What the checkpoint answers with the adapter file added to its weights."""
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        _add(read_adapter(adapter), network)
    return log_probabilities(network, [example.prompt_ids for example in examples(16)], CODES)


def _add(updates: Adapter, network: Any) -> None:
    with torch.no_grad():
        for layer, block in enumerate(network.model.layers):
            attention, mlp = block.self_attn, block.mlp
            modules = {"attn_q": attention.q_proj, "attn_k": attention.k_proj, "attn_v": attention.v_proj, "attn_output": attention.o_proj}
            modules |= {"ffn_gate": mlp.gate_proj, "ffn_up": mlp.up_proj, "ffn_down": mlp.down_proj}
            for name, module in modules.items():
                module.weight += torch.from_numpy(updates.delta(f"blk.{layer}.{name}.weight"))


def assert_learnt(found: dict[str, Any], base: Path, adapter: Path) -> None:
    """The file holds the network that was trained, and the training got somewhere."""
    assert not found["sees_hidden_tokens"], "else token_dropout does nothing"
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    answers = np.array(found["answers"])
    merged = parity.compare("merged", merged_answers(base, adapter), answers)
    assert parity.complaint(merged, Gate(least_agreement=0.9)) is None, merged
    assert parity.compare("untrained", merged_answers(base, None), answers).mean_difference > 4 * merged.mean_difference


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed: see docs/training.md, On a GPU")
def test_unsloth_trains_the_network_that_the_adapter_makes_of_the_base(tmp_path: Path) -> None:
    base = checkpoint("qwen3", tmp_path / "base", write_qwens_own)
    found = train(base, tmp_path, UNSLOTH_ALLOW_CPU="1", UNSLOTH_COMPILE_DISABLE="1", TORCHDYNAMO_DISABLE="1")
    assert found["unsloth"]
    assert found["steps"] == 24
    assert_learnt(found, base, tmp_path / "adapter.gguf")


def test_several_processes_train_one_network_with_the_recipes_batches_and_one_writes(base: Path, tmp_path: Path) -> None:
    found = train(base, tmp_path, *PROCESSES, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    assert not found["unsloth"]
    assert found["steps"] == 24, "of 32 examples in batches of 8, six times"
    assert np.allclose(found["answers"], told(tmp_path, 1)["answers"], atol=1e-5), "all have the same weights in the end"
    assert_learnt(found, base, tmp_path / "adapter.gguf")

"""Training through Unsloth, where it is installed. On the CPU, which it is not made for: what it computes is tested, not how fast."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.integration.unsloth_in_its_process import CODES, examples
from tests.support import ROOT
from tests.tiny_checkpoints import checkpoint, write_small_bpe
from trainer import parity
from trainer.build import read_adapter
from trainer.network import log_probabilities
from trainer.recipe import Gate

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed: see docs/training.md, On a GPU"
)


def test_what_unsloth_trains_is_the_network_that_the_adapter_makes_of_the_base(tmp_path: Path) -> None:
    base = checkpoint("qwen3", tmp_path / "base", write_small_bpe)
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.unsloth_in_its_process", base, tmp_path],
        env=os.environ | {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["steps"] == 32
    assert told["losses"][-1][1] < 0.7 * told["losses"][0][1], "it learns"

    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapter = read_adapter(tmp_path / "adapter.gguf")
    prompts = [example.prompt_ids for example in examples(16)]
    untrained = log_probabilities(network, prompts, CODES)
    with torch.no_grad():
        for layer, block in enumerate(network.model.layers):
            parts = {"attn_q": block.self_attn.q_proj, "attn_k": block.self_attn.k_proj, "attn_v": block.self_attn.v_proj}
            parts |= {"attn_output": block.self_attn.o_proj, "ffn_gate": block.mlp.gate_proj}
            parts |= {"ffn_up": block.mlp.up_proj, "ffn_down": block.mlp.down_proj}
            for name, module in parts.items():
                module.weight += torch.from_numpy(adapter.delta(f"blk.{layer}.{name}.weight"))
    merged = parity.compare("merged", log_probabilities(network, prompts, CODES), np.array(told["answers"]))
    assert parity.complaint(merged, Gate()) is None, merged
    assert parity.compare("untrained", untrained, np.array(told["answers"])).mean_difference > 5 * merged.mean_difference

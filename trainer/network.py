"""A language model in torch, asked the way the engine asks: token ids in, log-probabilities of the codes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from trainer import fast_gguf  # noqa: F401  (transformers reads by it)

_BATCH = 32


def from_gguf(path: Path, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """The language model of a GGUF in torch, its weights unpacked, in `hardware_precision` unless `dtype` is given."""
    unpacked = GgufConfig(gguf_file=path.name, dequantize=True)
    dtype = dtype or hardware_precision()
    return AutoModelForCausalLM.from_pretrained(path.parent, quantization_config=unpacked, gguf_file=path.name, dtype=dtype, **options)


def hardware_precision() -> torch.dtype:
    """bfloat16 where the hardware multiplies it; elsewhere that is emulated, and several times slower than float32."""
    if torch.cuda.is_available():
        return torch.bfloat16
    cpu = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(cpu.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


def log_probabilities(
    network: Any, prompts: Sequence[Sequence[int]], code_ids: Sequence[int], progress: Callable[[int], None] = lambda _: None
) -> npt.NDArray[np.float64]:
    """What a causal language model answers, shape (prompts, codes): one forward pass per batch of like lengths."""
    found = np.empty((len(prompts), len(code_ids)))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        lengths = torch.tensor([len(prompts[row]) for row in rows])
        ids = torch.zeros((len(rows), int(lengths.max())), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(prompts[row])] = torch.tensor(prompts[row])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        with torch.inference_mode():
            hidden = network.model(input_ids=ids.to(network.device), attention_mask=mask.to(network.device)).last_hidden_state
            logits = network.lm_head(hidden[torch.arange(len(rows)), lengths - 1])[:, list(code_ids)]
        found[rows] = logits.float().log_softmax(dim=1).cpu().numpy()
        progress(start + len(rows))
    return found


def answer_log_probabilities(
    network: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], progress: Callable[[int], None] = lambda _: None
) -> npt.NDArray[np.float64]:
    """The same for answers of one or several tokens, shape (prompts, answers): renormalised wherever answers part, as the engine does."""
    found = np.zeros((len(prompts), len(answers)))

    def descend(path: tuple[int, ...], beyond: list[int]) -> None:
        """Add what is decided after `path`, with which all answers in `beyond` begin."""
        following: dict[int, list[int]] = {}
        for answer in beyond:
            token = answers[answer][len(path)] if len(path) < len(answers[answer]) else network.config.eos_token_id
            following.setdefault(token, []).append(answer)
        if len(following) > 1:
            scores = log_probabilities(network, [[*prompt, *path] for prompt in prompts], list(following), progress)
            for column, some in enumerate(following.values()):
                found[:, some] += scores[:, column, None]
        for token, some in following.items():
            if len(some) > 1:
                descend((*path, token), some)

    descend((), list(range(len(answers))))
    return found

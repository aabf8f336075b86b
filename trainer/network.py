"""A language model in torch, asked the way the engine asks: token ids in, log-probabilities of the codes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_BATCH = 32


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

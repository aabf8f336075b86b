"""In which precision torch computes."""

from __future__ import annotations

import pytest
import torch

from trainer.network import hardware_precision


@pytest.mark.parametrize(
    ("gpu", "cpu", "precision"),
    [
        (False, {"avx2": True}, torch.float32),
        (False, {"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        (False, {"avx512_bf16": True}, torch.bfloat16),
        (False, {"amx_bf16": True}, torch.bfloat16),
        (False, {"bf16": True}, torch.bfloat16),
        (True, {}, torch.bfloat16),
    ],
)
def test_bfloat16_is_computed_with_where_the_hardware_multiplies_it(
    gpu: bool, cpu: dict[str, bool], precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert hardware_precision() == precision

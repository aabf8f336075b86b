"""What llama.cpp is asked for, by the device and the cores that this process has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import llama_cpp
import pytest

from worker.classifier import EngineOptions, engine
from worker.classifier.engine import backend, call_tokens, context_params, layers_on_gpu


def params(*, on_gpu: bool, **options: Any) -> Any:
    return context_params(SimpleNamespace(on_gpu=on_gpu), EngineOptions(**options))  # type: ignore[arg-type]


def test_as_many_threads_as_this_process_may_use_unless_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "available_cores", lambda: 5)
    assert (params(on_gpu=False).n_threads, params(on_gpu=False).n_threads_batch) == (5, 5)
    assert params(on_gpu=False, threads=3).n_threads_batch == 3


def test_the_kv_cache_is_exact_on_a_cpu_and_small_on_a_gpu() -> None:
    assert params(on_gpu=False).type_k == params(on_gpu=False).type_v == llama_cpp.GGML_TYPE_F32
    assert params(on_gpu=True).type_k == params(on_gpu=True).type_v == llama_cpp.GGML_TYPE_F16


def test_nothing_is_sent_to_a_gpu_where_no_layer_is() -> None:
    assert not params(on_gpu=False).op_offload
    assert params(on_gpu=True).op_offload


def test_a_gpu_is_given_more_at_a_time_unless_it_is_set() -> None:
    assert call_tokens(EngineOptions(), on_gpu=False) == 255
    assert call_tokens(EngineOptions(), on_gpu=True) == 2048
    assert call_tokens(EngineOptions(batch_tokens=511), on_gpu=True) == 511


@pytest.mark.parametrize(
    ("knows", "setting", "layers", "words"),
    [
        (True, -1, -1, "GPU, all layers"),
        (True, 7, 7, "GPU, 7 layers"),
        (True, 0, 0, "CPU (POINTSMAN_N_GPU_LAYERS=0"),
        (False, -1, 0, "knows no GPU"),
        (False, 7, 0, "knows no GPU"),
    ],
)
def test_layers_go_to_a_gpu_where_the_build_finds_one(
    knows: bool, setting: int, layers: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "knows_gpu", lambda: knows)
    assert layers_on_gpu(setting) == layers
    assert words in backend(setting)

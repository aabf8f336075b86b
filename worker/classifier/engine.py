"""llama.cpp as a classifier: batched, prefix-cached, trie-constrained decoding.

One `llama_decode` call answers many queries. The prompt's prefix is computed once, and its KV cells belong
to every sequence. A query adds its own tokens and the suffix; where labels share beginnings, the tokens of
the trie follow as further sequences of the same batch, sharing the query's cells. No text is ever generated:
the logits at each choice are read for the allowed tokens alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from worker.classifier.calibration import Floats
from worker.classifier.grammar import END, Trie
from worker.classifier.model_file import LoadedModel

MAX_SEQUENCES = 256
"""llama.cpp's own limit (LLAMA_MAX_SEQ)."""


class EngineError(Exception):
    """llama.cpp refused to compute a batch."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much llama.cpp computes at a time, and with how many threads."""

    batch_tokens: int = 2048
    """Query tokens in one call; the KV cache is sized for them."""
    micro_batch_tokens: int = 512
    sequences: int = 64
    """llama.cpp sequences in one call: queries times branches of the trie."""
    threads: int | None = None


def available_cores() -> int:
    """Cores this process may use: its CPU affinity, cut by the cgroup's quota (containers)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def system_info() -> str:
    """The CPU features and backends that this build of llama.cpp uses."""
    return str(llama_cpp.llama_print_system_info().decode(errors="replace")).strip()


class Engine:
    """One llama.cpp context over a loaded model. Not thread-safe: one thread owns it."""

    def __init__(self, model: LoadedModel, prefix_ids: Sequence[int], trie: Trie, options: EngineOptions) -> None:
        self._model, self._trie, self._options = model, trie, options
        n_sequences = min(MAX_SEQUENCES, max(options.sequences, trie.n_branches))
        self._queries_per_call = n_sequences // trie.n_branches
        self._prefix_length = len(prefix_ids)
        self._ends = np.asarray(model.end_tokens, dtype=np.int64)
        extra = self._queries_per_call * len(trie.steps)
        self._capacity = options.batch_tokens + extra

        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self._prefix_length + self._capacity + 32
        params.n_batch = max(self._capacity, self._prefix_length)
        params.n_ubatch = min(params.n_batch, options.micro_batch_tokens)
        params.n_seq_max = n_sequences
        params.n_threads = params.n_threads_batch = options.threads or available_cores()
        params.kv_unified = True
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        self._context: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._context:
            raise EngineError(f"llama.cpp made no context for {model.path}: too little memory?")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = _Batch(max(self._capacity, self._prefix_length), trie.n_branches)
        self._share_prefix(prefix_ids, n_sequences)

    def close(self) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None

    def log_probabilities(self, queries: Sequence[Sequence[int]]) -> Floats:
        """Exact constrained log-probabilities of every label for every query; shape (queries, labels).

        Args:
            queries: token ids of each query with its suffix, at most `batch_tokens` each.

        Raises:
            EngineError: llama.cpp could not compute a batch.
        """
        n_labels = sum(len(labels) for labels in self._trie.choices[0].labels)
        scores = np.empty((len(queries), n_labels))
        start = 0
        while start < len(queries):
            stop, tokens = start, 0
            while (
                stop < len(queries) and stop - start < self._queries_per_call and tokens + len(queries[stop]) <= self._options.batch_tokens
            ):
                tokens += len(queries[stop])
                stop += 1
            if stop == start:
                raise EngineError(f"a query of {len(queries[start])} tokens exceeds the batch of {self._options.batch_tokens}")
            scores[start:stop] = self._score(queries[start:stop], n_labels)
            start = stop
        return scores

    def _score(self, queries: Sequence[Sequence[int]], n_labels: int) -> Floats:
        try:
            choices = self._decode(queries)
        finally:
            llama_cpp.llama_memory_seq_rm(self._memory, -1, self._prefix_length, -1)
        scores = np.zeros((len(queries), n_labels))
        for index, choice in enumerate(self._trie.choices):
            logits = self._choice_logits(choices[:, index], choice.tokens)
            logits -= logits.max(axis=1, keepdims=True)
            log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            for column, labels in enumerate(choice.labels):
                scores[:, labels] += log_probs[:, column, None]
        return scores

    def _choice_logits(self, rows: npt.NDArray[np.float32], tokens: tuple[int, ...]) -> Floats:
        """Logits of the allowed tokens only; where the answer may end, every end token counts."""
        columns = np.asarray(tokens, dtype=np.int64)
        logits = rows[:, np.maximum(columns, 0)].astype(np.float64)
        if END in tokens:
            ends = rows[:, self._ends].astype(np.float64)
            peak = ends.max(axis=1)
            logits[:, tokens.index(END)] = peak + np.log(np.exp(ends - peak[:, None]).sum(axis=1))
        return logits

    def _decode(self, queries: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """One llama.cpp call. Returns a view on its logits, shape (queries, choices, vocabulary)."""
        batch, trie, width = self._batch, self._trie, self._trie.n_branches
        position = 0
        for number, ids in enumerate(queries):
            end = position + len(ids)
            batch.tokens[position:end] = ids
            batch.positions[position:end] = np.arange(self._prefix_length, self._prefix_length + len(ids))
            batch.sequences[position:end] = np.arange(number * width, (number + 1) * width)
            batch.n_sequences[position:end] = width
            batch.outputs[position:end] = 0
            batch.outputs[end - 1] = 1
            for step in trie.steps:
                batch.tokens[end] = step.token
                batch.positions[end] = self._prefix_length + len(ids) + step.depth
                batch.sequences[end, : len(step.branches)] = np.add(step.branches, number * width)
                batch.n_sequences[end] = len(step.branches)
                batch.outputs[end] = step.choice is not None
                end += 1
            position = end
        self._run(position)
        rows = len(queries) * len(trie.choices)
        pointer = llama_cpp.llama_get_logits(self._context)
        view = np.ctypeslib.as_array(pointer, shape=(rows, self._model.n_tokens))
        return view.reshape(len(queries), len(trie.choices), -1)

    def _share_prefix(self, ids: Sequence[int], n_sequences: int) -> None:
        if not ids:
            return
        batch = self._batch
        batch.tokens[: len(ids)] = ids
        batch.positions[: len(ids)] = np.arange(len(ids))
        batch.sequences[: len(ids), 0] = 0
        batch.n_sequences[: len(ids)] = 1
        batch.outputs[: len(ids)] = 0
        batch.outputs[len(ids) - 1] = 1
        self._run(len(ids))
        for sequence in range(1, n_sequences):
            llama_cpp.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)

    def _run(self, n_tokens: int) -> None:
        self._batch.struct.n_tokens = n_tokens
        status = llama_cpp.llama_decode(self._context, self._batch.struct)
        if status != 0:
            raise EngineError(f"llama_decode failed with status {status} on {n_tokens} tokens")


class _Batch:
    """A `llama_batch` whose arrays are numpy's, so that filling one needs no Python loop per token."""

    def __init__(self, capacity: int, width: int) -> None:
        self.tokens = np.zeros(capacity, dtype=np.int32)
        self.positions = np.zeros(capacity, dtype=np.int32)
        self.n_sequences = np.zeros(capacity, dtype=np.int32)
        self.sequences = np.zeros((capacity, width), dtype=np.int32)
        self.outputs = np.zeros(capacity, dtype=np.int8)
        row_addresses = self.sequences.ctypes.data + np.arange(capacity, dtype=np.uint64) * np.uint64(width * 4)
        self._rows = np.ascontiguousarray(row_addresses)
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=self.tokens.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token)),
            embd=None,
            pos=self.positions.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_pos)),
            n_seq_id=self.n_sequences.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._rows.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(llama_cpp.llama_seq_id))),
            logits=self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

"""llama.cpp as a classifier: batched, prefix-cached, trie-constrained decoding.

One `llama_decode` call answers many queries, and computes nothing twice: the prompt's prefix once per process,
a beginning that queries of a call share once per call (`batch`), one that comes again and again not at all
(`prefix_cache`). llama.cpp lets one KV cell belong to many sequences, which is all that this takes. Where
labels are several tokens, those of the trie follow as further sequences that share the query's cells. No
text is ever generated: the logits at each choice are read for the allowed tokens alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from worker.classifier.batch import PAD, Ints, Plan, plan, shared_with_previous, token_matrix
from worker.classifier.calibration import Floats
from worker.classifier.cores import available_cores
from worker.classifier.grammar import END, Trie, build_trie
from worker.classifier.kernels import cpu_kernels
from worker.classifier.model_file import LoadedModel, knows_gpu, start_llama_cpp
from worker.classifier.prefix_cache import PrefixCache

MAX_SEQUENCES = 256
"""llama.cpp's own limit (LLAMA_MAX_SEQ)."""
_TILE = 64
"""llama.cpp's attention on a CPU goes through the KV cache in tiles of so many cells (GGML_FA_TILE_KV), and skips a tile
that no query of a tile sees. So what all queries may share lies in as few tiles as possible: the first."""
_CPU_CALL, _GPU_CALL = 255, 2048
_NO_STEPS = build_trie([[0], [1]])
"""One sequence a row: the layout of text that no label follows."""
_SORTED_AT_ONCE = 4096
"""Queries put in order at a time; bounds the memory of a long list."""


class EngineError(Exception):
    """llama.cpp refused to compute a batch."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much llama.cpp computes at a time, and with how many threads."""

    batch_tokens: int | None = None
    """Query tokens in one call, unless one query alone is longer. None: what suits the device, see `call_tokens`."""
    micro_batch_tokens: int = 512
    sequences: int = 64
    """llama.cpp sequences in one call: queries times branches of the trie."""
    threads: int | None = None
    hold_prefixes: bool = True
    """Whether common beginnings of queries stay in the KV cache."""


def call_tokens(options: EngineOptions, *, on_gpu: bool) -> int:
    """Query tokens in one call: as set, else by the device.

    llama.cpp's attention looks at its cache in steps of 256 cells; with a prefix of one token, 255 fill one step, and larger calls are
    slower on a CPU. A GPU has a width to fill, for which llama.cpp's own default is taken.
    """
    return options.batch_tokens or (_GPU_CALL if on_gpu else _CPU_CALL)


def system_info() -> str:
    """The kernels and CPU features that this build of llama.cpp uses."""
    start_llama_cpp()
    kernels = cpu_kernels()
    chosen = f"kernels for {kernels}; " if kernels else ""
    return chosen + str(llama_cpp.llama_print_system_info().decode(errors="replace")).strip()


def layers_on_gpu(n_gpu_layers: int) -> int:
    """What the setting comes to in this build of llama.cpp: 0 where it knows no GPU, -1 for all."""
    return n_gpu_layers if knows_gpu() else 0


def backend(n_gpu_layers: int) -> str:
    """Where llama.cpp computes with this setting, in words."""
    if not knows_gpu():
        return "CPU (this build of llama.cpp knows no GPU)"
    if n_gpu_layers == 0:
        return "CPU (POINTSMAN_N_GPU_LAYERS=0; this build of llama.cpp could use a GPU)"
    return f"GPU, {'all' if n_gpu_layers < 0 else n_gpu_layers} layers"


def context_params(model: LoadedModel, options: EngineOptions) -> Any:
    """What suits classification with this model, but for sizes: `llama_context_params`."""
    params = llama_cpp.llama_context_default_params()
    params.n_threads = params.n_threads_batch = options.threads or available_cores()
    # The KV cache is small, and a CPU converts half precision back at every use of it, which takes a tenth of all time.
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F16 if model.on_gpu else llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.op_offload = model.on_gpu  # or a build that knows a GPU sends it large products even where no layer shall be there
    params.no_perf = True
    return params


class Engine:
    """One llama.cpp context over a loaded model. Not thread-safe: one thread owns it."""

    def __init__(self, model: LoadedModel, prefix_ids: Sequence[int], trie: Trie, longest_query: int, options: EngineOptions) -> None:
        self._model, self._trie = model, trie
        self.tokens_computed = 0
        """Tokens that llama.cpp was given so far, the prompt's prefix included."""
        if trie.n_branches > MAX_SEQUENCES:
            raise EngineError(f"the labels part in {trie.n_branches} places, llama.cpp follows {MAX_SEQUENCES} at once: answer with codes")
        n_sequences = min(MAX_SEQUENCES, max(options.sequences, trie.n_branches))
        self._prefix_length = len(prefix_ids)
        held_cells = -(len(prefix_ids) + _TILE // 2) % _TILE + _TILE // 2 if options.hold_prefixes else 0
        held_cells = min(held_cells, MAX_SEQUENCES - n_sequences)
        self._first_holder = n_sequences
        self._cache = PrefixCache(held_cells, len(prefix_ids))
        self._queries_per_call = n_sequences // trie.n_branches
        self._ends = np.asarray(model.end_tokens, dtype=np.int64)
        self._longest_query = longest_query
        self._call_tokens = call_tokens(options, on_gpu=model.on_gpu)
        self._capacity = max(self._call_tokens, longest_query) + self._queries_per_call * len(trie.steps)

        params = context_params(model, options)
        params.n_ctx = self._prefix_length + self._capacity + held_cells + 32
        params.n_batch = max(self._capacity, self._prefix_length, held_cells)
        params.n_ubatch = min(params.n_batch, options.micro_batch_tokens)
        params.n_seq_max = n_sequences + held_cells
        params.kv_unified = True
        self._context: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._context:
            raise EngineError(f"llama.cpp made no context for {model.path}: too little memory?")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = _Batch(params.n_batch, n_sequences + held_cells)
        try:
            self._share_prefix(prefix_ids, n_sequences + held_cells)
        except EngineError:
            self.close()
            raise

    def close(self) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None

    def log_probabilities(self, queries: Sequence[list[int]]) -> Floats:
        """Exact constrained log-probabilities of every label for every query; shape (queries, labels).

        Args:
            queries: token ids of each query with its suffix, at most `longest_query` each.

        Raises:
            EngineError: llama.cpp could not compute a batch.
        """
        n_labels = sum(len(labels) for labels in self._trie.choices[0].labels)
        scores = np.empty((len(queries), n_labels))
        order = sorted(range(len(queries)), key=lambda number: queries[number])
        for start in range(0, len(order), _SORTED_AT_ONCE):
            chunk = order[start : start + _SORTED_AT_ONCE]
            matrix, lengths = token_matrix([queries[number] for number in chunk])
            shared = shared_with_previous(matrix)
            first = np.nonzero(shared < lengths)[0]
            copies = np.diff([*first, len(chunk)])
            distinct = np.empty((len(first), n_labels))
            for rows in self._calls(shared[first], lengths[first]):
                distinct[rows] = self._score(matrix[first[rows]], lengths[first[rows]], n_labels)
            scores[chunk] = np.repeat(distinct, copies, axis=0)
        return scores

    def _calls(self, shared: Ints, lengths: Ints) -> Iterator[slice]:
        """Cut distinct queries, in order, into runs that fit one call each."""
        budget = self._call_tokens
        if int(lengths.max()) > self._longest_query:
            raise EngineError(f"a query of {lengths.max()} tokens is longer than {self._longest_query}")
        start = tokens = 0
        for row, (length, alone) in enumerate(zip((lengths - shared).tolist(), lengths.tolist(), strict=True)):
            if row > start and (row - start == self._queries_per_call or tokens + length > budget):
                yield slice(start, row)
                start, tokens = row, 0
            tokens += length if row > start else alone
        yield slice(start, len(lengths))

    def _score(self, matrix: Ints, lengths: Ints, n_labels: int) -> Floats:
        """Log-probabilities of distinct queries in lexicographic order."""
        cached, holders = self._cache.match(matrix, lengths)
        shared = shared_with_previous(matrix)
        batch = plan(matrix, lengths, shared, cached, self._trie)
        try:
            self._share_held(cached, holders)
            outputs = self._decode(batch)
        finally:
            self._forget(0, len(matrix) * self._trie.n_branches)
        scores = np.zeros((len(matrix), n_labels))
        for index, choice in enumerate(self._trie.choices):
            logits = self._choice_logits(outputs, batch.answers[:, index], choice.tokens)
            logits -= logits.max(axis=1, keepdims=True)
            log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            for column, labels in enumerate(choice.labels):
                scores[:, labels] += log_probs[:, column, None]
        self._cache.observe(matrix, lengths, shared)
        if self._cache.review():
            try:
                self._hold(self._cache.paths)
            except EngineError:  # the scores are right all the same; what is not in the cache must not be matched
                self._cache.drop()
                self._forget(self._first_holder, self._batch.n_sequences)
        return scores

    def _choice_logits(self, outputs: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], tokens: tuple[int, ...]) -> Floats:
        """Logits of the allowed tokens only; where the answer may end, every end token counts."""
        columns = np.asarray(tokens, dtype=np.int64)
        logits = outputs[rows[:, None], np.maximum(columns, 0)].astype(np.float64)
        if END in tokens:
            ends = outputs[rows[:, None], self._ends].astype(np.float64)
            peak = ends.max(axis=1)
            logits[:, tokens.index(END)] = peak + np.log(np.exp(ends - peak[:, None]).sum(axis=1))
        return logits

    def _decode(self, batch: Plan, first_sequence: int = 0) -> npt.NDArray[np.float32]:
        """One llama.cpp call. Returns a view on its logits, shape (outputs, vocabulary)."""
        n_tokens = len(batch.tokens)
        self._batch.tokens[:n_tokens] = batch.tokens
        self._batch.positions[:n_tokens] = batch.positions + self._prefix_length
        self._batch.give(batch.first_sequence + first_sequence, batch.n_sequences)
        self._batch.outputs[:n_tokens] = batch.outputs
        self._run(n_tokens)
        pointer = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(int(batch.outputs.sum()), self._model.n_tokens))

    def _share_held(self, cached: Ints, holders: Ints) -> None:
        """Let each query's sequences see the cells of the beginning that is held for it."""
        width, start = self._trie.n_branches, self._prefix_length
        for row in np.nonzero(cached)[0].tolist():
            source, end = self._first_holder + int(holders[row]), start + int(cached[row])
            for sequence in range(row * width, (row + 1) * width):
                llama_cpp.llama_memory_seq_cp(self._memory, source, sequence, start, end)

    def _hold(self, paths: Ints) -> None:
        """Compute the beginnings to be held, if any; with no query in the cache they land right after the prefix."""
        self._forget(self._first_holder, self._batch.n_sequences)
        if not len(paths):
            return
        lengths = (paths != PAD).sum(axis=1, dtype=np.int32)
        none_cached = np.zeros(len(paths), dtype=np.int32)
        self._decode(plan(paths, lengths, shared_with_previous(paths), none_cached, _NO_STEPS), self._first_holder)

    def _forget(self, first: int, stop: int) -> None:
        """Take from these sequences all but the prefix."""
        for sequence in range(first, stop):
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, self._prefix_length, -1)

    def _share_prefix(self, ids: Sequence[int], n_sequences: int) -> None:
        if not ids:
            return
        batch = self._batch
        batch.tokens[: len(ids)] = ids
        batch.positions[: len(ids)] = np.arange(len(ids))
        batch.give(np.zeros(len(ids), dtype=np.int32), np.ones(len(ids), dtype=np.int32))
        batch.outputs[: len(ids)] = 0
        batch.outputs[len(ids) - 1] = 1
        self._run(len(ids))
        for sequence in range(1, n_sequences):
            llama_cpp.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)

    def _run(self, n_tokens: int) -> None:
        self._batch.struct.n_tokens = n_tokens
        self.tokens_computed += n_tokens
        status = llama_cpp.llama_decode(self._context, self._batch.struct)
        if status != 0:
            raise EngineError(f"llama_decode failed with status {status} on {n_tokens} tokens")


class _Batch:
    """A `llama_batch` whose arrays are numpy's, so that filling one needs no Python loop per token."""

    def __init__(self, capacity: int, n_sequences: int) -> None:
        self.tokens = np.zeros(capacity, dtype=np.int32)
        self.positions = np.zeros(capacity, dtype=np.int32)
        self.outputs = np.zeros(capacity, dtype=np.int8)
        self._n_sequences = np.zeros(capacity, dtype=np.int32)
        self.n_sequences = n_sequences
        self._numbers = np.arange(n_sequences, dtype=np.int32)
        self._pointers = np.zeros(capacity, dtype=np.uint64)
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=self.tokens.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token)),
            embd=None,
            pos=self.positions.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_pos)),
            n_seq_id=self._n_sequences.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(llama_cpp.llama_seq_id))),
            logits=self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def give(self, first: Ints, count: Ints) -> None:
        """Say for each token to which sequences it belongs: `count` of them, from `first` on."""
        self._n_sequences[: len(count)] = count
        self._pointers[: len(first)] = self._numbers.ctypes.data + first.astype(np.uint64) * np.uint64(self._numbers.itemsize)

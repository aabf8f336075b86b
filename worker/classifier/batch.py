"""Which tokens of many queries must be computed, and for whom: a radix tree as numpy arrays. Pure.

Queries in lexicographic order have the shape of a radix tree: what a row shares with any row before it, it
shares with the row just before it. So a token is computed in the first row that has it, and belongs to the
rows below for as long as they share it. Row `i` is llama.cpp's sequences `i * branches ...`, so the
sequences of a token are consecutive numbers, and one static array of numbers serves every token's pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from worker.classifier.grammar import Trie

Ints = npt.NDArray[np.int32]
PAD = -1


@dataclass(frozen=True, slots=True)
class Plan:
    """One llama.cpp call. Arrays over its tokens, but for `answers`."""

    tokens: Ints
    positions: Ints
    """Counted from the end of the prompt's prefix."""
    first_sequence: Ints
    n_sequences: Ints
    outputs: npt.NDArray[np.bool_]
    """Whether the logits after the token are needed."""
    answers: npt.NDArray[np.int64]
    """Which of the outputs holds each choice of each query; shape (queries, choices)."""


def token_matrix(queries: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Token ids padded with PAD, shape (queries, longest), and the lengths."""
    lengths = np.fromiter(map(len, queries), dtype=np.int32, count=len(queries))
    matrix = np.full((len(queries), int(lengths.max())), PAD, dtype=np.int32)
    held = np.arange(matrix.shape[1]) < lengths[:, None]
    matrix[held] = np.fromiter(chain.from_iterable(queries), dtype=np.int32, count=int(lengths.sum()))
    return matrix, lengths


def shared_with_previous(matrix: Ints) -> Ints:
    """For each row, how many tokens it begins with that the row before begins with too; 0 for the first."""
    same = (matrix[1:] == matrix[:-1]) & (matrix[1:] != PAD)
    shared = np.logical_and.accumulate(same, axis=1).sum(axis=1)
    return np.concatenate(([0], shared)).astype(np.int32)


def run_ends(starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For each row and column, the next row that starts a run in that column (the number of rows if none)."""
    n_rows, width = starts.shape
    ends = np.full((n_rows + 1, width), n_rows)
    ends[:n_rows] = np.where(starts, np.arange(n_rows)[:, None], n_rows)
    return np.asarray(np.minimum.accumulate(ends[::-1], axis=0)[::-1][1:])


def plan(matrix: Ints, lengths: Ints, shared: Ints, cached: Ints, trie: Trie) -> Plan:
    """Lay out one call.

    Args:
        matrix: distinct queries in lexicographic order, as `token_matrix` gives them.
        shared: what `shared_with_previous` gives for them.
        cached: how many tokens at the beginning of each query are in the KV cache already; less than its length.
    """
    n_rows, width = matrix.shape
    rows, columns = np.arange(n_rows), np.arange(width)
    mine = (columns >= np.maximum(shared, cached)[:, None]) & (columns < lengths[:, None])
    run_end = run_ends((columns >= shared[:, None]) | (columns < cached[:, None]))

    row, column = np.nonzero(mine)
    last = column == lengths[row] - 1
    branches, n_steps = trie.n_branches, len(trie.steps)
    query_outputs = np.cumsum(last) - 1
    answers = np.empty((n_rows, len(trie.choices)), dtype=np.int64)
    answers[row[last], 0] = query_outputs[last]
    tokens, positions = matrix[row, column], column
    first, count = row * branches, (run_end[row, column] - row) * branches
    if n_steps:
        steps_out = np.array([step.choice is not None for step in trie.steps])
        choices = [step.choice for step in trie.steps if step.choice is not None]
        answers[:, choices] = n_rows + np.arange(n_rows * len(choices)).reshape(n_rows, -1)
        depth = np.array([step.depth for step in trie.steps])
        first_branch = np.array([step.branches[0] for step in trie.steps])
        tokens = np.concatenate((tokens, np.tile([step.token for step in trie.steps], n_rows)))
        positions = np.concatenate((positions, (lengths[:, None] + depth).ravel()))
        first = np.concatenate((first, (rows[:, None] * branches + first_branch).ravel()))
        count = np.concatenate((count, np.tile([len(step.branches) for step in trie.steps], n_rows)))
        last = np.concatenate((last, np.tile(steps_out, n_rows)))
    return Plan(tokens.astype(np.int32), positions.astype(np.int32), first.astype(np.int32), count.astype(np.int32), last, answers)

"""Which beginnings of queries are worth keeping in the KV cache. Pure.

People begin alike: "how do i", "what is my". The last queries are remembered; from time to time the
beginnings that would have saved most of their tokens are chosen anew, as many tokens as there are cells. A
beginning is worth what it saves beyond what the queries of one call share anyway, so each call counts once.

Holding costs too. llama.cpp's attention goes over the KV cache in blocks of cells, used or not, and a full call that would
fill one block just so needs another for what is held. So nothing is held where full calls are all there is and share most
of their beginnings themselves, and much where queries come by ones.
"""

from __future__ import annotations

import numpy as np

from worker.classifier.batch import PAD, Ints, run_ends, shared_with_previous
from worker.classifier.calibration import Floats

DEPTH = 8
"""The longest beginning that is held, in tokens."""
WINDOW = 1024
"""How many of the last queries are remembered."""
BLOCK = 256
"""KV cells by which llama.cpp rounds up what its attention goes over (`llama_kv_cache::get_n_kv`)."""
BLOCK_COSTS = 0.055
"""Of a token's time, for a further block; calls of 255 tokens were 0.946 as fast (median of ten; SmolLM2-135M in F16 on AVX2)."""
_REVIEW_EVERY = 128
_SEEN = 3


class PrefixCache:
    """The beginnings held, and the last queries. `paths` is empty until something is worth holding.

    Args:
        cells: KV cells for what is held.
        taken: cells that are always in use: the prompt's prefix.
    """

    def __init__(self, cells: int, taken: int = 0) -> None:
        self._cells, self._taken = cells, taken
        self.paths: Ints = np.empty((0, DEPTH), dtype=np.int32)
        """The beginnings held, padded; none begins another."""
        self._window: Ints = np.full((WINDOW, DEPTH), PAD, dtype=np.int32)
        self._shared: Ints = np.full(WINDOW, DEPTH, dtype=np.int32)
        self._costs: Floats = np.zeros(WINDOW)
        """In tokens: what holding anything adds to each query, for the size of the call that it was in."""
        self._next = self._unreviewed = 0

    def match(self, matrix: Ints, lengths: Ints) -> tuple[Ints, Ints]:
        """For each query: how many tokens at its beginning are held, less than its length, and in which path."""
        if not len(self.paths):
            return np.zeros(len(matrix), dtype=np.int32), np.zeros(len(matrix), dtype=np.int32)
        width = min(DEPTH, matrix.shape[1])
        wanted = np.where(np.arange(width) < lengths[:, None] - 1, matrix[:, :width], PAD)
        return _deepest(wanted, self.paths[:, :width])

    def drop(self) -> None:
        """Hold nothing, until something is chosen again."""
        self.paths = self.paths[:0]

    def observe(self, matrix: Ints, lengths: Ints, shared: Ints) -> None:
        """Remember the queries of a call; `shared` is how much of each came free from the one before it."""
        n_rows, width = min(len(matrix), WINDOW), min(DEPTH, matrix.shape[1])
        at = (self._next + np.arange(n_rows)) % WINDOW
        self._window[at] = PAD
        self._window[at, :width] = np.where(np.arange(width) < lengths[:n_rows, None] - 1, matrix[:n_rows, :width], PAD)
        self._shared[at] = shared[:n_rows]
        own = lengths - shared
        used = self._taken + int(own.sum())
        blocks = -(-(used + self._cells) // BLOCK) - -(-used // BLOCK)
        self._costs[at] = BLOCK_COSTS * blocks * own[:n_rows]
        self._next = (self._next + n_rows) % WINDOW
        self._unreviewed += n_rows

    def review(self) -> bool:
        """Choose again, if it is time. True if `paths` changed and must be computed, if there are any: that costs less than it saves."""
        if self._unreviewed < _REVIEW_EVERY or not self._cells:
            return False
        self._unreviewed = 0
        costs, present = float(self._costs.sum()), 0.0
        paths, saves = self._best()
        if len(self.paths):
            depth, _ = _deepest(self._window, self.paths)
            present = float(np.maximum(depth - self._shared, 0).sum()) - costs
        if len(paths) and saves - costs - present > 2 * self._cells:
            self.paths = paths
            return True
        if present < 0:
            self.drop()
            return True
        return False

    def _best(self) -> tuple[Ints, int]:
        """The beginnings that save most, and how many tokens they would have saved in the window."""
        order = np.lexsort(self._window.T[::-1])
        rows, own = self._window[order], self._shared[order]
        shared = shared_with_previous(rows)
        columns = np.arange(DEPTH)
        starts = columns >= shared[:, None]
        row, column = np.nonzero(starts & (rows != PAD))
        computed = np.zeros((len(rows) + 1, DEPTH), dtype=np.int64)
        computed[1:] = np.cumsum(own[:, None] <= columns, axis=0)
        worth = computed[run_ends(starts)[row, column], column] - computed[row, column]
        ranking = np.lexsort((column, -worth))
        chosen = ranking[worth[ranking] >= _SEEN][: self._cells]
        if not len(chosen):
            return self.paths, 0
        depth = np.zeros(len(rows), dtype=np.int32)
        np.maximum.at(depth, row[chosen], column[chosen] + 1)
        tips = depth > 0
        paths = np.where(columns < depth[tips, None], rows[tips], PAD)
        begins_next = np.append((np.where(paths[:-1] == PAD, paths[1:], paths[:-1]) == paths[1:]).all(axis=1), False)
        return paths[~begins_next].astype(np.int32), int(worth[chosen].sum())


def _deepest(wanted: Ints, paths: Ints) -> tuple[Ints, Ints]:
    """For each row of `wanted`, how many tokens it shares with the path that it shares most with, and which."""
    same = (wanted[:, None, :] == paths[None, :, :]) & (wanted[:, None, :] != PAD)
    depth = np.logical_and.accumulate(same, axis=2).sum(axis=2, dtype=np.int32)
    path = depth.argmax(axis=1)
    return depth[np.arange(len(wanted)), path], path.astype(np.int32)

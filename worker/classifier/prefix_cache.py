"""Which beginnings of queries are worth keeping in the KV cache. Pure.

People begin alike: "how do i", "what is my". The last queries are remembered; from time to time the
beginnings that would have saved most of their tokens are chosen anew, as many tokens as there are cells. A
beginning is worth what it saves beyond what the queries of one call share anyway, so each call counts once.
"""

from __future__ import annotations

import numpy as np

from worker.classifier.batch import PAD, Ints, run_ends, shared_with_previous

DEPTH = 8
"""The longest beginning that is held, in tokens."""
WINDOW = 1024
"""How many of the last queries are remembered."""
_REVIEW_EVERY = 128
_SEEN = 3


class PrefixCache:
    """The beginnings held, and the last queries. `paths` is empty until something is worth holding."""

    def __init__(self, cells: int) -> None:
        self._cells = cells
        self.paths: Ints = np.empty((0, DEPTH), dtype=np.int32)
        """The beginnings held, padded; none begins another."""
        self._window: Ints = np.full((WINDOW, DEPTH), PAD, dtype=np.int32)
        self._shared: Ints = np.full(WINDOW, DEPTH, dtype=np.int32)
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
        self._next = (self._next + n_rows) % WINDOW
        self._unreviewed += n_rows

    def review(self) -> bool:
        """Choose again, if it is time. True if `paths` changed and must be computed: that costs less than it saves."""
        if self._unreviewed < _REVIEW_EVERY or not self._cells:
            return False
        self._unreviewed = 0
        paths, saves = self._best()
        if len(self.paths):
            depth, _ = _deepest(self._window, self.paths)
            saves -= int(np.maximum(depth - self._shared, 0).sum())
        if saves <= 2 * self._cells:
            return False
        self.paths = paths
        return True

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

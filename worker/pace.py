"""How many tokens a batch may hold, so that a slow model is not taken for a stuck one.

A batch that takes longer than the time allowed counts as stuck: readiness ends, others claim its entries. So what a batch may hold
goes by the pace of the batches before it, with room for a machine that is slower for a while.
"""

from __future__ import annotations

FIRST = 256
"""Tokens of the first batch, of whose pace nothing is known."""
_SHARE = 1 / 3
"""Of the time allowed that a batch shall take."""
_KEPT = 0.8
"""How much of what was known still counts after another batch."""


class Pace:
    """Tokens a second, by the last batches of one model; each counts by its size."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._tokens = self._seconds = 0.0

    def took(self, tokens: int, seconds: float) -> None:
        self._tokens = _KEPT * self._tokens + tokens
        self._seconds = _KEPT * self._seconds + seconds

    def allows(self) -> float:
        """Tokens that take a third of the time allowed."""
        if not self._seconds:
            return FIRST
        return _SHARE * self._timeout_s * self._tokens / self._seconds

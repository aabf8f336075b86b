"""Measuring on machines that others use too: in turns, as medians of ratios. Pure but for the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

Contestant = Callable[[], float]
"""Does a piece of work and returns how much it was: tokens, messages."""


def rates(contestants: Mapping[str, Contestant], rounds: int, on_step: Callable[[], None] = lambda: None) -> dict[str, list[float]]:
    """Work per second of each contestant, once a round. All take turns, so that all see the same noise."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            started = time.perf_counter()
            amount = work()
            found[name].append(amount / (time.perf_counter() - started))
            on_step()
    return found


def ratio(found: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median over the rounds of one contestant's rate by another's."""
    return median(left / right for left, right in zip(found[of], found[to], strict=True))

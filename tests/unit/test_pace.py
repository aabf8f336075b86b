"""A batch is given what takes a third of the time allowed, by the pace of those before it."""

from __future__ import annotations

import pytest

from worker.pace import FIRST, Pace


def test_before_anything_is_known_a_batch_is_small() -> None:
    assert Pace(10).allows() == FIRST


@pytest.mark.parametrize(("tokens", "seconds"), [(300, 1.0), (3000, 10.0)])
def test_a_batch_may_take_a_third_of_the_time_allowed(tokens: int, seconds: float) -> None:
    pace = Pace(9)
    pace.took(tokens, seconds)
    assert pace.allows() == pytest.approx(900)


def test_a_model_that_slows_down_is_given_less_within_a_few_batches() -> None:
    pace = Pace(9)
    for _ in range(20):
        pace.took(900, 3.0)
    for _ in range(5):
        pace.took(int(pace.allows()), pace.allows() / 100)
    assert pace.allows() < 1.5 * 300


def test_small_batches_say_less_of_the_pace_than_large_ones() -> None:
    pace = Pace(9)
    pace.took(900, 3.0)
    pace.took(2, 0.1)
    assert pace.allows() > 0.9 * 900

"""What is held, what goes, and what a query gets of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from worker.classifier.batch import PAD, shared_with_previous, token_matrix
from worker.classifier.prefix_cache import DEPTH, WINDOW, PrefixCache

HOW_DO_I, WHAT_IS = [1, 2, 3], [7, 8]


def ask(cache: PrefixCache, queries: Sequence[Sequence[int]]) -> bool:
    """One call for each query, as when they come one by one. True if the cache chose anew."""
    chose = False
    for query in queries:
        matrix, lengths = token_matrix([query])
        cache.observe(matrix, lengths, np.zeros(1, dtype=np.int32))
        chose |= cache.review()
    return chose


def held(cache: PrefixCache, query: list[int]) -> int:
    matrix, lengths = token_matrix([query])
    return int(cache.match(matrix, lengths)[0][0])


def begin_with(beginning: list[int], n: int, seed: int = 0) -> list[list[int]]:
    source = random.Random(f"{beginning}{seed}")
    return [[*beginning, *(source.randrange(1000, 40_000) for _ in range(source.randint(2, 6)))] for _ in range(n)]


def test_nothing_is_held_at_first_nor_where_queries_have_nothing_in_common() -> None:
    cache = PrefixCache(32)
    assert held(cache, [1, 2, 3, 4]) == 0
    assert not ask(cache, begin_with([], 500))
    assert len(cache.paths) == 0


def test_a_common_beginning_is_held_as_far_as_it_is_common() -> None:
    cache = PrefixCache(32)
    assert ask(cache, begin_with(HOW_DO_I, 200))
    assert cache.paths[:, :4].tolist() == [[*HOW_DO_I, PAD]]
    assert held(cache, [*HOW_DO_I, 9, 9]) == 3
    assert held(cache, [1, 2, 9]) == 2
    assert held(cache, [2, 2, 3]) == 0


def test_the_last_token_of_a_query_is_always_computed() -> None:
    cache = PrefixCache(32)
    ask(cache, begin_with(HOW_DO_I, 200))
    assert held(cache, HOW_DO_I) == 2
    assert held(cache, [1]) == 0


def test_beginnings_that_part_are_held_apart_and_their_common_part_takes_its_cells_once() -> None:
    cache = PrefixCache(4)
    ask(cache, [query for pair in zip(begin_with([1, 2, 3], 200), begin_with([1, 2, 4], 200), strict=True) for query in pair])
    assert sorted(path[:3] for path in cache.paths.tolist()) == [[1, 2, 3], [1, 2, 4]]


def test_no_more_cells_are_taken_than_there_are_and_the_commonest_get_them() -> None:
    cache = PrefixCache(3)
    ask(cache, begin_with(WHAT_IS, 100) + begin_with(HOW_DO_I, 300))
    assert cache.paths[:, :4].tolist() == [[*HOW_DO_I, PAD]]


def test_when_people_ask_otherwise_the_new_beginnings_take_over() -> None:
    cache = PrefixCache(2)
    ask(cache, begin_with(HOW_DO_I, WINDOW))
    assert ask(cache, begin_with(WHAT_IS, WINDOW))
    assert held(cache, [*WHAT_IS, 5]) == 2
    assert held(cache, [*HOW_DO_I, 5]) == 0


def test_a_change_that_saves_little_is_not_made() -> None:
    cache = PrefixCache(16)
    ask(cache, begin_with(HOW_DO_I, WINDOW))
    assert not ask(cache, begin_with(HOW_DO_I, WINDOW - 10, seed=1) + begin_with(WHAT_IS, 10))


def test_what_the_queries_of_a_call_share_anyway_is_not_worth_holding() -> None:
    cache = PrefixCache(32)
    chose = False
    for start in range(0, WINDOW, 64):
        matrix, lengths = token_matrix(sorted(begin_with(HOW_DO_I, 64, seed=start)))
        cache.observe(matrix, lengths, shared_with_previous(matrix))
        chose |= cache.review()
    assert not chose


def ask_in_calls(cache: PrefixCache, queries: Sequence[Sequence[int]], size: int, alone: bool = True) -> None:
    """Calls of so many queries; `alone` if none of them shares anything with another of its call."""
    for start in range(0, len(queries), size):
        matrix, lengths = token_matrix(queries[start : start + size])
        cache.observe(matrix, lengths, np.zeros(len(matrix), dtype=np.int32) if alone else shared_with_previous(matrix))
        cache.review()


def long(beginning: list[int], n: int, length: int, seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[*beginning, *(source.randrange(1000, 40_000) for _ in range(length - len(beginning)))] for _ in range(n)]


def test_what_saves_less_than_a_further_block_of_cells_costs_is_not_held() -> None:
    """255 tokens and the prefix fill a block of 256 cells; of 51 tokens a query one saved is less than 5.5 %, and of 10 more."""
    saving_little, saving_much = PrefixCache(63, taken=1), PrefixCache(63, taken=1)
    ask_in_calls(saving_little, long([1], 500, 51), 5)
    ask_in_calls(saving_much, long([1], 500, 10), 25)
    assert len(saving_little.paths) == 0
    assert len(saving_much.paths) == 1


def test_the_same_is_held_where_calls_leave_room_for_it() -> None:
    cache = PrefixCache(63, taken=1)
    ask_in_calls(cache, long([1], 500, 51), 3)
    assert cache.paths[:, 0].tolist() == [1]


def test_what_is_held_goes_when_calls_become_full_and_it_saves_too_little() -> None:
    cache = PrefixCache(63, taken=1)
    ask_in_calls(cache, long([1], 500, 51), 1)
    assert len(cache.paths) == 1
    ask_in_calls(cache, long([1], WINDOW, 51, seed=1), 5)
    assert len(cache.paths) == 0
    assert held(cache, [1, 2, 3]) == 0


def test_a_repeated_query_is_held_to_the_depth_bound() -> None:
    cache = PrefixCache(64)
    ask(cache, [list(range(3 * DEPTH))] * 200)
    assert held(cache, list(range(3 * DEPTH))) == DEPTH


def test_a_cache_without_cells_holds_nothing() -> None:
    cache = PrefixCache(0)
    assert not ask(cache, begin_with(HOW_DO_I, 500))
    assert held(cache, [*HOW_DO_I, 9]) == 0

"""What a call computes, against a naive walk over every query."""

from __future__ import annotations

import random

import numpy as np
import pytest

from worker.classifier.batch import PAD, Plan, plan, shared_with_previous, token_matrix
from worker.classifier.grammar import Trie, build_trie

ONE_TOKEN = build_trie([[1], [2]])
SEVERAL = build_trie([[1, 2], [1, 3, 4], [1, 3, 5], [6, 7], [6, 8], [9]])


def random_queries(seed: int, n: int = 24, alphabet: int = 3) -> list[list[int]]:
    """Short words over few letters, so that nearly all begin like another; distinct, in order."""
    source = random.Random(seed)
    words = {tuple(source.randrange(alphabet) for _ in range(source.randint(1, 7))) for _ in range(n)}
    return [list(word) for word in sorted(words)]


def lay_out(queries: list[list[int]], trie: Trie, held: int = 0) -> Plan:
    matrix, lengths = token_matrix(queries)
    cached = np.minimum(np.where(matrix[:, 0] == 1, held, 0), lengths - 1).astype(np.int32)
    return plan(matrix, lengths, shared_with_previous(matrix), cached, trie)


def seen_by(layout: Plan, sequence: int) -> list[tuple[int, int]]:
    """(position, token) of everything that a sequence sees, in the order in which it is computed."""
    mine = (layout.first_sequence <= sequence) & (sequence < layout.first_sequence + layout.n_sequences)
    return list(zip(layout.positions[mine].tolist(), layout.tokens[mine].tolist(), strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_each_sequence_sees_its_own_query_in_order(seed: int) -> None:
    queries = random_queries(seed)
    layout = lay_out(queries, ONE_TOKEN)
    for row, query in enumerate(queries):
        assert seen_by(layout, row) == list(enumerate(query))


@pytest.mark.parametrize("seed", range(20))
def test_no_beginning_is_computed_twice(seed: int) -> None:
    queries = random_queries(seed)
    beginnings = {tuple(query[: depth + 1]) for query in queries for depth in range(len(query))}
    assert len(lay_out(queries, ONE_TOKEN).tokens) == len(beginnings)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_cached_is_not_computed_and_the_rest_follows_it(seed: int) -> None:
    queries = random_queries(seed)
    # Every query that begins with 1, 1, ... has one holder: only such a beginning can be cached for all of them.
    queries = [query for query in queries if query[0] != 1 or tuple(query[:2]) == (1, 1)]
    layout = lay_out(queries, ONE_TOKEN, held=2)
    for row, query in enumerate(queries):
        cached = min(2, len(query) - 1) if query[0] == 1 else 0
        assert seen_by(layout, row) == list(enumerate(query))[cached:]


@pytest.mark.parametrize("seed", range(20))
def test_branches_of_a_label_trie_see_their_query_and_their_own_tokens(seed: int) -> None:
    queries = random_queries(seed)
    layout = lay_out(queries, SEVERAL)
    paths: dict[int, list[tuple[int, int]]] = {branch: [] for branch in range(SEVERAL.n_branches)}
    for step in SEVERAL.steps:
        for branch in step.branches:
            paths[branch].append((step.depth, step.token))
    for row, query in enumerate(queries):
        for branch in range(SEVERAL.n_branches):
            expected = list(enumerate(query)) + [(len(query) + depth, token) for depth, token in paths[branch]]
            assert seen_by(layout, row * SEVERAL.n_branches + branch) == expected


@pytest.mark.parametrize("trie", [ONE_TOKEN, SEVERAL], ids=["one token", "several tokens"])
def test_answers_point_at_the_outputs_after_the_query_and_after_each_choice(trie: Trie) -> None:
    queries = random_queries(5)
    layout = lay_out(queries, trie)
    outputs = np.nonzero(layout.outputs)[0]
    assert sorted(layout.answers.ravel().tolist()) == list(range(len(outputs)))
    for row, query in enumerate(queries):
        for choice in range(len(trie.choices)):
            token = outputs[layout.answers[row, choice]]
            assert layout.first_sequence[token] // trie.n_branches <= row
            if choice == 0:
                assert (layout.positions[token], layout.tokens[token]) == (len(query) - 1, query[-1])
            else:
                step = next(step for step in trie.steps if step.choice == choice)
                assert (layout.positions[token], layout.tokens[token]) == (len(query) + step.depth, step.token)


def test_a_matrix_holds_the_queries_and_padding() -> None:
    matrix, lengths = token_matrix([[5], [5, 6, 7], [8, 9]])
    assert matrix.tolist() == [[5, PAD, PAD], [5, 6, 7], [8, 9, PAD]]
    assert lengths.tolist() == [1, 3, 2]
    assert shared_with_previous(matrix).tolist() == [0, 1, 0]

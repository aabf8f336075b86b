from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.classifier.grammar import END, Step, Trie, build_trie, gbnf

label_sets = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=2, max_size=12, unique=True)


def picks(trie: Trie, label: int) -> list[tuple[int, int]]:
    """The (choice, token) pairs beyond which a label lies."""
    return [
        (index, token)
        for index, choice in enumerate(trie.choices)
        for token, labels in zip(choice.tokens, choice.labels, strict=True)
        if label in labels
    ]


def test_labels_of_one_token_need_one_choice_and_no_step() -> None:
    trie = build_trie([[5], [6], [7]])
    assert (trie.steps, trie.n_branches) == ((), 1)
    assert [choice.tokens for choice in trie.choices] == [(5, 6, 7)]


def test_a_label_that_begins_another_gets_its_own_choice() -> None:
    trie = build_trie([[1], [1, 2], [3]])
    assert trie.steps == (Step(token=1, depth=0, branches=(0,), choice=1),)
    assert trie.choices[1].tokens == (END, 2)
    assert picks(trie, 0) == [(0, 1), (1, END)]


def test_forced_tokens_cost_no_choice() -> None:
    trie = build_trie([[1, 2, 3], [4, 5, 6]])
    assert (len(trie.choices), trie.steps) == (1, ())


def test_a_shared_beginning_is_computed_once_in_all_its_branches() -> None:
    trie = build_trie([[1, 2, 3], [1, 2, 4], [1, 5, 6], [1, 5, 7]])
    assert [(step.token, step.branches, step.choice) for step in trie.steps] == [(1, (0, 1), 1), (2, (0,), 2), (5, (1,), 3)]
    assert trie.n_branches == 2


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [([[1]], "at least two"), ([[1], []], "no tokens"), ([[1, 2], [1, 2]], "same tokens")],
)
def test_labels_that_make_no_trie_are_refused(labels: list[list[int]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_trie(labels)


@given(label_sets)
def test_exactly_one_path_of_choices_leads_to_each_label(labels: list[tuple[int, ...]]) -> None:
    trie = build_trie(labels)
    after = {step.choice: step for step in trie.steps if step.choice is not None}
    found = []
    for label, tokens in enumerate(labels):
        path = picks(trie, label)
        assert len({choice for choice, _ in path}) == len(path), "a label lies beyond two continuations of one choice"
        for choice, token in path:
            depth = after[choice].depth + 1 if choice else 0
            assert token == (tokens[depth] if depth < len(tokens) else END)
        found.append(tuple(path))
    assert len(set(found)) == len(labels)


@given(label_sets, st.integers(0, 2**31))
def test_probabilities_over_all_labels_sum_to_one(labels: list[tuple[int, ...]], seed: int) -> None:
    trie, dice = build_trie(labels), random.Random(seed)
    scores = np.zeros(len(labels))
    for choice in trie.choices:
        logits = np.array([dice.gauss(0, 3) for _ in choice.tokens])
        log_probs = logits - np.log(np.exp(logits).sum())
        for column, beyond in enumerate(choice.labels):
            scores[list(beyond)] += log_probs[column]
    assert np.exp(scores).sum() == pytest.approx(1.0)


@given(label_sets)
def test_every_branch_holds_the_whole_way_to_its_tip(labels: list[tuple[int, ...]]) -> None:
    trie = build_trie(labels)
    beginnings = {label[:depth] for label in labels for depth in range(1, len(label) + 1)}
    for branch in range(trie.n_branches if trie.steps else 0):
        way = [step for step in trie.steps if branch in step.branches]
        assert [step.depth for step in way] == list(range(len(way))), "positions of a sequence must not have holes"
        assert tuple(step.token for step in way) in beginnings
        assert way[-1].choice is not None, "a branch ends where a choice is made"
    assert sorted(step.choice for step in trie.steps if step.choice is not None) == list(range(1, len(trie.choices)))


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (["A", "B"], 'root ::= "A" | "B"\n'),
        (['say "x"', "back\\slash"], 'root ::= "say \\"x\\"" | "back\\\\slash"\n'),
        (["a\nb", "t\tr\r"], 'root ::= "a\\nb" | "t\\tr\\r"\n'),
    ],
)
def test_gbnf_quotes_what_llama_cpp_would_read_as_syntax(codes: list[str], text: str) -> None:
    assert gbnf(codes) == text

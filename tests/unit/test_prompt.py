from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.classifier.prompt import encode_query, normalise

SUFFIX = [-7, -8]


def by_character(text: str) -> list[int]:
    return [ord(char) for char in text]


@pytest.mark.parametrize(
    ("text", "seen"), [("  a \n\t b  ", "a b"), ("", ""), ("\u2003wide\u00a0blank", "wide blank"), ("Keep CASE!", "Keep CASE!")]
)
def test_white_space_is_reduced_to_single_blanks(text: str, seen: str) -> None:
    assert normalise(text) == seen


def test_a_short_query_is_followed_by_the_suffix_and_is_whole() -> None:
    query = encode_query("pool", SUFFIX, by_character, 8)
    assert (query.ids, query.truncated) == ([*by_character("pool"), *SUFFIX], False)


@pytest.mark.parametrize(("limit", "kept"), [(4, "abij"), (5, "abcij"), (1, "a"), (10, "abcdefghij")])
def test_a_long_query_keeps_its_beginning_and_its_end(limit: int, kept: str) -> None:
    query = encode_query("abcdefghij", SUFFIX, by_character, limit)
    assert query.ids == [*by_character(kept), *SUFFIX]
    assert query.truncated == (limit < 10)


def test_a_huge_query_is_cut_before_it_is_tokenised() -> None:
    seen: list[int] = []

    def few_tokens(text: str) -> list[int]:
        seen.append(len(text))
        return [1]

    query = encode_query("x" * 1_000_000, SUFFIX, few_tokens, 8)
    assert query.truncated
    assert seen[0] <= 8 * 32 + 1


@given(st.text(), st.integers(1, 40))
def test_no_query_takes_more_tokens_than_allowed(text: str, limit: int) -> None:
    query = encode_query(text, SUFFIX, by_character, limit)
    assert len(query.ids) <= limit + len(SUFFIX)
    assert query.ids[-2:] == SUFFIX
    assert query.truncated == (len(normalise(text)) > limit)

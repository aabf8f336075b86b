"""The one prompt template, used by training and serving alike. Pure.

    prefix + query + suffix -> code

The prefix is computed once per process and the suffix once per query, so the prefix may be of any length
and the suffix should be one or two tokens. Only prefix and suffix may hold control tokens; the query is
always plain text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SpecialTokenize = Callable[[str], list[int]]
"""Text -> token ids, with control tokens such as ``<|im_end|>`` recognised."""
PlainTokenize = Callable[[str], list[int]]
"""Text -> token ids, with nothing recognised as a control token."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stands before and after every query."""

    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class QueryTokens:
    """The token ids of one query and its suffix; `truncated` if part of the query was left out."""

    ids: list[int]
    truncated: bool


def normalise(text: str) -> str:
    """The query as the model sees it: runs of white space become one blank, the ends are cut."""
    return " ".join(text.split())


def encode_query(text: str, suffix_ids: list[int], tokenize: PlainTokenize, max_query_tokens: int) -> QueryTokens:
    """Token ids of the query, cut to `max_query_tokens`, followed by those of the suffix.

    A query that is too long keeps its beginning and its end, where people say what they want.
    """
    max_chars = max_query_tokens * 32
    clean = normalise(text)
    truncated = len(clean) > max_chars
    if truncated:
        clean = clean[: max_chars // 2] + " " + clean[-max_chars // 2 :]
    ids = tokenize(clean)
    if len(ids) > max_query_tokens:
        truncated = True
        head = (max_query_tokens + 1) // 2
        ids = ids[:head] + ids[len(ids) - (max_query_tokens - head) :]
    return QueryTokens(ids + suffix_ids, truncated)

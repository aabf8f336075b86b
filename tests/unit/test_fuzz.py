"""Whatever comes in, the parsers agree with FastStream's own and lose nothing, and the trie with a decoder that knows no trie."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from math import exp
from typing import get_args

import pytest
from faststream.redis.parser import BinaryMessageFormatV1
from hypothesis import assume, example, given
from hypothesis import strategies as st

from worker.classifier.grammar import END, build_trie
from worker.errors import Reject, RejectReason
from worker.messages import MAX_FIELDS, OWN_PREFIX, Entry, Query, dead_fields, parse, revived_fields

LIMIT = 200
LONGEST_MESSAGE_ID = 64
OF_THE_ENTRY_ALONE = set(get_args(RejectReason)) - {"poison"}

texts = st.text(max_size=40) | st.sampled_from([" ", "{", '"', '{"text": "inner"}', "x" * LIMIT, "x" * (LIMIT + 1), "\x00", "\ud800"])
bodies = texts | texts.map(json.dumps) | texts.map(lambda text: json.dumps({"text": text}))
headers = st.dictionaries(
    st.sampled_from(["content-type", "correlation_id", ""]), st.sampled_from(["text/plain", "application/json", "", "é"]), max_size=3
)
names = st.sampled_from([b"text", b"__data__", b"id", b"", b"pointsman.id", b"pointsman.fields", b"pointsman."]) | st.binary(max_size=6)


def binary_envelope(body: str, given_headers: dict[str, str]) -> bytes:
    """By FastStream's encoder, which counts a header's characters where it writes its bytes: such headers come out damaged."""
    message = body.encode(errors="surrogatepass")
    return asyncio.run(BinaryMessageFormatV1.encode(message=message, reply_to=None, headers=given_headers or None, correlation_id="c"))


def json_envelope(body: str, given_headers: object) -> bytes:
    return json.dumps({"data": body, "headers": given_headers}).encode()


odd_headers = st.dictionaries(st.just("correlation_id"), st.none() | st.integers() | st.lists(texts, max_size=3) | texts) | st.integers()
envelopes = st.builds(binary_envelope, bodies, headers) | st.builds(json_envelope, bodies, headers | odd_headers)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Flipped, cut, doubled, spliced with another, or with something put in; several times over."""
    data = draw(whole)
    for damage in draw(st.lists(st.sampled_from(["flip", "cut", "double", "splice", "insert"]), min_size=1, max_size=4)):
        at, end = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        if damage == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        elif damage == "cut":
            data = data[:at] + data[end:]
        elif damage == "double":
            data = data[:end] + data[at:]
        elif damage == "splice":
            data = data[:at] + draw(whole)[at:]
        elif damage == "insert":
            data = (
                data[:at] + draw(st.binary(max_size=8) | st.sampled_from([b'"', b"\\", b"}", b"{", b"\xff\xff", b"\x00\x00"])) + data[at:]
            )
    return data


def outcome(fields: dict[bytes, bytes]) -> Query | Reject:
    try:
        return parse(Entry("5-1", fields), max_text_bytes=LIMIT, message_id_field="correlation_id")
    except Reject as reject:
        return reject


def without_own(fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in fields.items() if not name.startswith(OWN_PREFIX)}


def texts_that_faststream_sees(envelope: bytes) -> set[str]:
    """The body as it is, and what it holds if it is JSON."""
    body, _ = BinaryMessageFormatV1.parse(envelope)
    seen = {body.decode(errors="surrogateescape")}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return seen
    return seen | {text for text in (value, value.get("text") if isinstance(value, dict) else None) if isinstance(text, str)}


@given(damaged(st.binary(max_size=30) | texts.map(lambda text: text.encode(errors="surrogatepass"))))
def test_a_plain_text_is_the_producers_or_has_a_reason(data: bytes) -> None:
    found = outcome({b"text": data})
    if isinstance(found, Query):
        assert found.text.encode() == data
    else:
        assert found.reason in {"empty_text", "invalid_utf8", "too_large"}


@given(envelopes | damaged(envelopes))
def test_the_text_of_an_envelope_is_one_that_faststream_sees_there(envelope: bytes) -> None:
    found = outcome({b"__data__": envelope, b"text": b"beside"})
    if isinstance(found, Query):
        assert found.text in texts_that_faststream_sees(envelope)
        assert len(found.message_id) <= LONGEST_MESSAGE_ID
    else:
        assert found.reason in OF_THE_ENTRY_ALONE


@given(st.dictionaries(names, st.binary(max_size=20) | bodies.map(lambda body: body.encode(errors="surrogatepass")) | damaged(envelopes)))
@example({b"%d" % number: b"" for number in range(MAX_FIELDS + 1)} | {b"pointsman.id": b"forged", b"pointsman.fields": b"[]"})
@example({b"%d" % number: b"" for number in range(MAX_FIELDS - 1)} | {b"pointsman.id": b"forged"})
def test_what_is_rejected_comes_back_as_it_was_and_is_rejected_again(fields: dict[bytes, bytes]) -> None:
    found = outcome(fields)
    assume(isinstance(found, Reject))
    assert isinstance(found, Reject)
    letter = dead_fields(Entry("5-1", fields), found)
    assert letter[b"pointsman.id"] == b"5-1"
    assert len(letter) <= MAX_FIELDS + 4, "more than the delivery script can hand on"
    revived = revived_fields(letter)
    assert without_own(revived) == without_own(fields)
    again = outcome(revived)
    assert isinstance(again, Reject)
    assert again.reason == found.reason


@st.composite
def label_sets(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Token sequences of which many begin others."""
    whole = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), min_size=2, max_size=10, unique=True))
    cut = draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 5)), max_size=10))
    return draw(st.permutations(sorted({*whole, *(whole[index][:length] for index, length in cut)})))


def constrained_probability(
    label: Sequence[int], labels: Sequence[Sequence[int]], logit: dict[tuple[tuple[int, ...], int], float]
) -> float:
    """With which a sampler gives a label that at each token is only let choose among those with which a label goes on."""
    probability = 1.0
    for depth in range(len(label) + 1):
        before = tuple(label[:depth])
        going_on = {(*other, END)[depth] for other in labels if tuple(other[:depth]) == before}
        weights = {token: exp(logit[before, token]) for token in going_on}
        probability *= weights[(*label, END)[depth]] / sum(weights.values())
    return probability


@given(label_sets(), st.integers(0, 2**31))
def test_the_trie_gives_each_label_the_probability_that_constrained_sampling_does(labels: list[tuple[int, ...]], seed: int) -> None:
    dice = random.Random(seed)
    places = {(label[:depth], (*label, END)[depth]) for label in labels for depth in range(len(label) + 1)}
    logit = {place: dice.gauss(0, 2) for place in sorted(places)}
    trie = build_trie(labels)
    before_choice: dict[int, tuple[int, ...]] = {0: ()}
    tip: dict[int, tuple[int, ...]] = {}
    for step in trie.steps:
        tokens = (*tip.get(step.branches[0], ()), step.token)
        tip |= dict.fromkeys(step.branches, tokens)
        if step.choice is not None:
            before_choice[step.choice] = tokens
    found = [1.0] * len(labels)
    for index, choice in enumerate(trie.choices):
        weights = [exp(logit[before_choice[index], token]) for token in choice.tokens]
        for weight, beyond in zip(weights, choice.labels, strict=True):
            for label in beyond:
                found[label] *= weight / sum(weights)
    assert found == pytest.approx([constrained_probability(label, labels, logit) for label in labels])
    assert sum(found) == pytest.approx(1.0)

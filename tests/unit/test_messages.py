from __future__ import annotations

import asyncio
import json
from struct import pack

import pytest
from faststream.redis.parser import BinaryMessageFormatV1
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import a_decision
from worker.errors import Reject
from worker.messages import MAX_FIELDS, Entry, dead_fields, parse, revived_fields, routed_fields, sampled_trace

LIMIT = 1000
visible_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100).filter(str.strip)
ascii_headers = st.dictionaries(st.text(st.characters(codec="ascii"), max_size=20), st.text(st.characters(codec="ascii"), max_size=20))
field_maps = st.dictionaries(
    st.one_of(st.sampled_from([b"text", b"__data__", b"pointsman.label", b"id"]), st.binary(max_size=8)), st.binary(max_size=60), max_size=6
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "headers", "text", "x"]), inner, max_size=3),
    max_leaves=8,
)


def entry(fields: dict[bytes, bytes], deliveries: int = 1) -> Entry:
    return Entry("1700000000123-4", fields, deliveries)


def encoded(message: object, headers: dict[str, str] | None = None) -> bytes:
    coroutine = BinaryMessageFormatV1.encode(message=message, reply_to=None, headers=headers, correlation_id="c-1")
    return asyncio.run(coroutine)


def outcome(fields: dict[bytes, bytes]) -> str:
    """The text that is found, or the reason why none is."""
    try:
        return parse(entry(fields), max_text_bytes=LIMIT).text
    except Reject as reject:
        return f"reject {reject.reason}"


def test_an_entry_knows_when_it_was_added() -> None:
    assert entry({}).added_ms == 1700000000123


@given(visible_text)
def test_a_plain_text_is_taken_as_it_is(text: str) -> None:
    assert outcome({b"text": text.encode(), b"id": b"7"}) == text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "missing_text"),
        ({b"Text": b"x"}, "missing_text"),
        ({b"text": b""}, "empty_text"),
        ({b"text": b" \n\t"}, "empty_text"),
        ({b"text": b"\xff\xfe"}, "invalid_utf8"),
        ({b"text": b"x" * (LIMIT + 1)}, "too_large"),
        ({b"text": b"x"} | {str(number).encode(): b"" for number in range(MAX_FIELDS)}, "too_many_fields"),
        ({b"__data__": b""}, "invalid_json"),
        ({b"__data__": b"{"}, "invalid_json"),
        ({b"__data__": b"[" * 100_000}, "invalid_json"),
        ({b"__data__": b"9" * 5000}, "invalid_json"),
        ({b"__data__": b"[]"}, "wrong_type"),
        ({b"__data__": b'{"data": 5}'}, "wrong_type"),
        ({b"__data__": b'{"data": "x \\ud800"}'}, "invalid_utf8"),
        ({b"__data__": b'{"data": "{"}'}, "invalid_json"),
        ({b"__data__": b'{"data": "{}"}'}, "missing_text"),
        ({b"__data__": b'{"data": "{\\"text\\": 5}"}'}, "wrong_type"),
        ({b"__data__": b'{"data": "  "}'}, "empty_text"),
        ({b"__data__": b'{"data": "' + b"x" * (8 * LIMIT + 1) + b'"}'}, "too_large"),
        ({b"__data__": b"\x89BIN\x0d\x0a\x1a\x0a"}, "wrong_type"),
        ({b"__data__": b"\x89BIN\x0d\x0a\x1a\x0a" + pack(">HIIH", 2, 18, 20, 0) + b"x"}, "wrong_type"),
        ({b"__data__": b"\x89BIN\x0d\x0a\x1a\x0a" + pack(">HIIH", 1, 18, 999, 0) + b"x"}, "wrong_type"),
    ],
)
def test_an_entry_without_usable_text_is_rejected_with_its_reason(fields: dict[bytes, bytes], reason: str) -> None:
    assert outcome(fields) == f"reject {reason}"


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT])
def test_a_text_up_to_the_limit_is_accepted(size: int) -> None:
    assert outcome({b"text": b"x" * size}) == "x" * size


def test_a_reject_never_holds_the_text() -> None:
    secret = "my-secret-query"
    with pytest.raises(Reject) as caught:
        parse(entry({b"__data__": json.dumps({"data": '{"text": ["' + secret + '"]}'}).encode()}), max_text_bytes=LIMIT)
    assert secret not in str(caught.value)


@given(visible_text, ascii_headers)
def test_faststreams_envelope_gives_back_the_string_that_was_published(text: str, headers: dict[str, str]) -> None:
    headers.pop("content-type", None)
    assert outcome({b"__data__": encoded(text, headers)}) == text


@given(visible_text)
def test_faststreams_envelope_gives_the_text_of_a_published_object(text: str) -> None:
    assert outcome({b"__data__": encoded({"text": text, "more": [1, 2]})}) == text


@given(visible_text)
def test_the_older_json_envelope_gives_the_same_text(text: str) -> None:
    plain = {"data": text, "headers": {"content-type": "text/plain"}}
    structured = {"data": json.dumps({"text": text}), "headers": {"content-type": "application/json"}}
    assert [outcome({b"__data__": json.dumps(envelope).encode()}) for envelope in (plain, structured)] == [text, text]


def test_a_plain_string_that_looks_like_json_stays_text() -> None:
    assert outcome({b"__data__": encoded('{"text": "inner"}')}) == '{"text": "inner"}'


@given(field_maps)
def test_nothing_but_reject_is_raised_for_any_fields(fields: dict[bytes, bytes]) -> None:
    assert outcome(fields)


@given(json_values)
def test_nothing_but_reject_is_raised_for_any_json_envelope(value: object) -> None:
    assert outcome({b"__data__": json.dumps(value).encode()})
    assert outcome({b"__data__": json.dumps({"data": json.dumps(value), "headers": value}).encode()})


@given(st.binary(max_size=80))
def test_nothing_but_reject_is_raised_for_any_binary_envelope(rest: bytes) -> None:
    assert outcome({b"__data__": b"\x89BIN\x0d\x0a\x1a\x0a" + rest})
    assert outcome({b"__data__": b"\x89BIN\x0d\x0a\x1a\x0a" + pack(">HII", 1, 18, 20) + rest})


@given(visible_text, st.data())
def test_a_damaged_envelope_raises_nothing_but_reject(text: str, data: st.DataObject) -> None:
    envelope = bytearray(encoded({"text": text}))
    at = data.draw(st.integers(0, len(envelope) - 1))
    envelope[at] ^= data.draw(st.integers(1, 255))
    assert outcome({b"__data__": bytes(envelope[: data.draw(st.integers(0, len(envelope)))])})


def test_the_producers_fields_travel_along_and_cannot_forge_the_decision() -> None:
    came = entry({b"text": b"x", b"traceparent": b"00-1", b"pointsman.label": b"forged", b"pointsman.other": b"forged"})
    assert routed_fields(came, a_decision("pool", 0.98765), "v1") == {
        b"text": b"x",
        b"traceparent": b"00-1",
        b"pointsman.id": b"1700000000123-4",
        b"pointsman.label": b"pool",
        b"pointsman.confidence": b"0.9877",
        b"pointsman.model": b"v1",
    }


def test_a_truncated_query_is_marked() -> None:
    assert routed_fields(entry({}), a_decision(truncated=True), "v1")[b"pointsman.truncated"] == b"1"


def test_a_dead_letter_says_why_it_died_and_how_often_it_was_delivered() -> None:
    fields = dead_fields(entry({b"text": b"\xff"}, deliveries=3), Reject("invalid_utf8", "bad"))
    assert fields == {
        b"text": b"\xff",
        b"pointsman.id": b"1700000000123-4",
        b"pointsman.reason": b"invalid_utf8",
        b"pointsman.detail": b"bad",
        b"pointsman.deliveries": b"3",
    }


@given(st.dictionaries(st.binary(max_size=10).filter(lambda name: not name.startswith(b"pointsman.")), st.binary(max_size=20)))
def test_a_revived_dead_letter_has_its_original_bytes(fields: dict[bytes, bytes]) -> None:
    assert revived_fields(dead_fields(entry(fields), Reject("missing_text", "none"))) == fields


def test_too_many_fields_are_packed_into_one_and_come_back() -> None:
    fields = {b"\xff%d" % number: bytes([number % 256]) for number in range(MAX_FIELDS + 1)}
    letter = dead_fields(entry(fields), Reject("too_many_fields", "many"))
    assert len(letter) == 5
    assert revived_fields(letter) == fields


TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("flags", [b"01", b"03", b"ff"])
def test_a_kept_trace_is_recognised_by_its_traceparent(flags: bytes) -> None:
    assert sampled_trace({b"traceparent": b"00-" + TRACE + b"-00f067aa0ba902b7-" + flags}) == TRACE.decode()


@pytest.mark.parametrize(
    "traceparent",
    [
        b"",
        b"00-" + TRACE + b"-00f067aa0ba902b7-00",
        b"ff-" + TRACE + b"-00f067aa0ba902b7-01",
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        b"00-" + TRACE.upper() + b"-00f067aa0ba902b7-01",
        b"00-" + TRACE + b"-00f067aa0ba902b7-01\n",
        b'00-"} 1\n# evil-00f067aa0ba902b7-01',
    ],
)
def test_any_other_traceparent_is_no_trace_to_show(traceparent: bytes) -> None:
    assert sampled_trace({b"traceparent": traceparent}) is None
    assert sampled_trace({}) is None

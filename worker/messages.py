"""What goes in and out on the wire: frozen and typed. Stream id and delivery count travel with the text.

A producer sends plain fields, of which `text` is the query, or FastStream's own envelope in `__data__`,
JSON or binary. Whatever else it sends travels through untouched. Pointsman's own fields begin with
`pointsman.`, so they never collide with the producer's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from worker.classifier import Decision
from worker.errors import Reject

TEXT_FIELD = b"text"
ENVELOPE_FIELD = b"__data__"
OWN_PREFIX = b"pointsman."
LABEL_FIELD = b"pointsman.label"
REASON_FIELD = b"pointsman.reason"
"""Dead letters have it, and nothing else."""
TRACE_FIELDS = (b"traceparent", b"tracestate")
"""The producer's trace context, as W3C writes it; in an envelope headers of these names."""
PACKED_FIELD = b"pointsman.fields"
"""All original fields as one JSON value, where there are too many to carry one by one."""
_PACKED_SIZE = 256 * 1024
"""Of one piece of that: Redis takes no value longer than its proto-max-bulk-len, which is 1 MB at least."""
MAX_FIELDS = 256
"""Fields in one entry; Lua's unpack() sets a limit of some thousands."""
_LONGEST_MESSAGE_ID = 64
"""Longer ones are remembered by their SHA-256."""
_BINARY_ENVELOPE = b"\x89BIN\x0d\x0a\x1a\x0a"
_SAMPLED = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf]")
"""A `traceparent` whose trace somebody keeps."""

Fields = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """One stream entry as Redis gave it."""

    id: str
    fields: Fields
    deliveries: int = 1
    """How often Redis has delivered it, this time included."""

    @property
    def added_ms(self) -> int:
        """When it was added, in milliseconds of Redis' clock."""
        return int(self.id.partition("-")[0])


@dataclass(frozen=True, slots=True)
class Query:
    """An entry whose text was found and is fit to be classified."""

    entry: Entry
    text: str
    message_id: bytes = b""
    """What its producer calls it, where it has a name; empty if not."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What one entry becomes: the stream it goes to and the fields it carries there."""

    entry: Entry
    stream: str
    fields: Fields
    message_id: bytes = b""
    """Where it is given, no other message of that id is published for a while."""


def parse(entry: Entry, *, max_text_bytes: int, message_id_field: str | None = None) -> Query:
    """Find the query's text in an entry.

    Args:
        message_id_field: the field, or in an envelope the header, that names the message.

    Raises:
        Reject: there is no usable text; the reason names the field.
    """
    if len(entry.fields) > MAX_FIELDS:
        raise Reject("too_many_fields", f"{len(entry.fields)} fields, at most {MAX_FIELDS} are allowed")
    headers: Mapping[str, Any] = {}
    if ENVELOPE_FIELD in entry.fields:
        name, (data, headers) = "__data__", _open_envelope(entry.fields[ENVELOPE_FIELD], max_text_bytes)
    elif TEXT_FIELD in entry.fields:
        name, data = "text", entry.fields[TEXT_FIELD]
    else:
        raise Reject("missing_text", "the entry has neither a field 'text' nor FastStream's '__data__'")
    if len(data) > max_text_bytes:
        raise Reject("too_large", f"field '{name}' holds {len(data)} bytes of text, at most {max_text_bytes} are allowed")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Reject("invalid_utf8", f"field '{name}' is not UTF-8 (byte {error.start})") from error
    if not text.strip():
        raise Reject("empty_text", f"field '{name}' holds no text")
    return Query(entry, text, _message_id(entry.fields, headers, message_id_field) if message_id_field else b"")


def _message_id(fields: Fields, headers: Mapping[str, Any], name: str) -> bytes:
    value = fields.get(name.encode()) or str(headers.get(name) or "").encode("utf-8", errors="surrogatepass")
    return value if len(value) <= _LONGEST_MESSAGE_ID else hashlib.sha256(value).digest()


def _open_envelope(envelope: bytes, max_text_bytes: int) -> tuple[bytes, Mapping[str, Any]]:
    """The text inside FastStream's envelope (BinaryMessageFormatV1, or the older JSON one), and the headers."""
    if envelope.startswith(_BINARY_ENVELOPE):
        body, headers = _read_binary_envelope(envelope)
    else:
        outer = _json(envelope, "__data__")
        if not isinstance(outer, dict) or not isinstance(outer.get("data"), str):
            raise Reject("wrong_type", "field '__data__' must be a JSON object whose 'data' is a string")
        given = outer.get("headers")
        headers = given if isinstance(given, dict) else {}
        body = outer["data"].encode("utf-8", errors="surrogatepass")
    if len(body) > 8 * max_text_bytes:
        raise Reject("too_large", f"field '__data__' holds {len(body)} bytes, at most {8 * max_text_bytes} are allowed")
    if headers.get("content-type") == "text/plain" or not body.lstrip().startswith((b"{", b'"')):
        return body, headers
    value = _json(body, "__data__.data")
    text = value.get("text") if isinstance(value, dict) else value
    if text is None:
        raise Reject("missing_text", "the JSON object in field '__data__.data' has no 'text'")
    if not isinstance(text, str):
        raise Reject("wrong_type", f"'text' in field '__data__.data' is a {type(text).__name__}, not a string")
    return text.encode("utf-8", errors="surrogatepass"), headers


def _read_binary_envelope(envelope: bytes) -> tuple[bytes, Mapping[str, Any]]:
    """Body and headers. Layout: magic, version (u16), header offset and body offset (u32), headers, body."""
    try:
        version, headers_at, body_at = struct.unpack_from(">HII", envelope, len(_BINARY_ENVELOPE))
        if version != 1 or body_at > len(envelope):
            raise ValueError("unknown version or truncated")
        (count,) = struct.unpack_from(">H", envelope, headers_at)
        position, strings = headers_at + 2, []
        for _ in range(2 * count):
            (length,) = struct.unpack_from(">H", envelope, position)
            strings.append(envelope[position + 2 : position + 2 + length].decode())
            position += 2 + length
    except (struct.error, ValueError) as error:
        raise Reject("wrong_type", "field '__data__' is a damaged FastStream binary envelope") from error
    return envelope[body_at:], dict(zip(strings[::2], strings[1::2], strict=True))


def _json(data: bytes, field: str) -> object:
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise Reject("invalid_utf8", f"field '{field}' is not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise Reject("invalid_json", f"field '{field}' is not JSON") from error


def trace_context(entry: Entry) -> dict[str, str]:
    """The producer's trace context by the names of TRACE_FIELDS, unchecked; empty where it gave none."""
    given: Mapping[str, Any] = {}
    if TRACE_FIELDS[0] in entry.fields:
        given = {name.decode(): value.decode("ascii", errors="replace") for name, value in entry.fields.items() if name in TRACE_FIELDS}
    elif ENVELOPE_FIELD in entry.fields:
        with suppress(Reject):
            _, given = _open_envelope(entry.fields[ENVELOPE_FIELD], len(entry.fields[ENVELOPE_FIELD]))
    return {name: value for name in map(bytes.decode, TRACE_FIELDS) if isinstance(value := given.get(name), str)}


def sampled_trace(fields: Fields) -> str | None:
    """The id of the trace that an entry belongs to, 32 hexadecimal digits, if it says one that is kept."""
    found = _SAMPLED.fullmatch(fields.get(TRACE_FIELDS[0], b""))
    return found[1].decode() if found else None


def routed_fields(entry: Entry, decision: Decision, model_version: str) -> dict[bytes, bytes]:
    """The producer's fields and, beside them, the decision."""
    return _original(entry) | {
        b"pointsman.id": entry.id.encode(),
        LABEL_FIELD: decision.label.encode(),
        b"pointsman.confidence": f"{decision.confidence:.4f}".encode(),
        b"pointsman.model": model_version.encode(),
        **({b"pointsman.truncated": b"1"} if decision.truncated else {}),
    }


def dead_fields(entry: Entry, reject: Reject) -> dict[bytes, bytes]:
    """The original bytes and, beside them, why the entry died and its history."""
    if len(entry.fields) > MAX_FIELDS:
        pairs = [[base64.b64encode(part).decode() for part in pair] for pair in entry.fields.items()]
        packed = json.dumps(pairs).encode()
        size = max(_PACKED_SIZE, len(packed) // 1000)
        original = {PACKED_FIELD + b"." + str(at // size).encode(): packed[at : at + size] for at in range(0, len(packed), size)}
    else:
        original = _original(entry)
    return original | {
        b"pointsman.id": entry.id.encode(),
        REASON_FIELD: reject.reason.encode(),
        b"pointsman.detail": reject.detail.encode(),
        b"pointsman.deliveries": str(entry.deliveries).encode(),
    }


def revived_fields(fields: Fields) -> dict[bytes, bytes]:
    """What a dead letter was before it died: for replay."""
    packed = [value for name, value in fields.items() if name == PACKED_FIELD or name.startswith(PACKED_FIELD + b".")]
    if packed:
        return {base64.b64decode(name): base64.b64decode(value) for name, value in json.loads(b"".join(packed))}
    return {name: value for name, value in fields.items() if not name.startswith(OWN_PREFIX)}


def _original(entry: Entry) -> dict[bytes, bytes]:
    return {name: value for name, value in entry.fields.items() if not name.startswith(OWN_PREFIX)}

"""Stream entries for the fuzz, sound and damaged, all from one seed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

from faststream.redis.parser import BinaryMessageFormatV1

from worker.messages import MAX_FIELDS

Pairs = list[tuple[bytes, bytes]]
"""Names and values as a producer sends them. Redis lets a name come twice."""

SOUND = 0.3
"""Share of the entries that are left alone."""
HUGE = 0.003
"""Share of the entries of which a value is made huge."""
HUGE_BYTES = 100_000
KEPT_TO_SPLICE = 500
_NAMES = (b"text", b"__data__", b"Text", b"", b"id", b"pointsman.id", b"pointsman.fields", b"pointsman.reason", b"\xff\x00", b"data", b"9")
_ODD_TEXTS = (
    *("", " \n\t", "{", '"', "[]", "null", '{"text": 5}', '{"text": "inner"}', '{"no": "text"}', "\x00", "\ufeff", "\ud800", "<|im_end|>"),
    *("привет, где насос", "プールのポンプ", "🏊" * 9, "é" * 300, "9" * 5000, "[" * 2000, "\u2028", "a\r\nb"),
)
_ODD_VALUES: tuple[Any, ...] = (None, True, 5, 1e300, -0.0, [], {}, ["text"], {"text": None}, {"text": ["x"]}, [[[]]], "", "\udfff")
_ODD_BYTES = (b"", b"\x00", b"\xff", b'"', b"\\", b"{", b"}", b"\x89BIN\x0d\x0a\x1a\x0a", b"\x00\x01", b"\xff\xff\xff\xff", b"\xef\xbb\xbf")


class Mutants:
    """Entries without end: what producers send, and what damage makes of it."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        self._dice, self._texts = random.Random(seed), texts
        self._seen: list[bytes] = [b"text"]
        """Some values of earlier entries, to splice with."""

    def take(self, count: int) -> list[Pairs]:
        """The next entries."""
        return asyncio.run(self._take(count))

    async def _take(self, count: int) -> list[Pairs]:
        dice, taken = self._dice, []
        for _ in range(count):
            pairs = await self._sound()
            if dice.random() >= SOUND:
                for _ in range(dice.choice((1, 1, 1, 2, 3))):
                    dice.choice(_DAMAGES)(self, pairs)
            if dice.random() < HUGE:
                self._grow(pairs)
            taken.append(pairs)
        return taken

    async def _sound(self) -> Pairs:
        """One of the forms that are accepted, with a text that need not be."""
        dice = self._dice
        text = dice.choice(_ODD_TEXTS) if dice.random() < 0.1 else dice.choice(self._texts)
        pairs: Pairs
        match dice.choice(("plain", "JSON", "binary")):
            case "plain":
                pairs = [(b"text", text.encode(errors="surrogatepass"))]
            case "JSON":
                envelope = json.dumps(self._json_envelope(text), ensure_ascii=dice.random() < 0.5)
                pairs = [(b"__data__", envelope.encode(errors="surrogatepass"))]
            case _:
                pairs = [(b"__data__", await self._binary_envelope(text))]
        if dice.random() < 0.5:
            pairs.insert(dice.randrange(2), (b"id", b"%d" % dice.randrange(10**6)))
        if len(self._seen) < KEPT_TO_SPLICE:
            self._seen.append(pairs[-1][1])
        else:
            self._seen[dice.randrange(KEPT_TO_SPLICE)] = pairs[-1][1]
        return pairs

    async def _binary_envelope(self, text: str) -> bytes:
        """FastStream's own; it encodes no object with half a surrogate pair."""
        as_object = self._dice.random() < 0.5 and "\ud800" not in text
        return await BinaryMessageFormatV1.encode(
            message={"text": text} if as_object else text.encode(errors="surrogatepass"),
            reply_to=None,
            headers=self._dice.choice((None, {"content-type": "text/plain"}, {"message-id": "m-1"})),
            correlation_id="c-1",
        )

    def _json_envelope(self, text: str) -> Any:
        dice = self._dice
        data: Any = text if dice.random() < 0.5 else json.dumps({"text": text})
        envelope: Any = {"data": data, "headers": {"content-type": dice.choice(("text/plain", "application/json", ""))}}
        if dice.random() < 0.2:
            odd = dice.choice(_ODD_VALUES)
            return dice.choice((odd, envelope | {"data": odd}, envelope | {"headers": odd}, envelope | {"data": json.dumps({"text": odd})}))
        return envelope

    def _change_value(self, pairs: Pairs, change: Any) -> None:
        at = self._dice.randrange(len(pairs))
        name, value = pairs[at]
        pairs[at] = name, change(value)

    def _flip(self, pairs: Pairs) -> None:
        def flip(value: bytes) -> bytes:
            changed = bytearray(value or b"\x00")
            for _ in range(self._dice.choice((1, 1, 2, 5))):
                changed[self._dice.randrange(len(changed))] ^= 1 << self._dice.randrange(8)
            return bytes(changed)

        self._change_value(pairs, flip)

    def _cut(self, pairs: Pairs) -> None:
        def cut(value: bytes) -> bytes:
            at, end = sorted((self._dice.randint(0, len(value)), self._dice.randint(0, len(value))))
            return self._dice.choice((value[:at], value[at:], value[:at] + value[end:]))

        self._change_value(pairs, cut)

    def _double(self, pairs: Pairs) -> None:
        self._change_value(pairs, lambda value: value + value)

    def _splice(self, pairs: Pairs) -> None:
        def splice(value: bytes) -> bytes:
            other = self._dice.choice(self._seen)
            return value[: self._dice.randint(0, len(value))] + other[self._dice.randint(0, len(other)) :]

        self._change_value(pairs, splice)

    def _put_in(self, pairs: Pairs) -> None:
        def put_in(value: bytes) -> bytes:
            at, what = self._dice.randint(0, len(value)), self._dice.choice((*_ODD_BYTES, self._dice.randbytes(4)))
            return value[:at] + what + value[at:]

        self._change_value(pairs, put_in)

    def _replace(self, pairs: Pairs) -> None:
        self._change_value(pairs, lambda _: self._dice.choice((*_ODD_BYTES, self._dice.randbytes(self._dice.randrange(60)))))

    def _rename(self, pairs: Pairs) -> None:
        at = self._dice.randrange(len(pairs))
        pairs[at] = self._dice.choice(_NAMES), pairs[at][1]

    def _drop(self, pairs: Pairs) -> None:
        """The last one stays, for Redis takes no entry without fields."""
        if len(pairs) > 1:
            del pairs[self._dice.randrange(len(pairs))]

    def _add(self, pairs: Pairs) -> None:
        """Some fields; the same name may come twice."""
        for _ in range(self._dice.choice((1, 1, 2, 6))):
            pairs.insert(self._dice.randint(0, len(pairs)), (self._dice.choice(_NAMES), self._dice.choice(self._seen)))

    def _add_many(self, pairs: Pairs) -> None:
        """Seldom, since they are large; around the limit, or far beyond it."""
        if self._dice.random() < 0.1:
            count = self._dice.choice((MAX_FIELDS - 2, MAX_FIELDS - 1, MAX_FIELDS, 2 * MAX_FIELDS, 20 * MAX_FIELDS))
            pairs += [(b"%d" % number, b"%x" % number) for number in range(count)]

    def _grow(self, pairs: Pairs) -> None:
        size = self._dice.randint(HUGE_BYTES // 2, HUGE_BYTES)
        self._change_value(pairs, lambda value: ((value or b"x") * (size // max(len(value), 1) + 1))[:size])


_DAMAGES = (
    *(Mutants._flip, Mutants._cut, Mutants._double, Mutants._splice, Mutants._put_in, Mutants._replace),
    *(Mutants._rename, Mutants._drop, Mutants._add, Mutants._add_many),
)

"""The dead stream, for people: look at what was rejected and send it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from worker.messages import ENVELOPE_FIELD, TEXT_FIELD, Fields, revived_fields
from worker.routing import Streams

PAGE = 200
_MOST_FIELDS = 3900
"""Lua's unpack() goes no further than some 8,000 values."""

_REPLAY = """
if #redis.call("XRANGE", KEYS[1], ARGV[1], ARGV[1]) == 0 then return false end
local added = redis.call("XADD", KEYS[2], "*", unpack(ARGV, 2))
redis.call("XDEL", KEYS[1], ARGV[1])
return added
"""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One entry of the dead stream."""

    id: str
    reason: str
    detail: str
    deliveries: int
    fields: Fields

    @property
    def died_ms(self) -> int:
        """When it was put there, in milliseconds of Redis' clock."""
        return int(self.id.partition("-")[0])

    @property
    def text(self) -> str:
        """What can be read of the text or, in an envelope, of the envelope."""
        original = revived_fields(self.fields)
        return original.get(TEXT_FIELD, original.get(ENVELOPE_FIELD, b"")).decode("utf-8", errors="replace")


async def dead_letters(
    redis: Redis, streams: Streams, *, reason: str | None = None, only_id: str | None = None
) -> AsyncIterator[DeadLetter]:
    """All dead letters from the oldest on, or those of one reason or id."""
    start = only_id or "-"
    while rows := cast("Any", await redis.xrange(streams.dead, min=start, max=only_id or "+", count=PAGE)):
        for entry_id, fields in rows:
            letter = DeadLetter(
                entry_id.decode(),
                fields.get(b"pointsman.reason", b"unknown").decode(errors="replace"),
                fields.get(b"pointsman.detail", b"").decode(errors="replace"),
                int(fields.get(b"pointsman.deliveries", b"1")),
                fields,
            )
            if reason is None or letter.reason == reason:
                yield letter
        if only_id is not None:
            return
        start = f"({rows[-1][0].decode()}"


async def replay(redis: Redis, streams: Streams, letter: DeadLetter) -> str | None:
    """Move a dead letter back to the stream of queries, atomically, with its original fields.

    Returns its new id there, or None if someone else has moved or deleted it meanwhile.

    Raises:
        ValueError: it cannot be sent again as it was.
        ResponseError: Redis refuses it.
    """
    original = revived_fields(letter.fields)
    if not original:
        raise ValueError("it had no field of its own")
    if len(original) > _MOST_FIELDS:
        raise ValueError(f"it has {len(original)} fields, more than a script can send ({_MOST_FIELDS}) and than a worker takes")
    arguments: list[bytes | str] = [letter.id]
    for pair in original.items():
        arguments += pair
    added = await redis.eval(_REPLAY, 2, streams.dead, streams.queries, *arguments)
    return None if added is None else added.decode()


async def purge(redis: Redis, streams: Streams, *, older_than_s: float, reason: str | None = None) -> int:
    """Delete dead letters that are older, by Redis' clock; all or those of one reason. Returns how many."""
    seconds, microseconds = await redis.time()
    oldest_kept_ms = int(seconds * 1000 + microseconds // 1000 - older_than_s * 1000)
    purged = 0
    async for letter in dead_letters(redis, streams, reason=reason):
        if letter.died_ms >= oldest_kept_ms:
            break
        purged += int(await redis.xdel(streams.dead, letter.id))
    return purged

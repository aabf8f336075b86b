"""Follow every output stream of a namespace, new topics included, as `tail -f` does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from worker.dead_letters import DeadLetter
from worker.messages import Fields
from worker.routing import Streams

LOOK_FOR_STREAMS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Followed:
    """One entry seen on an output stream."""

    stream: str
    id: str
    fields: Fields

    @property
    def place(self) -> str:
        return place(self.stream)

    @property
    def text(self) -> str:
        return DeadLetter(self.id, "", "", 1, self.fields).text

    @property
    def note(self) -> str:
        """How sure the model was, or why the entry died."""
        if (confidence := self.fields.get(b"pointsman.confidence")) is not None:
            return f"{float(confidence):.1%}"
        return self.fields.get(b"pointsman.reason", b"").decode(errors="replace")

    def as_dict(self) -> dict[str, Any]:
        fields = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in self.fields.items()}
        return {"stream": self.stream, "id": self.id, "fields": fields}


def place(stream: str) -> str:
    """The last part of an output stream's name: a topic, `review` or `dead`."""
    return stream.rpartition(":")[2]


async def output_streams(redis: Redis, streams: Streams) -> set[str]:
    """The names of review, dead and all topics that there are. Goes through all keys of the database."""
    topics = {name.decode() async for name in redis.scan_iter(match=_literal(streams.topic("x"))[:-1] + "*", count=1000)}
    return topics | {streams.review, streams.dead}


async def follow(redis: Redis, streams: Streams, *, from_start: bool) -> AsyncIterator[Followed]:
    """Yield entries as they arrive; from the oldest on, or only what comes from now on."""
    positions: dict[str, str] = {}
    looked_at = float("-inf")
    first = True
    while True:
        if time.monotonic() - looked_at > LOOK_FOR_STREAMS_EVERY_S:
            for name in await output_streams(redis, streams) - positions.keys():
                positions[name] = await _last_id(redis, name) if first and not from_start else "0-0"
            first, looked_at = False, time.monotonic()
        found: Any = await redis.xread(cast("Any", positions), count=100, block=500)
        for raw_name, entries in found or []:
            name = raw_name.decode()
            for entry_id, fields in entries:
                positions[name] = entry_id.decode()
                yield Followed(name, entry_id.decode(), fields)


async def _last_id(redis: Redis, stream: str) -> str:
    newest: Any = await redis.xrevrange(stream, count=1)
    return str(newest[0][0].decode()) if newest else "0-0"


def _literal(pattern: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in pattern)

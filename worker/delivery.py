"""Publish and acknowledge, atomically: one Lua script a batch (delivery.lua says why in that order)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker.errors import NotDelivered
from worker.messages import Outgoing

Retention = Literal["keep", "delete"]
_SCRIPT = files("worker").joinpath("delivery.lua").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Delivered:
    """The entry was published and acknowledged."""

    id: str
    """Its id in the destination stream."""
    latency_ms: int
    """From the producer's XADD to this one, both by Redis' clock."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The entry was no longer pending: another worker has published it, so this one did not."""


Result = Delivered | Duplicate | NotDelivered


class Delivery:
    """Hands batches over to Redis for one consumer group."""

    def __init__(self, redis: Redis, queries: str, group: str, retention: Retention) -> None:
        self._queries, self._group, self._retention = queries, group, retention
        self._script = redis.register_script(_SCRIPT)

    async def deliver(self, batch: Sequence[Outgoing]) -> list[Result]:
        """Publish each entry to its stream if it is still pending, and acknowledge it.

        Returns one result per entry, in order. Safe to call again with the same entries.

        Raises:
            RedisError: Redis could not be reached or refused the whole batch; nothing is known to be
                delivered, call again.
        """
        keys = [self._queries]
        arguments: list[str | bytes | int] = [self._group, self._retention]
        for outgoing in batch:
            if outgoing.stream not in keys[1:]:
                keys.append(outgoing.stream)
            arguments += (outgoing.entry.id, keys.index(outgoing.stream, 1) + 1, 2 * len(outgoing.fields))
            for pair in outgoing.fields.items():
                arguments += pair
        replies: list[Any] = await self._script(keys=keys, args=arguments)
        return [_result(outgoing, reply) for outgoing, reply in zip(batch, replies, strict=True)]


def _result(outgoing: Outgoing, reply: bytes | ResponseError | None) -> Result:
    if isinstance(reply, ResponseError):
        return NotDelivered(str(reply))
    if reply is None:
        return Duplicate()
    new_id = reply.decode()
    return Delivered(new_id, max(0, int(new_id.partition("-")[0]) - outgoing.entry.added_ms))

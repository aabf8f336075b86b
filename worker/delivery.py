"""Publish and acknowledge, atomically: one Lua script a batch (delivery.lua says why in that order)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker.errors import NotDelivered
from worker.messages import Outgoing
from worker.routing import Streams

Retention = Literal["keep", "delete"]
WAITED_OUT = (
    *("OOM", "READONLY", "MISCONF", "NOPERM", "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "TRYAGAIN"),
    *("WRONGTYPE", "FULL"),
)
"""Codes of refusals that someone can mend, or that pass."""
_CODE = re.compile(r"\b[A-Z]{3,}\b")
SCRIPT = files("worker").joinpath("delivery.lua").read_text(encoding="utf-8")


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


@dataclass(frozen=True, slots=True)
class Repeated:
    """A message of the same id was published of late: the entry was acknowledged and not published."""


Result = Delivered | Duplicate | Repeated | NotDelivered


class Delivery:
    """Hands batches over to Redis for one consumer group.

    Args:
        max_topic_length: entries at which a stream takes no more; the dead stream always does.
        deduplicate_for_s: how long the ids of published messages are remembered; 0 for not at all.
    """

    def __init__(
        self,
        redis: Redis,
        streams: Streams,
        group: str,
        retention: Retention,
        *,
        max_topic_length: int | None = None,
        deduplicate_for_s: float = 0.0,
    ) -> None:
        self._streams, self._max_topic_length = streams, max_topic_length or 0
        self._header = (group, retention, int(deduplicate_for_s * 1000))
        self._script = redis.register_script(SCRIPT)

    async def deliver(self, batch: Sequence[Outgoing]) -> list[Result]:
        """Publish each entry to its stream if it is still pending, and acknowledge it.

        Returns one result per entry, in order. Safe to call again with the same entries.

        Raises:
            RedisError: Redis could not be reached or refused the whole batch; nothing is known to be
                delivered, call again.
        """
        keys = {self._streams.queries: 1, self._streams.seen: 2}
        arguments: list[str | bytes | int] = [*self._header]
        for outgoing in batch:
            destination = keys.setdefault(outgoing.stream, len(keys) + 1)
            limit = 0 if outgoing.stream == self._streams.dead else self._max_topic_length
            arguments += (outgoing.entry.id, destination, limit, outgoing.message_id, 2 * len(outgoing.fields))
            for pair in outgoing.fields.items():
                arguments += pair
        replies: list[Any] = await self._script(keys=list(keys), args=arguments)
        return [_result(outgoing, reply) for outgoing, reply in zip(batch, replies, strict=True)]


def refusal_code(error: Exception) -> str:
    """Why Redis does not take something: one of WAITED_OUT, `unreachable`, or `other`.

    redis-py takes the codes that it knows off the message. Redis before 7 puts the code that a command in a script got
    behind "ERR Error running script (...): -", and for a missing permission it gives none.
    """
    if "The user executing the script can't" in str(error):
        return "NOPERM"
    given = str(getattr(error, "status_code", None) or "")
    found: list[str] = [given, *_CODE.findall(str(error))]
    for code in found:
        if code in WAITED_OUT:
            return code
    return "other" if isinstance(error, ResponseError) else "unreachable"


def _result(outgoing: Outgoing, reply: bytes | int | ResponseError | None) -> Result:
    if isinstance(reply, ResponseError):
        return NotDelivered(str(reply), refusal_code(reply))
    if reply is None:
        return Duplicate()
    if isinstance(reply, int):
        return Repeated()
    new_id = reply.decode()
    return Delivered(new_id, max(0, int(new_id.partition("-")[0]) - outgoing.entry.added_ms))

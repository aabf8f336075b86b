"""What Redis says at one moment of a namespace's streams and of the group that reads its queries. No query's text is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker.follow import output_streams
from worker.recovery import backlog
from worker.routing import Streams

RECENT_DEAD = 100
"""Dead letters, the newest, whose reasons are counted."""

# XINFO STREAM answers with whole entries; a script leaves their fields in Redis, and makes all streams' counts one moment's.
_COUNT = """
local time = redis.call("TIME")
local found = {}
for at, key in ipairs(KEYS) do
  local info = redis.pcall("XINFO", "STREAM", key)
  if info.err and not string.find(info.err, "no such key", 1, true) and not string.find(info.err, "WRONGTYPE", 1, true) then return info end
  local stream, newest = {}, {}
  if not info.err then
    for row = 1, #info, 2 do stream[info[row]] = info[row + 1] end
    for row = 1, #(stream["last-entry"] and stream["last-entry"][2] or {}), 2 do
      newest[stream["last-entry"][2][row]] = stream["last-entry"][2][row + 1]
    end
  end
  found[at] = not info.err and {
    stream.length,
    stream["entries-added"] or false,
    stream["last-generated-id"],
    stream["last-entry"] and stream["last-entry"][1] or false,
    newest["pointsman.id"] or false,
    newest["pointsman.model"] or false,
  }
end
return { time[1] + 0, time[2] + 0, found }
"""
_REASONS = """
local found = {}
for _, entry in ipairs(redis.call("XREVRANGE", KEYS[1], "+", "-", "COUNT", ARGV[1])) do
  local reason = "unknown"
  for at = 1, #entry[2], 2 do
    if entry[2][at] == "pointsman.reason" then reason = entry[2][at + 1] end
  end
  found[#found + 1] = { entry[1], reason }
end
return found
"""


@dataclass(frozen=True, slots=True)
class Count:
    """The entries of one stream."""

    length: int
    added: int | None
    """Ever, also those that were deleted since; None before Redis 7.0, which does not count them."""
    last_id: str
    """Of the last entry ever added."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest message that is on an output stream."""

    published_ms: int
    """By Redis' clock."""
    latency_ms: int | None
    """From its XADD to the stream of queries; None where the entry does not say which that was."""
    model: str | None
    """The version that decided; None for a dead letter."""


@dataclass(frozen=True, slots=True)
class Group:
    """The consumer group that all workers share."""

    lag: int | None
    """Entries never read by it; None where Redis cannot say how many."""
    pending: int
    oldest_pending_ms: int | None
    """When the oldest entry was added that is read and not acknowledged, by Redis' clock; None if there is none."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """One name in the group."""

    name: str
    pending: int
    """Entries that it has read and not yet acknowledged."""
    idle_ms: int
    """Since Redis last heard of it; before Redis 7.2, since it last got an entry."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Of one dead letter: when and why, not what."""

    died_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it, at one moment."""

    at_ms: float
    """Redis' clock."""
    queries: Count | None
    """None if there is no such stream."""
    group: Group | None
    """None if there is no such group."""
    consumers: tuple[Consumer, ...]
    outputs: dict[str, Count]
    """By the stream's name: topics, review and dead. A stream that is not there is left out."""
    newest: Newest | None
    dead: tuple[Dead, ...]
    """The newest RECENT_DEAD, newest first."""


async def take(redis: Redis, streams: Streams, group: str, before: Snapshot | None = None) -> Snapshot:
    """Ask Redis.

    Args:
        before: an earlier answer; dead letters are read again only if their stream has changed since.

    Raises:
        REDIS_ERRORS: Redis cannot be reached, or refuses.
    """
    waiting = await backlog(redis, streams.queries, group)
    consumers = await _consumers(redis, streams.queries, group) if waiting else ()
    names = sorted(await output_streams(redis, streams))
    seconds, microseconds, found = await redis.eval(_COUNT, 1 + len(names), streams.queries, *names)
    counts = [None if row is None else _count(row) for row in found]
    outputs = {name: count for name, count in zip(names, counts[1:], strict=True) if count is not None}
    dead_now = outputs.get(streams.dead)
    if before is not None and dead_now == before.outputs.get(streams.dead):
        dead = before.dead
    else:
        dead = await _newest_dead(redis, streams.dead) if dead_now else ()
    return Snapshot(
        seconds * 1000 + microseconds / 1000,
        counts[0],
        None if waiting is None else Group(waiting.lag, waiting.pending, _ms(waiting.oldest) if waiting.oldest else None),
        consumers,
        outputs,
        max((newest for row in found[1:] if row and (newest := _newest(row))), key=lambda one: one.published_ms, default=None),
        dead,
    )


def _count(row: Sequence[Any]) -> Count:
    return Count(int(row[0]), None if row[1] is None else int(row[1]), row[2].decode())


def _newest(row: Sequence[Any]) -> Newest | None:
    if row[3] is None:
        return None
    published_ms = _ms(row[3].decode())
    latency_ms = None if row[4] is None else max(0, published_ms - _ms(row[4].decode(errors="replace")))
    return Newest(published_ms, latency_ms, None if row[5] is None else row[5].decode(errors="replace"))


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


async def _consumers(redis: Redis, queries: str, group: str) -> tuple[Consumer, ...]:
    try:
        rows: Any = await redis.xinfo_consumers(queries, group)
    except ResponseError as error:
        if "NOGROUP" in str(error) or "no such key" in str(error):  # lost since it was asked for
            return ()
        raise
    found = (Consumer(row["name"].decode(errors="replace"), int(row["pending"]), int(row["idle"])) for row in rows)
    return tuple(sorted(found, key=lambda consumer: consumer.name))


async def _newest_dead(redis: Redis, stream: str) -> tuple[Dead, ...]:
    rows = await redis.eval(_REASONS, 1, stream, RECENT_DEAD)
    return tuple(Dead(_ms(entry_id.decode()), reason.decode(errors="replace")) for entry_id, reason in rows)

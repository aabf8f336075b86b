"""What dies is taken over: lost groups, stuck entries, and what a stopping worker leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker.messages import Entry

_CLAIM = """
local idle_ms, count = tonumber(ARGV[3]), tonumber(ARGV[4])
local claimed, start, consumers = {}, "-", nil

local function lives(name)
  if not consumers then
    consumers = {}
    for _, row in ipairs(redis.call("XINFO", "CONSUMERS", KEYS[1], ARGV[1])) do
      local consumer = {}
      for at = 1, #row, 2 do consumer[row[at]] = row[at + 1] end
      consumers[consumer.name] = consumer.idle < idle_ms
    end
  end
  return consumers[name]
end

repeat
  local rows = redis.call("XPENDING", KEYS[1], ARGV[1], "IDLE", idle_ms, start, "+", count)
  for _, row in ipairs(rows) do
    local id, times = row[1], row[4] + 1
    local entry = redis.call("XRANGE", KEYS[1], id, id)[1]
    if entry then
      redis.call("XCLAIM", KEYS[1], ARGV[1], ARGV[2], 0, id, "RETRYCOUNT", times, "JUSTID")
      claimed[#claimed + 1] = { id, entry[2], times }
    elseif not lives(row[2]) then
      redis.call("XACK", KEYS[1], ARGV[1], id)
    end
    start = "(" .. id
  end
until #claimed > 0 or #rows < count
return claimed
"""
_KEEP_FRESH = """
local kept, gone = {}, false
for at = 3, #ARGV do
  local id = ARGV[at]
  if #redis.call("XPENDING", KEYS[1], ARGV[1], id, id, 1, ARGV[2]) > 0 then
    if #redis.call("XRANGE", KEYS[1], id, id) > 0 then
      kept[#kept + 1] = id
    else
      gone = true
    end
  end
end
if gone then
  -- XCLAIM of an entry that was deleted from the stream would drop it. This finds nothing, and is a sign of life.
  redis.call("XREADGROUP", "GROUP", ARGV[1], ARGV[2], "COUNT", 1, "STREAMS", KEYS[1], "18446744073709551615-0")
end
if #kept > 0 then
  table.insert(kept, "JUSTID")
  redis.call("XCLAIM", KEYS[1], ARGV[1], ARGV[2], 0, unpack(kept))
end
return #kept
"""
_LEAVE = """
if #redis.call("XPENDING", KEYS[1], ARGV[1], "-", "+", 1, ARGV[2]) == 0 then
  return redis.call("XGROUP", "DELCONSUMER", KEYS[1], ARGV[1], ARGV[2])
end
return -1
"""
_FORGET = """
local gone = 0
for _, row in ipairs(redis.call("XINFO", "CONSUMERS", KEYS[1], ARGV[1])) do
  local consumer = {}
  for at = 1, #row, 2 do consumer[row[at]] = row[at + 1] end
  if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) then
    redis.call("XGROUP", "DELCONSUMER", KEYS[1], ARGV[1], consumer.name)
    gone = gone + 1
  end
end
return gone
"""
_KEPT_AT_ONCE = 1000
"""Lua's unpack() sets a limit of some thousands."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much work waits for a group."""

    lag: int | None
    """Entries never read by the group; None where there are some and Redis (before 7.0, or after XDEL) cannot say how many."""
    pending: int
    resume_from: str
    """Where a group must start that takes this one's place: after the last entry of which all before are done."""
    oldest: str | None = None
    """The id of the oldest pending entry."""


async def make_group(redis: Redis, queries: str, group: str, resume_from: str = "0") -> str:
    """Make the group if there is none. Returns the entry after which it starts.

    Args:
        resume_from: where to start: at "0", so that what was queued before is not skipped; or for a group that was lost,
            at what `backlog` last said of it. Everything from the oldest entry on that was not done then is routed
            again rather than lost.
    """
    if resume_from != "0" and not await _reaches(redis, queries, resume_from):
        resume_from = "0"
    try:
        await redis.xgroup_create(queries, group, id=resume_from, mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
    return resume_from


async def _reaches(redis: Redis, queries: str, entry_id: str) -> bool:
    """Whether the stream goes on from that entry. One that was deleted, or made anew by a clock that is behind, does not."""
    if not await redis.exists(queries):
        return False
    last_id: bytes = (await redis.xinfo_stream(queries))["last-generated-id"]
    return _parts(last_id.decode()) >= _parts(entry_id)


async def claim_stuck(redis: Redis, queries: str, group: str, consumer: str, *, idle_ms: int, count: int) -> list[Entry]:
    """Claim entries that no one has touched for `idle_ms`, the oldest first, with how often they were delivered.

    XAUTOCLAIM would look at ten times `count` pending entries and go no further, however fresh those are, and before Redis 7 it
    stumbles over entries that were deleted from the stream. Those are no longer pending after this, unless the worker that
    holds them lives: it still has their text, and will deliver them.
    """
    rows = await redis.eval(_CLAIM, 1, queries, group, consumer, idle_ms, count)
    return [Entry(entry_id.decode(), dict(zip(fields[::2], fields[1::2], strict=True)), times) for entry_id, fields, times in rows]


async def keep_fresh(redis: Redis, queries: str, group: str, consumer: str, ids: Sequence[str]) -> None:
    """Start anew the idle time of entries that this consumer still holds, so that no one claims them from it.

    In one script: an entry that another worker has claimed meanwhile stays with that one. Delivery counts stay. Where entries were
    trimmed from the stream the consumer itself is seen anew: they stay with it for as long as it lives.
    """
    for start in range(0, len(ids), _KEPT_AT_ONCE):
        await redis.eval(_KEEP_FRESH, 1, queries, group, consumer, *ids[start : start + _KEPT_AT_ONCE])


async def forget_dead_consumers(redis: Redis, queries: str, group: str, *, idle_ms: int) -> int:
    """Remove consumers that hold nothing and have not been seen for `idle_ms`. Returns how many.

    In one script: no entry can be given to one in between, which would then be lost with it. One that was only thought
    dead comes back with its next entry; before Redis 7.2, where a read that finds nothing is no sign of life, idle ones are.
    """
    return int(await redis.eval(_FORGET, 1, queries, group, idle_ms))


async def release(redis: Redis, queries: str, group: str, consumer: str, *, idle_ms: int, blameless: bool = True) -> int:
    """Let others claim at once what this consumer still holds, and leave the group if that is nothing.

    Args:
        blameless: it is no fault of theirs, so this delivery is not counted: else entries that are handed over again and again,
            since Redis does not take their results, would be held for poison.

    Returns the number of entries released.
    """
    released = 0
    start = "-"
    while rows := await redis.xpending_range(queries, group, min=start, max="+", count=500, consumername=consumer):
        last: Any = rows[-1]["message_id"]
        by_count: dict[int, list[Any]] = {}
        for row in rows:
            by_count.setdefault(int(row["times_delivered"]) - blameless, []).append(row["message_id"])
        for times, ids in by_count.items():
            await redis.xclaim(
                queries, group, consumer, min_idle_time=0, message_ids=ids, idle=idle_ms, retrycount=max(times, 0), justid=True
            )
        released += len(rows)
        start = f"({last.decode()}"
    await redis.eval(_LEAVE, 1, queries, group, consumer)
    return released


async def backlog(redis: Redis, queries: str, group: str) -> Backlog | None:
    """How much waits for a group; None if there is no such group or stream."""
    try:
        rows = await redis.xinfo_groups(queries)
    except ResponseError as error:
        if "no such key" in str(error):
            return None
        raise
    for row in rows:
        if row["name"] in (group, group.encode()):
            read_to, pending = row["last-delivered-id"].decode(), int(row["pending"])
            first = (await redis.xpending(queries, group))["min"] if pending else None
            oldest = first.decode() if first else None
            lag = row.get("lag")
            if lag != 0 and not await _goes_on(redis, queries, read_to):
                lag = 0  # some versions go on counting entries that were trimmed before they were read (redis/redis#13957)
            return Backlog(None if lag is None else int(lag), pending, _just_before(oldest) if oldest else read_to, oldest)
    return None


async def _goes_on(redis: Redis, queries: str, read_to: str) -> bool:
    last_entry = (await redis.xinfo_stream(queries))["last-entry"]
    return last_entry is not None and _parts(last_entry[0].decode()) > _parts(read_to)


def _just_before(entry_id: str) -> str:
    milliseconds, sequence = _parts(entry_id)
    return f"{milliseconds}-{sequence - 1}" if sequence else f"{milliseconds - 1}-{2**64 - 1}"


def _parts(entry_id: str) -> tuple[int, int]:
    milliseconds, sequence = entry_id.split("-")
    return int(milliseconds), int(sequence)

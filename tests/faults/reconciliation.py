"""What came out, against what went in: every number on one output stream, once, and nothing else left in Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from redis import Redis

from worker.routing import Streams

PAGE = 5000
SHOWN = 10
"""Numbers and keys that are named as examples."""


@dataclass(slots=True)
class Tally:
    """How often each number was seen. One byte a number, so that a million need a megabyte."""

    expected: int
    seen: int = 0
    strange: int = 0
    """Entries whose number is missing, or was never sent."""
    dead: int = 0
    """Of the entries seen, those on the dead stream."""
    slowest_ms: int = 0
    """The longest time from XADD to publication, both by Redis' clock."""
    _times: bytearray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._times = bytearray(self.expected)

    def count(self, number: bytes | None) -> None:
        """One entry that came out with this number."""
        if number is None or not number.isdigit() or int(number) >= self.expected:
            self.strange += 1
            return
        at = int(number)
        self._times[at] = min(255, self._times[at] + 1)
        self.seen += 1

    @property
    def lost(self) -> int:
        """Numbers that never came out."""
        return self._times.count(0)

    @property
    def doubled(self) -> int:
        """Entries too many: a number that came out three times makes two."""
        return self.seen - (self.expected - self.lost)

    def examples_lost(self) -> list[int]:
        found: list[int] = []
        at = -1
        while len(found) < SHOWN and (at := self._times.find(0, at + 1)) >= 0:
            found.append(at)
        return found

    def examples_doubled(self) -> list[int]:
        if not self.doubled:
            return []
        return [number for number, times in enumerate(self._times) if times > 1][:SHOWN]


def output_lengths(redis: Redis, streams: Streams) -> dict[str, int]:
    """Entries on each output stream that exists."""
    names = sorted(key for key in _keys(redis, streams.namespace) if _is_output(key, streams))
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.xlen(name)
    return dict(zip(names, pipe.execute(), strict=True))


def keys_left(redis: Redis, streams: Streams) -> list[str]:
    """Keys of the namespace that are neither the stream of queries nor an output."""
    return sorted(key for key in _keys(redis, streams.namespace) if key != streams.queries and not _is_output(key, streams))


def reconcile(redis: Redis, streams: Streams, expected: int, page: int = PAGE) -> Tally:
    """Count the numbers on all output streams, a page at a time."""
    tally = Tally(expected)
    for name in output_lengths(redis, streams):
        start = "-"
        while rows := cast("Any", redis.xrange(name, min=start, count=page)):
            for entry_id, fields in rows:
                tally.count(fields.get(b"number"))
                tally.dead += name == streams.dead
                tally.slowest_ms = max(tally.slowest_ms, _milliseconds(entry_id) - _milliseconds(fields.get(b"pointsman.id", entry_id)))
            start = f"({rows[-1][0].decode()}"
    return tally


def _keys(redis: Redis, namespace: str) -> set[str]:
    return {key.decode() for key in redis.scan_iter(match=f"{namespace}:*", count=1000)}


def _is_output(key: str, streams: Streams) -> bool:
    return key in (streams.review, streams.dead) or key.startswith(streams.topic(""))


def _milliseconds(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])

"""What several tests of delivery and recovery do by hand that a worker does."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis as AsyncRedis

from tests.support import GROUP, Queue
from worker.messages import Entry, Outgoing


async def held(client: AsyncRedis, queue: Queue, *texts: str) -> list[Entry]:
    """Entries as a worker holds them: read by the group, pending."""
    await client.xgroup_create(queue.streams.queries, GROUP, id="0", mkstream=True)
    for text in texts:
        await client.xadd(queue.streams.queries, {"text": text})
    answer: Any = await client.xreadgroup(GROUP, "me", {queue.streams.queries: ">"})
    ((_, rows),) = answer
    return [Entry(entry_id.decode(), fields) for entry_id, fields in rows]


def to(queue: Queue, entry: Entry, message_id: bytes = b"", *, label: str = "pool", stream: str | None = None) -> Outgoing:
    """The entry on its way to a label's topic, or to another stream."""
    fields = {**entry.fields, b"pointsman.id": entry.id.encode()}
    return Outgoing(entry, stream or queue.streams.topic(label), fields, message_id)

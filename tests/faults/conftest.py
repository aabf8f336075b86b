from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis as AsyncRedis


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = AsyncRedis.from_url(redis_url)
    yield client
    await client.aclose()

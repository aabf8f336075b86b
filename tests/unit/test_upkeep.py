"""What a worker does beside routing, with stand-ins for Redis' answers (FakeRedis' backlog) and FastStream's subscriber (FakeReader)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError
from structlog.testing import capture_logs

from worker import recovery
from worker import upkeep as module
from worker.health import Health
from worker.metrics import Metrics
from worker.recovery import Backlog
from worker.upkeep import Upkeep


class FakeReader:
    """A consume loop that runs until it is told to fail."""

    def __init__(self) -> None:
        self.running, self.tasks, self.starts = False, list[asyncio.Task[None]](), 0
        self.error: Exception | None = None

    async def start(self) -> None:
        self.starts += 1
        self.running, self.tasks = True, [asyncio.create_task(self._loop())]

    async def _loop(self) -> None:
        await until(lambda: self.error is not None, forever=True)
        assert self.error is not None
        raise self.error

    async def stop(self) -> None:
        self.running = False
        for task in self.tasks:
            task.cancel()
        self.tasks = []


class Watched:
    """A watch at work: what Redis answers to it, and what it found."""

    def __init__(self) -> None:
        self.answer: Backlog | Exception | None = Backlog(0, 0, "5-0")
        self.made: list[str] = []
        self.reader, self.health = FakeReader(), Health()
        self.pipeline = SimpleNamespace(held=set[str](), submitted=0)
        self.started = 0

    async def backlog(self, *_: Any) -> Backlog | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def make_group(self, _redis: Any, _queries: str, _group: str, resume_from: str) -> str:
        self.made.append(resume_from)
        self.answer = Backlog(0, 0, resume_from)
        return resume_from

    def on_started(self) -> None:
        self.started += 1


Start = Callable[[], Awaitable[Watched]]


@asynccontextmanager
async def watching(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(module, "WATCH_EVERY_S", 0.02)
    monkeypatch.setattr(module, "CONSUME_STUCK_S", 0.1)
    watched = Watched()
    monkeypatch.setattr(recovery, "backlog", watched.backlog)
    monkeypatch.setattr(recovery, "make_group", watched.make_group)
    settings: Any = SimpleNamespace(group="routers", redis_timeout_s=0.1)
    redis: Any = None
    pipeline: Any = watched.pipeline
    upkeep = Upkeep(redis, "ns:queries", settings, pipeline, Metrics(), watched.health)
    task = asyncio.create_task(upkeep.watch(watched.reader, watched.on_started))
    await watched.reader.start()
    await until(lambda: watched.started == 1)
    yield watched
    assert not task.done(), "the watch itself ended"
    task.cancel()
    await watched.reader.stop()


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    async with watching(monkeypatch) as it:
        yield it


async def until(condition: Callable[[], bool], *, forever: bool = False) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert forever or time.monotonic() < deadline, "it did not happen within 10 s"
        await asyncio.sleep(0.002)


async def test_a_consume_loop_that_takes_nothing_although_entries_wait_is_stuck_until_it_takes_some(watched: Watched) -> None:
    watched.answer = Backlog(7, 0, "5-0")
    await until(lambda: watched.health.consume_stuck)
    assert watched.health.alive()["consuming"] is False
    watched.pipeline.submitted += 7
    await until(lambda: not watched.health.consume_stuck)


@pytest.mark.parametrize("excuse", ["nothing waits", "it holds entries", "it takes entries", "Redis is away"])
async def test_a_consume_loop_with_an_excuse_is_not_stuck(watched: Watched, excuse: str) -> None:
    watched.answer = Backlog(7, 0, "5-0")
    if excuse == "nothing waits":
        watched.answer = Backlog(0, 9, "5-0")
    elif excuse == "it holds entries":
        watched.pipeline.held.add("5-0")
    elif excuse == "Redis is away":
        watched.answer = RedisConnectionError("gone")
    ends = time.monotonic() + 0.6
    while time.monotonic() < ends:
        if excuse == "it takes entries":
            watched.pipeline.submitted += 1
        assert not watched.health.consume_stuck
        await asyncio.sleep(0.005)


async def test_a_read_that_redis_refuses_is_started_again_and_told_of_once(watched: Watched) -> None:
    with capture_logs() as logs:
        watched.reader.error = NoPermissionError("may not read")
        await until(lambda: watched.reader.starts >= 4)
        assert not watched.health.ready()["consuming"]
        watched.reader.error = None
        await until(lambda: watched.health.ready()["consuming"] and "reads queries again" in [entry["event"] for entry in logs])
    assert [entry["event"] for entry in logs] == ["cannot read queries, trying again", "reads queries again"]
    assert logs[0]["error"] == "may not read"


async def test_a_stopping_worker_does_not_start_to_read_again(watched: Watched) -> None:
    watched.health.stopping = True
    await watched.reader.stop()
    await asyncio.sleep(0.2)
    assert watched.reader.starts == 1


async def test_a_lost_group_is_made_again_where_it_was(watched: Watched) -> None:
    watched.answer = Backlog(3, 1, "8-0")
    await asyncio.sleep(0.1)
    watched.answer = None
    await until(lambda: watched.made == ["8-0"])


async def test_an_answer_of_redis_is_noted_and_silence_is_not(watched: Watched) -> None:
    watched.answer = RedisConnectionError("gone")
    await asyncio.sleep(0.1)
    last = watched.health.redis_answered_at
    await asyncio.sleep(0.1)
    assert watched.health.redis_answered_at == last
    watched.answer = Backlog(None, 0, "5-0")
    await until(lambda: watched.health.redis_answered_at > last)

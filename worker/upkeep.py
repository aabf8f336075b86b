"""What a worker does beside routing: it watches the group and its own reading, claims what others left, and holds on to what is its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from redis.asyncio import Redis

from worker import recovery
from worker.errors import REDIS_ERRORS, Fatal
from worker.health import Health
from worker.messages import Entry
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.settings import Settings

log = structlog.get_logger("pointsman.upkeep")
WATCH_EVERY_S = 1.0
CONSUME_STUCK_S = 15.0
"""Beyond Redis' own timeout: FastStream pauses for 5 s after an error."""


class Reader(Protocol):
    """What is needed of FastStream's subscriber."""

    running: bool
    tasks: list[asyncio.Task[None]]

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Three loops that run until they are cancelled."""

    redis: Redis
    queries: str
    settings: Settings
    pipeline: Pipeline
    metrics: Metrics
    health: Health

    async def watch(self, reader: Reader, on_started: Callable[[], None]) -> None:
        """Once a second: is Redis there, is the group there, are we reading, how much waits."""
        started, told, resume_from = False, False, "0"
        progress = _Progress(self.settings.redis_timeout_s + CONSUME_STUCK_S)
        while True:
            problem, reading = None, is_reading(reader)
            try:
                waiting = await recovery.backlog(self.redis, self.queries, self.settings.group)
                if waiting is None:
                    after = await recovery.make_group(self.redis, self.queries, self.settings.group, resume_from)
                    log.warning("the consumer group was gone and has been made again", stream=self.queries, after=after)
                else:
                    self.metrics.backlog(waiting.lag, waiting.pending)
                    resume_from = waiting.resume_from
                self.health.redis_answered()
                progress.note(self.pipeline, something_waits=waiting is not None and waiting.lag != 0)
                if not started and any(task.done() for task in reader.tasks) and not self.health.stopping:
                    raise Fatal(f"Redis does not let it read {self.queries}: {_why_it_ended(reader)}")
                if started and not reading and not self.health.stopping:
                    problem = _why_it_ended(reader)
                    await reader.stop()
                    await reader.start()
            except REDIS_ERRORS as error:
                problem = str(error)
                progress.excuse()
            told = _tell(problem, told)
            self.health.consume_stuck = progress.stuck
            self.health.consuming = reading
            if self.health.consuming and not started:
                started = True
                on_started()
            await asyncio.sleep(WATCH_EVERY_S if started else 0.02)

    async def claim(self) -> None:
        """Take over what other workers left behind, and forget those of whom nothing is left."""
        settings = self.settings
        idle_ms = int(settings.claim_after_s * 1000)
        while True:
            entries: Sequence[Entry] = []
            try:
                # If the model is stuck others shall have what there is, this worker's own entries too.
                if not self.health.inference_stuck():
                    entries = await recovery.claim_stuck(
                        self.redis, self.queries, settings.group, settings.consumer, idle_ms=idle_ms, count=settings.batch_size
                    )
                if not entries:
                    await recovery.forget_dead_consumers(self.redis, self.queries, settings.group, idle_ms=idle_ms)
            except REDIS_ERRORS as error:
                log.debug("cannot claim", error=str(error))
            if entries:
                self.metrics.reclaimed(len(entries))
                log.info("took over stuck entries", entries=len(entries))
                await self.pipeline.submit(entries)
            else:
                await asyncio.sleep(settings.claim_every_s)

    async def keep_fresh(self) -> None:
        """Hold on to what is in flight, however long the queue; but not while the model is stuck: then others shall have it."""
        settings = self.settings
        while True:
            await asyncio.sleep(settings.claim_after_s / 4)
            if self.health.inference_stuck():
                log.error("the model has been at one batch for too long", seconds=round(self.pipeline.classifying_for_s))
                continue
            try:
                await recovery.keep_fresh(self.redis, self.queries, settings.group, settings.consumer, sorted(self.pipeline.held))
            except REDIS_ERRORS as error:
                log.debug("cannot keep entries fresh", error=str(error))


class _Progress:
    """Whether the consume loop takes nothing for longer than `patience_s`, although entries wait and this worker holds none."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s, self._since, self._submitted = patience_s, time.monotonic(), 0

    def note(self, pipeline: Pipeline, *, something_waits: bool) -> None:
        if pipeline.held or pipeline.submitted != self._submitted or not something_waits:
            self.excuse()
        self._submitted = pipeline.submitted

    def excuse(self) -> None:
        self._since = time.monotonic()

    @property
    def stuck(self) -> bool:
        return time.monotonic() - self._since > self._patience_s


def is_reading(reader: Reader) -> bool:
    return reader.running and not any(task.done() for task in reader.tasks)


def _why_it_ended(reader: Reader) -> str:
    errors = [task.exception() for task in reader.tasks if task.done() and not task.cancelled()]
    return "; ".join(str(error) for error in errors if error is not None) or "the consume loop ended"


def _tell(problem: str | None, told: bool) -> bool:
    """One log line when it begins and one when it is over. Returns whether it lasts."""
    if problem is not None and not told:
        log.error("cannot read queries, trying again", error=problem)
    elif problem is None and told:
        log.info("reads queries again")
    return problem is not None

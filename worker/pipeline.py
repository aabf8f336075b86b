"""The heart: read -> classify -> route -> deliver, and what each error means.

`submit` takes entries in as they are read and waits while too many are in flight. `run` takes all that
waits, up to a batch, and classifies it on the inference thread; meanwhile the next entries are read and the
batch before is delivered. An entry is acknowledged by `delivery` alone, in the same script that publishes it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import structlog

from worker.classifier import Decision, ModelCard
from worker.delivery import Delivered, Delivery, Duplicate, Repeated, Result, refusal_code
from worker.errors import REDIS_ERRORS, NotDelivered, Reject
from worker.messages import (
    ENVELOPE_FIELD,
    LABEL_FIELD,
    TEXT_FIELD,
    Entry,
    Outgoing,
    Query,
    dead_fields,
    parse,
    routed_fields,
    sampled_trace,
)
from worker.metrics import Metrics
from worker.pace import Pace
from worker.routing import Streams, route

log = structlog.get_logger("pointsman.pipeline")
_NO_ASCII = bytes(range(128, 256))


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a worker."""

    batch_size: int
    batch_tokens: int
    """Tokens that one batch may come to, by estimate; an entry that alone is longer makes a batch of its own."""
    max_query_tokens: int
    max_in_flight: int
    max_text_bytes: int
    max_deliveries: int
    batch_timeout_s: float
    """The longest that a batch may take; by the model's pace it is kept far from it."""
    message_id_field: str | None = None
    """Where producers name their messages, if repeated ones are to be dropped."""


class Decides(Protocol):
    """What a worker needs of a classifier."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def weight_format(self) -> str: ...

    def classify(self, texts: Sequence[str]) -> list[Decision]: ...

    def close(self) -> None: ...


class Traces(Protocol):
    """What is told of each message where its way is traced (see worker.tracing)."""

    def decided(self, batch: Sequence[tuple[Entry, float]], outgoing: Sequence[Outgoing], taken_up: float) -> list[Outgoing]: ...

    def tried(self, outgoing: Outgoing, result: Result) -> None: ...


class Pipeline:
    """Entries in, published entries out. One event loop owns it."""

    def __init__(
        self,
        model: Decides,
        streams: Streams,
        delivery: Delivery,
        metrics: Metrics,
        limits: Limits,
        inference_thread: Executor,
        traces: Traces | None = None,
    ) -> None:
        self.model = model
        """Has the next call. It may be replaced at any time; once it is, the inference thread is given nothing more for the one before."""
        self._streams = streams
        self._delivery, self._metrics, self._limits = delivery, metrics, limits
        self._inference_thread, self._traces = inference_thread, traces
        self._waiting: deque[tuple[Entry, float]] = deque()
        self._in_flight: set[str] = set()
        self._at_the_door: list[Sequence[Entry]] = []
        self._changed = asyncio.Condition()
        self._closed = False
        self.submitted = 0
        """Entries taken in so far."""
        self.held_back = 0
        """Entries decided that Redis does not take for now."""
        self._refusals: set[str] = set()
        self._classifying_since: float | None = None
        self._pace, self._pace_is_of = Pace(limits.batch_timeout_s), model

    async def submit(self, entries: Sequence[Entry]) -> None:
        """Take entries in; returns once there is room for them. Those already in flight are not taken twice."""
        self._at_the_door.append(entries)
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._has_room_for(len(entries)))
                self.submitted += len(entries)
                now = time.perf_counter()
                for entry in entries:
                    if entry.id not in self._in_flight:
                        self._in_flight.add(entry.id)
                        self._waiting.append((entry, now))
                self._changed.notify_all()
        finally:
            self._at_the_door.remove(entries)

    def _has_room_for(self, count: int) -> bool:
        return not self._in_flight or len(self._in_flight) + count <= self._limits.max_in_flight

    async def run(self) -> None:
        """Work until `close` was called and nothing is in flight any more."""
        try:
            async with asyncio.TaskGroup() as tasks:  # so that a fault in a delivery ends the wait for the next batch
                delivering: asyncio.Task[None] | None = None
                while batch := await self._next_batch():
                    outgoing = await self._decide(batch)
                    if delivering is not None:
                        await delivering
                    delivering = tasks.create_task(self._deliver(outgoing, tasks))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group

    @property
    def held(self) -> set[str]:
        """Ids of all entries that Redis has given to this worker: those in flight, and those that wait for room."""
        return self._in_flight.union(entry.id for entries in self._at_the_door for entry in entries)

    @property
    def classifying_for_s(self) -> float:
        """How long the model has been at work on its present batch; 0 if it is idle."""
        return 0.0 if self._classifying_since is None else time.perf_counter() - self._classifying_since

    async def close(self) -> None:
        """Let `run` end once everything submitted is delivered."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def _next_batch(self) -> list[tuple[Entry, float]]:
        """All that waits, with when it was read, at most `batch_size` entries and the tokens allowed; empty once closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting or self._closed)
            now = time.perf_counter()
            batch: list[tuple[Entry, float]] = []
            tokens, allowed = 0, min(self._limits.batch_tokens, self._pace_now().allows())
            while self._waiting and len(batch) < self._limits.batch_size:
                entry, since = self._waiting[0]
                tokens += self._estimated_tokens(entry)
                if batch and tokens > allowed:
                    break
                self._waiting.popleft()
                self._metrics.stage("wait", now - since)
                batch.append((entry, since))
            return batch

    def _pace_now(self) -> Pace:
        if self._pace_is_of is not self.model:
            self._pace, self._pace_is_of = Pace(self._limits.batch_timeout_s), self.model
        return self._pace

    def _estimated_tokens(self, entry: Entry) -> int:
        """From the bytes of its text, which is not parsed yet: four of ASCII a token are usual, any other may be a token."""
        text = entry.fields.get(ENVELOPE_FIELD) or entry.fields.get(TEXT_FIELD) or b""
        letters = len(text.translate(None, _NO_ASCII))
        return min(letters // 4 + len(text) - letters + 1, self._limits.max_query_tokens)

    async def _decide(self, batch: Sequence[tuple[Entry, float]]) -> list[Outgoing]:
        taken_up = time.perf_counter()
        outgoing, queries = [], []
        for entry, _ in batch:
            try:
                queries.append(self._accept(entry))
            except Reject as reject:
                self._metrics.rejected(reject.reason)
                log.warning("entry rejected", entry=entry.id, reason=reject.reason, detail=reject.detail)
                outgoing.append(Outgoing(entry, self._streams.dead, dead_fields(entry, reject)))
        for query, decision, card in await self._classify_all(queries):
            destination = route(decision, card, self._streams)
            self._metrics.decided(decision, destination.outcome)
            fields = routed_fields(query.entry, decision, card.version)
            outgoing.append(Outgoing(query.entry, destination.stream, fields, query.message_id))
        return outgoing if self._traces is None else self._traces.decided(batch, outgoing, taken_up)

    def _accept(self, entry: Entry) -> Query:
        if entry.deliveries > self._limits.max_deliveries:
            raise Reject("poison", f"delivered {entry.deliveries - 1} times and never finished")
        return parse(entry, max_text_bytes=self._limits.max_text_bytes, message_id_field=self._limits.message_id_field)

    async def _classify_all(self, queries: Sequence[Query]) -> list[tuple[Query, Decision, ModelCard]]:
        """Classify on the inference thread; each decision comes with the card of the model that made it.

        A batch that fails is tried one by one; what fails again stays pending.
        """
        if not queries:
            return []
        self._metrics.batch(len(queries))
        started = self._classifying_since = time.perf_counter()
        loop = asyncio.get_running_loop()
        model, pace = self.model, self._pace_now()
        try:
            texts = [query.text for query in queries]
            decisions = await loop.run_in_executor(self._inference_thread, model.classify, texts)
            self._classifying_since = None
        except Exception:
            self._classifying_since = None
            log.exception("classification failed", entries=len(queries))
            if len(queries) == 1:
                self._metrics.failed()
                await self._leave_pending([queries[0].entry.id])
                return []
            return [decided for query in queries for decided in await self._classify_all([query])]
        took = time.perf_counter() - started
        self._metrics.stage("classify", took)
        distinct = {query.text: query.entry for query in queries}  # the model computes a text once
        pace.took(sum(map(self._estimated_tokens, distinct.values())), took)
        return [(query, decision, model.card) for query, decision in zip(queries, decisions, strict=True)]

    async def _deliver(self, batch: Sequence[Outgoing], tasks: asyncio.TaskGroup) -> None:
        """Hand over once. What Redis cannot take for now is tried again beside the batches that follow."""
        started = time.perf_counter()
        refused = await self._hand_over(batch)
        self._metrics.stage("deliver", time.perf_counter() - started)
        if refused:
            self._hold_back(len(refused))
            tasks.create_task(self._deliver_later(refused))

    async def _deliver_later(self, refused: Sequence[Outgoing]) -> None:
        """Try again for as long as Redis cannot take it. Meanwhile it is in flight, so `max_in_flight` bounds how much there is."""
        delay_s = 0.1
        while refused:
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
            delay_s = min(2 * delay_s, 5.0)
            left = await self._hand_over(refused)
            self._hold_back(len(left) - len(refused))
            refused = left

    async def _hand_over(self, batch: Sequence[Outgoing]) -> list[Outgoing]:
        """Try once. Returns what Redis could not take for now; nothing else is in flight any more."""
        if not batch:
            return []
        try:
            results = await self._delivery.deliver(batch)
        except REDIS_ERRORS as error:
            self._note_refusals({refusal_code(error): str(error)})
            return list(batch)
        left, why = [], {}
        for outgoing, result in zip(batch, results, strict=True):
            if self._traces is not None:
                self._traces.tried(outgoing, result)
            match result:
                case Delivered():
                    label = outgoing.fields.get(LABEL_FIELD, b"").decode()
                    self._metrics.delivered(result.latency_ms / 1000, label, sampled_trace(outgoing.fields))
                case Duplicate():
                    self._metrics.duplicate()
                case Repeated():
                    self._metrics.repeated()
                case NotDelivered(temporary=True):
                    why[result.code] = str(result)
                    left.append(outgoing)
                case NotDelivered():
                    self._metrics.failed()
                    log.error("Redis refused an entry", entry=outgoing.entry.id, stream=outgoing.stream, error=str(result))
        self._note_refusals(why)
        kept = {outgoing.entry.id for outgoing in left}
        await self._leave_pending([outgoing.entry.id for outgoing in batch if outgoing.entry.id not in kept])
        return left

    def _note_refusals(self, why: Mapping[str, str]) -> None:
        """By code. One log line when each kind begins, not one per entry or try."""
        for code, error in why.items():
            self._metrics.delivery_failed(code)
            if code not in self._refusals:
                log.error("Redis does not take results, trying again", reason=code, error=error)
        self._refusals.update(why)

    def _hold_back(self, change: int) -> None:
        self.held_back += change
        self._metrics.held_back(self.held_back)
        if not self.held_back:
            self._refusals.clear()
            log.info("Redis takes results again")

    async def _leave_pending(self, ids: Sequence[str]) -> None:
        """No longer in flight here: delivered, or Redis' to give out again."""
        async with self._changed:
            self._in_flight.difference_update(ids)
            self._changed.notify_all()

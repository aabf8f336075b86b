"""The composition root: makes every part, hands it what it needs, starts and stops it. Decides nothing itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import structlog
import uvicorn
from faststream import AckPolicy, FastStream
from faststream.asgi import AsgiFastStream, AsyncAPIRoute
from faststream.asgi.handlers import GetHandler
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.annotations import RedisBatchStreamMessage
from faststream.specification import AsyncAPI
from faststream.specification.base import SpecificationFactory
from prometheus_client import make_asgi_app

from worker import __version__, recovery
from worker.classifier import ModelCard
from worker.connection import POLLING_S, check_redis, connect, make_broker, parse
from worker.delivery import Delivery
from worker.errors import REDIS_ERRORS, Fatal
from worker.health import Health, endpoint
from worker.hotswap import HotSwap, Seen, look
from worker.messages import Entry
from worker.metrics import Metrics
from worker.pipeline import Decides, Limits, Pipeline
from worker.routing import Streams
from worker.settings import Settings
from worker.upkeep import Upkeep

if TYPE_CHECKING:
    from worker.tracing import Tracing

log = structlog.get_logger("pointsman.app")


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a started worker can be reached."""

    http_url: str
    redis_url: str


async def serve(
    settings: Settings, open_model: Callable[[Settings], Decides], on_listening: Callable[[Listening], None] = lambda _: None
) -> None:
    """Run a worker until SIGTERM or SIGINT, then finish what is in flight.

    Args:
        open_model: opens the settings' model, at the start and whenever its file was replaced.

    Raises:
        ModelFileError, EngineError: the model cannot be used.
        Fatal: Redis does not let the worker in, the HTTP port is taken, or a part failed for good.
        SystemExit: with code 0, SIGTERM came before the worker was in the group.
    """
    # The first process of a container does not get a signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    worker = Worker(settings, open_model)
    with _bind(settings) as http_socket:
        await worker.join_group()
        config = uvicorn.Config(worker.app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        # uvicorn would end the process by the signal again, after a graceful stop: no exit code 0 then.
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, server, worker)
        worker.on_failure = lambda: setattr(server, "should_exit", True)
        host, port = http_socket.getsockname()[:2]
        worker.on_started = lambda: on_listening(Listening(f"http://{host}:{port}", settings.redis_url.get_secret_value()))
        await server.serve(sockets=[http_socket])
    if worker.health.inference_stuck():
        log.critical("the model is still at its batch, ending without it")
        sys.stderr.flush()
        os._exit(1)  # Python would wait for the inference thread
    if worker.failure is not None:
        raise Fatal(f"the worker stopped: {str(worker.failure) or repr(worker.failure)}") from worker.failure


def _stop(server: uvicorn.Server, worker: Worker) -> None:
    if server.should_exit:
        log.warning("second signal: stopping at once, what is in flight stays pending")
        worker.abandon()
    server.should_exit = True
    worker.health.stopping = True


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.http_host, settings.http_port))
    except (OSError, OverflowError) as error:
        listener.close()
        where = f"{settings.http_host}:{settings.http_port}"
        hint = "set POINTSMAN_HTTP_PORT or POINTSMAN_HTTP_HOST, port 0 picks a free one"
        raise Fatal(f"cannot listen on {where} ({error}): {hint}") from error
    return listener


class Worker:
    """Everything that lives while a worker runs."""

    def __init__(self, settings: Settings, open_model: Callable[[Settings], Decides]) -> None:
        self.settings = settings
        seen, model = _open(settings, open_model)
        self.streams = Streams(settings.namespace)
        self.redis = connect(settings)
        self.metrics = Metrics()
        self.metrics.worker(self.streams.queries, settings.group, settings.consumer)
        self.metrics.model(model.card, model.weight_format)
        self.health = Health(
            inference_stuck=lambda: self.pipeline.classifying_for_s > settings.batch_timeout_s,
            held_back=lambda: self.pipeline.held_back > 0,
        )
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.on_started: Callable[[], None] = lambda: None
        self._inference_thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._tracing = _open_tracing(settings, self.streams) if settings.tracing else None
        self.pipeline = Pipeline(
            model,
            self.streams,
            Delivery(
                self.redis,
                self.streams,
                settings.group,
                settings.retention,
                max_topic_length=settings.max_topic_length,
                deduplicate_for_s=settings.deduplicate_for_s if settings.deduplicate_by else 0.0,
            ),
            self.metrics,
            Limits(
                batch_size=settings.batch_size,
                batch_tokens=settings.batch_tokens,
                max_query_tokens=settings.max_query_tokens,
                max_in_flight=settings.in_flight_limit,
                max_text_bytes=settings.max_text_bytes,
                max_deliveries=settings.max_deliveries,
                batch_timeout_s=settings.batch_timeout_s,
                message_id_field=settings.deduplicate_by,
            ),
            self._inference_thread,
            self._tracing,
        )
        self.metrics.readiness(self.health.ready)
        # Nothing is measured beside the work: an untuned file is used as it is.
        later = settings.model_copy(update={"format": "tuned"}) if settings.format == "auto" else settings
        self._hotswap = HotSwap(
            settings.model, seen, partial(open_model, later), self._use, self._inference_thread, self.metrics, settings.model_poll_s
        )
        self._working: asyncio.Task[None] | None = None
        self._described: set[str] = set()
        self.broker, self._subscriber = self._make_broker()
        self.app = self._make_app()

    async def join_group(self) -> None:
        """Raises Fatal unless Redis answers, and has or makes the consumer group."""
        await check_redis(self.redis, self.settings)
        try:
            await recovery.make_group(self.redis, self.streams.queries, self.settings.group)
        except REDIS_ERRORS as error:
            where = parse(self.settings.redis_url.get_secret_value()).shown
            raise Fatal(f"Redis at {where} does not make the group {self.settings.group} of {self.streams.queries}: {error}") from error

    def abandon(self) -> None:
        """Give up what is in flight, and what waits for room; it stays pending."""
        for task in (self._working, *self._subscriber.tasks):
            if task is not None:
                task.cancel()

    def _make_broker(self) -> tuple[RedisBroker, Any]:
        settings = self.settings
        broker = make_broker(settings)
        # FastStream would start a read that Redis refuses again at once, without end; `upkeep` does so once a second.
        os.environ["FASTSTREAM_SUPERVISOR_DISABLED"] = "1"
        source = StreamSub(
            self.streams.queries,
            group=settings.group,
            consumer=settings.consumer,
            batch=True,
            max_records=settings.batch_size,
            polling_interval=int(POLLING_S * 1000),
        )
        subscriber = broker.subscriber(
            stream=source,
            ack_policy=AckPolicy.MANUAL,
            parser=self._leave_unparsed,
            decoder=_leave_undecoded,
            title="queries",
            description="Plain fields, of which `text` is the query, or FastStream's envelope.",
        )

        @subscriber
        async def consume(message: RedisBatchStreamMessage) -> None:
            raw = message.raw_message
            await self.pipeline.submit(
                [Entry(entry_id.decode(), fields) for entry_id, fields in zip(raw["message_ids"], raw["data"], strict=True)]
            )

        self._describe(broker, self.pipeline.model.card)
        return broker, subscriber

    def _describe(self, broker: RedisBroker, card: ModelCard) -> None:
        """The output streams, for /asyncapi. Topics of a model that was replaced stay: their entries are still there."""
        topics = [self.streams.topic(name) for name in card.labels.names]
        for name in (*topics, self.streams.review, self.streams.dead):
            if name not in self._described:
                broker.publisher(stream=name, title=name, description="The producer's fields and the decision in `pointsman.*` fields.")
                self._described.add(name)

    def _use(self, model: Decides) -> Decides:
        """Have another model decide from the next batch on. Returns the one before."""
        self._describe(self.broker, model.card)
        self.metrics.model(model.card, model.weight_format)
        before, self.pipeline.model = self.pipeline.model, model
        return before

    async def _leave_unparsed(self, message: Any) -> RedisBatchStreamMessage:
        """FastStream's own parser decodes a whole batch at once, so one bad entry would fail its neighbours."""
        return RedisBatchStreamMessage(raw_message=message, body=b"", consumer=cast("Any", self.redis), group=self.settings.group)

    def _make_app(self) -> AsgiFastStream:
        specification = AsyncAPI(title="Pointsman", version=__version__, description="Routes queries to their category's stream.")
        app = FastStream(self.broker, logger=logging.getLogger("faststream"), lifespan=self._lifespan, specification=specification)
        return app.as_asgi(
            asgi_routes=[
                ("/metrics", make_asgi_app(self.metrics.registry)),
                ("/healthz", endpoint(self.health.alive)),
                ("/readyz", endpoint(self.health.ready)),
            ],
            asyncapi_path=_Description("/asyncapi", try_it_out_path=None),  # it could publish, and swaps the broker for a test's
        )

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        settings = self.settings
        self._working = asyncio.create_task(self.pipeline.run())
        upkeep = Upkeep(self.redis, self.streams.queries, settings, self.pipeline, self.metrics, self.health)
        work = [upkeep.watch(self._subscriber, lambda: self.on_started()), upkeep.claim(), upkeep.keep_fresh()]
        if settings.model_poll_s:
            work.append(self._hotswap.watch())
        background = [asyncio.create_task(one) for one in work]
        for task in (self._working, *background):
            task.add_done_callback(self._part_ended)
        try:
            yield
        except Exception as error:
            if not self.health.stopping:  # FastStream could not start to read: uvicorn would serve on without it
                self._fail(error)
            raise
        finally:
            self.health.stopping = True
            await _end(background)
            await self._drain()

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure, self.health.pipeline_failed = error, True
        log.critical("a part of the worker failed, stopping", exc_info=error)
        self.on_failure()

    async def _drain(self) -> None:
        """Deliver what is in flight, release the rest so that others claim it at once, leave the group."""
        settings = self.settings
        await self.pipeline.close()
        if self._working is not None:
            _, unfinished = await asyncio.wait([self._working], timeout=settings.drain_timeout_s)
            await _end(unfinished)
        try:
            idle_ms = int(settings.claim_after_s * 1000)
            blameless = self.failure is None and not self.health.inference_stuck()
            left = await recovery.release(
                self.redis, self.streams.queries, settings.group, settings.consumer, idle_ms=idle_ms, blameless=blameless
            )
            log.info("stopped", released=left)
        except REDIS_ERRORS as error:
            log.error("could not release what is in flight; others claim it later", error=str(error), after_s=settings.claim_after_s)
        await self.redis.aclose()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._inference_thread.shutdown(wait=not self.health.inference_stuck())


def _open(settings: Settings, open_model: Callable[[Settings], Decides]) -> tuple[Seen | None, Decides]:
    """The model, and its file as it was all the while: else another than the verified one might decide."""
    while True:
        seen = look(settings.model)
        model = open_model(settings)
        if look(settings.model) == seen:
            return seen, model
        log.warning("the model file was replaced while it was opened, opening it again", path=str(settings.model))
        model.close()


def _open_tracing(settings: Settings, streams: Streams) -> Tracing:
    try:
        from worker.tracing import to_collector
    except ImportError as error:
        how = "in Pointsman's checkout: pip install -c constraints.txt '.[tracing]'"
        raise Fatal(f"POINTSMAN_TRACING needs OpenTelemetry ({error}); {how}") from error
    try:
        return to_collector(streams, settings.group, settings.consumer)
    except ValueError as error:
        raise Fatal(f"OpenTelemetry refuses its own settings, the variables OTEL_*: {error}") from error


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: before Python 3.12 wait_for, with which redis-py sends, may swallow a cancellation (gh-86296)."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)


class _Description(AsyncAPIRoute):
    """FastStream keeps its page as it first was; this one is made at each request, since a new model may have other topics."""

    def __call__(self, schema: SpecificationFactory) -> GetHandler:
        make = super().__call__
        handler = make(schema)
        handler.func = lambda scope: make(schema).func(scope)
        return handler


async def _leave_undecoded(_message: Any) -> None:
    return None

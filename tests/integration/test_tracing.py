"""One trace from producer to topic: spans of a pipeline on a real Redis, and of a real worker at a real OTLP receiver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from faststream.redis import RedisBroker
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from redis.asyncio import Redis

from tests.conftest import StartWorker
from tests.integration.parts import Collector
from tests.support import GROUP, Queue, wait_for
from tests.unit.parts import StandIn, a_decision
from worker.classifier import Decision
from worker.delivery import Delivery
from worker.embedded_redis import free_port
from worker.messages import Entry, revived_fields
from worker.metrics import Metrics
from worker.pipeline import Limits, Pipeline
from worker.tracing import Tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
LIMITS = Limits(
    batch_size=64, batch_tokens=1000, max_query_tokens=100, max_in_flight=64, max_text_bytes=100, max_deliveries=3, batch_timeout_s=10
)


def all_about_the_pool(texts: Sequence[str]) -> list[Decision]:
    if any("crash" in text for text in texts):
        raise RuntimeError("the model fell over")
    return [a_decision("pool") for _ in texts]


class Traced:
    """What became of some entries: their spans by message and name, and what is on the streams."""

    def __init__(self, queue: Queue, ids: list[str], spans: Sequence[ReadableSpan]) -> None:
        self.queue, self.ids, self.spans = queue, ids, spans
        self.routes = {(span.attributes or {})["messaging.message.id"]: span for span in spans if span.kind is SpanKind.CONSUMER}

    def below(self, entry_id: str) -> dict[str, ReadableSpan]:
        route = self.routes[entry_id]
        children = [span for span in self.spans if span.parent is not None and span.parent.span_id == route.context.span_id]
        return {span.name.partition(" ")[0]: span for span in sorted(children, key=lambda span: span.start_time or 0)}

    def published(self, entry_id: str) -> dict[bytes, bytes]:
        ((_, fields),) = self.queue.arrived()[entry_id]
        return fields


async def traced(
    queue: Queue, redis_url: str, rows: Sequence[Mapping[Any, Any]] = (), meanwhile: Callable[[], Any] = lambda: None
) -> Traced:
    """Route what is on the stream, and these rows, with a stand-in for the model and spans kept in memory."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, queue.streams, GROUP, "worker-1")
    queue.add_all(rows)
    queue.redis.xgroup_create(queue.streams.queries, GROUP, id="0")
    answer: Any = queue.redis.xreadgroup(GROUP, "worker-1", {queue.streams.queries: ">"})
    ((_, read),) = answer
    redis = Redis.from_url(redis_url)
    with ThreadPoolExecutor(1) as executor:
        delivery = Delivery(redis, queue.streams, GROUP, "keep")
        pipeline = Pipeline(StandIn(all_about_the_pool), queue.streams, delivery, Metrics(), LIMITS, executor, tracing)
        await pipeline.submit([Entry(entry_id.decode(), fields) for entry_id, fields in read])
        await pipeline.close()
        threading.Timer(0.3, meanwhile).start()
        await pipeline.run()
    await redis.aclose()
    tracing.close()
    return Traced(queue, [entry_id.decode() for entry_id, _ in read], exporter.get_finished_spans())


def traceparent(span: ReadableSpan) -> bytes:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}".encode()


async def test_one_trace_leads_from_the_producer_to_the_topic(queue: Queue, redis_url: str) -> None:
    seen = await traced(queue, redis_url, [{"text": "it hums", "traceparent": SAMPLED, "tracestate": "shop=7", "order": "42"}])
    (entry_id,) = seen.ids
    route, below = seen.routes[entry_id], seen.below(entry_id)
    assert {f"{span.context.trace_id:032x}" for span in seen.spans} == {TRACE}
    assert route.name == f"route {queue.streams.queries}"
    assert route.parent is not None
    assert (f"{route.parent.span_id:016x}", route.parent.is_remote) == (SPAN, True)
    assert list(below) == ["read", "classify", "deliver"]
    moments = [(span.start_time, span.end_time) for span in below.values()]
    assert [end for _, end in moments[:-1]] == [start for start, _ in moments[1:]], "they follow each other without a gap"
    assert moments[0][0] == route.start_time
    deliver = below["deliver"]
    assert (deliver.name, deliver.kind) == (f"deliver {queue.streams.topic('pool')}", SpanKind.PRODUCER)
    fields = seen.published(entry_id)
    assert fields[b"traceparent"] == traceparent(deliver), "the topic's reader goes on below `deliver`"
    assert (fields[b"tracestate"], fields[b"order"]) == (b"shop=7", b"42")
    attributes = below["classify"].attributes or {}
    assert attributes["pointsman.label"] == "pool"
    assert attributes["pointsman.confidence"] == pytest.approx(0.9)
    assert route.resource.attributes["service.name"] == "pointsman"


@pytest.mark.parametrize("given", [{}, {"traceparent": "00-abc-01", "tracestate": "shop=7"}, {"traceparent": b"\xff\xfe"}])
async def test_a_message_without_a_valid_context_begins_a_trace(queue: Queue, redis_url: str, given: dict[str, Any]) -> None:
    seen = await traced(queue, redis_url, [{"text": "it hums"} | given])
    (entry_id,) = seen.ids
    assert seen.routes[entry_id].parent is None
    assert seen.published(entry_id)[b"traceparent"] == traceparent(seen.below(entry_id)["deliver"])
    assert b"tracestate" not in seen.published(entry_id), "it belongs to no trace that is known"


async def test_messages_of_one_batch_keep_their_traces_apart(queue: Queue, redis_url: str) -> None:
    traces = [f"{number:032x}" for number in range(1, 21)]
    seen = await traced(queue, redis_url, [{"text": f"number {trace}", "traceparent": f"00-{trace}-{SPAN}-01"} for trace in traces])
    assert [f"{seen.routes[entry_id].context.trace_id:032x}" for entry_id in seen.ids] == traces
    assert [seen.published(entry_id)[b"traceparent"][3:35].decode() for entry_id in seen.ids] == traces
    assert {(seen.below(entry_id)["classify"].attributes or {})["pointsman.batch_size"] for entry_id in seen.ids} == {20}


async def test_the_context_in_faststreams_envelope_is_gone_on_with(queue: Queue, redis_url: str) -> None:
    async with RedisBroker(redis_url) as broker:
        await broker.publish({"text": "it hums"}, stream=queue.streams.queries, headers={"traceparent": SAMPLED})
    seen = await traced(queue, redis_url)
    (entry_id,) = seen.ids
    assert f"{seen.routes[entry_id].context.trace_id:032x}" == TRACE
    assert seen.published(entry_id)[b"traceparent"] == traceparent(seen.below(entry_id)["deliver"])


async def test_a_dead_letter_keeps_its_producers_context_and_its_trace_says_why(queue: Queue, redis_url: str) -> None:
    sent = {b"text": b" ", b"traceparent": SAMPLED.encode()}
    seen = await traced(queue, redis_url, [sent])
    (entry_id,) = seen.ids
    route = seen.routes[entry_id]
    assert revived_fields(seen.published(entry_id)) == sent
    assert route.status.status_code is StatusCode.ERROR
    assert (route.attributes or {})["error.type"] == "empty_text"
    assert list(seen.below(entry_id)) == ["read", "deliver"]


async def test_what_cannot_be_classified_ends_its_trace_with_an_error_and_its_neighbours_do_not(queue: Queue, redis_url: str) -> None:
    seen = await traced(queue, redis_url, [{"text": "it hums"}, {"text": "crash"}])
    good, bad = seen.ids
    assert (seen.routes[good].status.status_code, list(seen.below(good))) == (StatusCode.UNSET, ["read", "classify", "deliver"])
    assert (seen.routes[bad].status.status_code, list(seen.below(bad))) == (StatusCode.ERROR, ["read"])


async def test_what_redis_refuses_for_now_is_one_long_delivery(queue: Queue, redis_url: str) -> None:
    topic = queue.streams.topic("pool")
    queue.redis.set(topic, "in the way")
    seen = await traced(queue, redis_url, [{"text": "it hums"}], lambda: queue.redis.delete(topic))
    deliver = seen.below(seen.ids[0])["deliver"]
    assert {(event.name, (event.attributes or {})["error.type"]) for event in deliver.events} == {("refused for now", "WRONGTYPE")}
    assert deliver.status.status_code is StatusCode.UNSET
    assert (deliver.end_time or 0) - (deliver.start_time or 0) > 0.3e9


async def test_a_trace_that_its_producer_does_not_keep_is_gone_on_with_and_not_exported(queue: Queue, redis_url: str) -> None:
    seen = await traced(queue, redis_url, [{"text": "it hums", "traceparent": UNSAMPLED}])
    assert seen.spans == ()
    carried = seen.published(seen.ids[0])[b"traceparent"].decode()
    assert carried.startswith(f"00-{TRACE}-")
    assert carried.endswith("-00")


async def test_neither_spans_nor_logs_hold_what_a_producer_wrote(queue: Queue, redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = "my card is 4929"
    rows = [{"text": secret, "traceparent": SAMPLED, "tracestate": secret, "note": secret}, {"text": "crash " + secret}, {secret: secret}]
    seen = await traced(queue, redis_url, rows)
    assert len(seen.routes) == 3
    assert not [span.to_json() for span in seen.spans if "4929" in span.to_json()]
    assert [record.getMessage() for record in caplog.records if "4929" in record.getMessage()] == []


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def test_a_worker_sends_its_spans_to_the_collector_and_shows_the_trace_beside_its_latency(
    start_worker: StartWorker, queue: Queue, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ENDPOINT": collector.url, "COMPRESSION": "gzip"}.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "router-of-the-test")
    worker = start_worker(pace_s=0, tracing=True)
    ids = queue.add_all({"text": f"query {number}", "traceparent": SAMPLED} for number in range(30))
    arrived = queue.wait_until_arrived(ids)
    exemplars = worker.get("/metrics", accept="application/openmetrics-text")[1]
    assert f'# {{trace_id="{TRACE}"}}' in exemplars
    assert worker.stop() == 0
    spans = collector.spans()
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    delivered = {span.span_id.hex() for span in spans if span.name.startswith("deliver ")}
    assert delivered == {fields[b"traceparent"].decode()[36:52] for ((_, fields),) in arrived.values()}
    assert len(spans) == 4 * len(ids), "the last are sent before the worker ends"
    names = {item.key: item.value.string_value for item in collector.requests[0].resource_spans[0].resource.attributes}
    assert names["service.name"] == "router-of-the-test"


def test_a_collector_that_is_away_holds_up_neither_the_work_nor_the_end(
    start_worker: StartWorker, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    worker = start_worker(pace_s=0, tracing=True, log_level="warning")
    queue.assert_each_once(queue.add_all(f"query {number}" for number in range(600)))  # more spans than are kept
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 20
    assert len(worker.log.splitlines()) < 20, "it is told of, not with every batch of spans"


def test_without_tracing_the_exemplar_is_the_producers_trace_and_nothing_is_changed(start_worker: StartWorker, queue: Queue) -> None:
    worker = start_worker(pace_s=0)
    entry_id = queue.add({"text": "it hums", "traceparent": SAMPLED})
    ((_, fields),) = queue.wait_until_arrived([entry_id])[entry_id]
    assert fields[b"traceparent"] == SAMPLED.encode()
    wait_for(lambda: worker.metrics()["pointsman_published_total"] == 1, "it to be counted")
    assert f'# {{trace_id="{TRACE}"}}' in worker.get("/metrics", accept="application/openmetrics-text; version=1.0.0")[1]
    assert "trace_id" not in worker.get("/metrics")[1], "plain text has no exemplars"

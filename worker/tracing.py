"""One trace from producer to topic, as OpenTelemetry spans. Never the text of a query.

The producer puts its W3C trace context on the entry, as `traceparent`. Below it each message gets a span `route` with the
children `read`, `classify` and `deliver`, which follow each other without a gap; the published entry carries the context of
`deliver`, so that whoever reads the topic goes on in the same trace.

The one module that imports OpenTelemetry, which is an extra; OTEL_* variables say where spans go and which are taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker import __version__
from worker.delivery import Delivered, Result
from worker.errors import NotDelivered
from worker.messages import REASON_FIELD, TRACE_FIELDS, Entry, Outgoing, trace_context
from worker.routing import Streams

LAST_SPANS_S = 5.0
"""How long a worker that stops tries to send what is left; a collector that is away must not hold it up."""
_W3C = TraceContextTextMapPropagator()
logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)  # its warnings quote what producers sent


class Tracing:
    """The spans of the messages in flight. One event loop owns it; a thread of its own sends what has ended.

    Args:
        exporter: where spans go.
        consumer: this worker's name, which tells its spans from those of others.
    """

    def __init__(self, exporter: SpanExporter, streams: Streams, group: str, consumer: str) -> None:
        ours = Resource({"service.name": "pointsman", "service.version": __version__, "service.instance.id": consumer})
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._exporter = exporter
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pointsman", __version__)
        self._name = f"route {streams.queries}"
        self._common = {"messaging.system": "redis", "messaging.consumer.group.name": group, "messaging.destination.name": streams.queries}
        self._open: dict[str, tuple[Span, Span]] = {}

    def decided(self, batch: Sequence[tuple[Entry, float]], outgoing: Sequence[Outgoing], taken_up: float) -> list[Outgoing]:
        """A batch was decided: show how, and begin to show its delivery.

        Args:
            batch: each entry, and when it was read.
            outgoing: what became of them. Entries of which nothing did stay pending, and their trace ends with an error.
            taken_up: when the model was given the batch; moments are those of time.perf_counter().

        Returns the same, each with the trace context that its reader goes on with. Dead letters keep that of their producer.
        """
        decided, clock = time.time_ns(), time.perf_counter()

        def at(moment: float) -> int:
            return decided - int((clock - moment) * 1e9)

        routes = {entry.id: self._route(entry, at(read), at(taken_up)) for entry, read in batch}
        carried = []
        for one in outgoing:
            route = routes.pop(one.entry.id)
            deliver = self._way(one, route, len(batch), at(taken_up), decided) if route.is_recording() else route
            self._open[one.entry.id] = (route, deliver)
            carried.append(one if REASON_FIELD in one.fields else _carrying(one, deliver))
        for route in routes.values():
            route.set_status(Status(StatusCode.ERROR, "not classified, left pending"))
            route.end(decided)
        return carried

    def tried(self, outgoing: Outgoing, result: Result) -> None:
        """Redis has answered to its delivery, which is the end of it unless it is refused for now."""
        if isinstance(result, NotDelivered) and result.temporary:
            self._open[outgoing.entry.id][1].add_event("refused for now", {"error.type": result.code})
            return
        route, deliver = self._open.pop(outgoing.entry.id)
        deliver.set_attribute("pointsman.outcome", type(result).__name__)
        if isinstance(result, Delivered):
            deliver.set_attribute("messaging.message.id", result.id)
        if isinstance(result, NotDelivered):
            for span in (deliver, route):
                span.set_status(Status(StatusCode.ERROR, "refused, left pending"))
            deliver.set_attribute("error.type", result.code)
        deliver.end()
        route.end()

    def close(self) -> None:
        """Send what has ended, for LAST_SPANS_S at most."""
        limit = threading.Timer(LAST_SPANS_S, self._exporter.shutdown)
        limit.start()
        self._provider.shutdown()
        limit.cancel()

    def _route(self, entry: Entry, read_ns: int, taken_ns: int) -> Span:
        parent = _W3C.extract(trace_context(entry), Context())
        attributes = self._common | {"messaging.operation.type": "process", "messaging.message.id": entry.id}
        route = self._tracer.start_span(self._name, parent, SpanKind.CONSUMER, attributes, start_time=read_ns)
        if route.is_recording():
            route.set_attribute("pointsman.deliveries", entry.deliveries)
            self._tracer.start_span("read", set_span_in_context(route, Context()), start_time=read_ns).end(taken_ns)
        return route

    def _way(self, outgoing: Outgoing, route: Span, batch_size: int, taken_ns: int, decided_ns: int) -> Span:
        """How it was decided, and the span of its delivery, which begins."""
        inside = set_span_in_context(route, Context())
        if REASON_FIELD in outgoing.fields:
            route.set_status(Status(StatusCode.ERROR, "dead"))
            route.set_attribute("error.type", outgoing.fields[REASON_FIELD].decode())
        else:
            attributes = _decision(outgoing.fields) | {"pointsman.batch_size": batch_size}
            self._tracer.start_span("classify", inside, attributes=attributes, start_time=taken_ns).end(decided_ns)
        sending = {"messaging.system": "redis", "messaging.operation.type": "send", "messaging.destination.name": outgoing.stream}
        return self._tracer.start_span(f"deliver {outgoing.stream}", inside, SpanKind.PRODUCER, sending, start_time=decided_ns)


def to_collector(streams: Streams, group: str, consumer: str) -> Tracing:
    """Tracing that sends to the collector of OTEL_EXPORTER_OTLP_ENDPOINT, http://localhost:4318 if that is not set."""
    return Tracing(OTLPSpanExporter(), streams, group, consumer)


def _decision(fields: Mapping[bytes, bytes]) -> dict[str, str | float]:
    return {
        "pointsman.label": fields[b"pointsman.label"].decode(),
        "pointsman.confidence": float(fields[b"pointsman.confidence"]),
        "pointsman.model": fields[b"pointsman.model"].decode(),
    }


def _carrying(outgoing: Outgoing, span: Span) -> Outgoing:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, set_span_in_context(span))
    others = {name: value for name, value in outgoing.fields.items() if name not in TRACE_FIELDS}
    return replace(outgoing, fields=others | {name.encode(): value.encode() for name, value in carrier.items()})

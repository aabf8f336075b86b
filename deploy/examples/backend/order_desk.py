"""An order desk, as a backend beside Pointsman: users write to it, Pointsman sorts what they write, it handles some categories.

POST /messages {"text": "..."}   puts the message on the stream of queries: 202 with its id and trace
GET  /healthz                    200 while the desk reads its topics

REDIS_URL, NAMESPACE, TOPICS (categories, by comma) and PORT (0 for a free one) say with whom it talks; with OTEL_EXPORTER_OTLP_ENDPOINT
its spans go to a collector. It prints a line of JSON for each message that it takes and handles, never with the text.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from redis import Redis
from redis.exceptions import RedisError, ResponseError

NAMESPACE = os.environ.get("NAMESPACE", "pointsman")
QUERIES = f"{NAMESPACE}:queries"
TOPICS = [f"{NAMESPACE}:topic:{name}" for name in os.environ.get("TOPICS", "pool,irrigation").split(",")]
GROUP, NAME = "order-desk", f"{socket.gethostname()}-{os.getpid()}"
LONGEST_BODY = 16_384
LEFT_BEHIND_MS = 60_000
"""A message that a desk has taken and not handled for so long is another desk's."""

redis: Any = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), decode_responses=True)
tracer = trace.get_tracer("order-desk")


def accept(text: str, headers: dict[str, str]) -> dict[str, str]:
    """Put a message on the stream of queries, with the trace that the user's request belongs to. Raises RedisError."""
    message = {"text": text, "id": str(uuid.uuid4())}
    with tracer.start_as_current_span(f"send {QUERIES}", propagate.extract(headers), trace.SpanKind.PRODUCER) as span:
        propagate.inject(message)
        redis.xadd(QUERIES, message)
        return {"id": message["id"], "trace": trace.format_trace_id(span.get_span_context().trace_id)}


def handle(topic: str, message: dict[str, str]) -> None:
    """What a real desk would do with an order. It may get a message twice, if it ends before it has acknowledged it."""
    with tracer.start_as_current_span(f"process {topic}", propagate.extract(message), trace.SpanKind.CONSUMER) as span:
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        say("handled", id=message.get("id"), topic=topic, confidence=float(message["pointsman.confidence"]), trace=trace_id)


def arriving() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Topic, entry id and fields of what there is to do: what other desks left behind, then what is new within a second."""
    for topic in TOPICS:
        left_behind = redis.xautoclaim(topic, GROUP, NAME, min_idle_time=LEFT_BEHIND_MS, count=16)[1]
        yield from ((topic, entry_id, fields) for entry_id, fields in left_behind if fields)
    for topic, entries in redis.xreadgroup(GROUP, NAME, dict.fromkeys(TOPICS, ">"), count=16, block=1000) or ():
        yield from ((topic, entry_id, fields) for entry_id, fields in entries)


def work(stopping: threading.Event) -> None:
    """Handle what arrives until told to stop. While Redis is away it tries again."""
    grouped = False
    while not stopping.is_set():
        try:
            if not grouped:
                make_groups()
                grouped = True
            for topic, entry_id, message in arriving():
                handle(topic, message)
                redis.xack(topic, GROUP, entry_id)
        except RedisError as error:
            grouped = False
            say("waiting for Redis", error=str(error))
            stopping.wait(1)


def make_groups() -> None:
    for topic in TOPICS:
        try:
            redis.xgroup_create(topic, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise


class Desk(BaseHTTPRequestHandler):
    """The HTTP side."""

    worker: threading.Thread

    def do_GET(self) -> None:
        if self.path != "/healthz":
            return self.answer(404, {})
        return self.answer(200 if self.worker.is_alive() else 503, {})

    def do_POST(self) -> None:
        if self.path != "/messages":
            return self.answer(404, {"error": "POST /messages"})
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= LONGEST_BODY:
            return self.answer(413, {"error": f"at most {LONGEST_BODY} bytes"})
        try:
            text = json.loads(self.rfile.read(length))["text"]
        except (ValueError, TypeError, KeyError):
            text = None
        if not isinstance(text, str) or not text.strip():
            return self.answer(400, {"error": 'send {"text": "..."}'})
        try:
            accepted = accept(text, {name.lower(): value for name, value in self.headers.items()})
        except RedisError:
            return self.answer(503, {"error": "try again"})
        say("accepted", **accepted)
        return self.answer(202, accepted)

    def answer(self, status: int, body: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No line for each request."""


def say(event: str, **what: object) -> None:
    sys.stdout.write(json.dumps({"event": event} | what) + "\n")
    sys.stdout.flush()


def main() -> None:
    provider = TracerProvider()
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    stopping = threading.Event()
    Desk.worker = threading.Thread(target=work, args=(stopping,))
    server = ThreadingHTTPServer(("", int(os.environ.get("PORT", "8000"))), Desk)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    Desk.worker.start()
    say("listening", port=server.server_port, topics=TOPICS)
    server.serve_forever()
    stopping.set()
    Desk.worker.join()
    provider.shutdown()


if __name__ == "__main__":
    main()

"""What several integration tests share: model files of their own, and a collector of traces."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support import ROOT
from trainer.recipe import load_recipe

RECIPE = ROOT / "trainer" / "recipes" / "household-smollm2.yaml"


def base_file() -> Path:
    """The untrained base: a GGUF without Pointsman metadata."""
    return load_recipe(RECIPE).base.path()


def metadata(names: Iterable[str], prefix: str, suffix: str, probes: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Metadata of a model whose codes are its labels' names, which may be several tokens long."""
    return {
        "format": 1,
        "labels": {"labels": [{"name": name, "description": "", "code": name} for name in names], "out_of_scope": None},
        "prompt": {"prefix": prefix, "suffix": suffix},
        "calibration": {"temperature": 1.0, "threshold": 0.0, "thresholds": {}},
        "evaluation": {},
        "probes": {"tolerance": 0.1, "probes": list(probes)},
        "training": {"name": "untrained", "version": "0", "base": "SmolLM2-135M-Instruct"},
    }


class Collector:
    """Stands where an OpenTelemetry collector would: takes OTLP over HTTP and keeps what came. A context manager."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                packed = self.headers.get("Content-Encoding") == "gzip"
                if self.path == "/v1/traces":
                    collector.requests.append(ExportTraceServiceRequest.FromString(gzip.decompress(body) if packed else body))
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def spans(self) -> list[Span]:
        return [span for one in self.requests for part in one.resource_spans for scope in part.scope_spans for span in scope.spans]

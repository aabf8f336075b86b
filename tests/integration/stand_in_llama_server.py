#!/usr/bin/env python3
"""Speaks as much of llama-server's HTTP as the benchmark asks for; ANSWER is what it says to everything.

The real one is no part of llama-cpp-python and takes minutes to compile.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = os.environ["ANSWER"]


class Handler(BaseHTTPRequestHandler):
    def _say(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._say({"status": "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert "root ::=" in asked["grammar"]
        assert asked["prompt"].endswith(" Topic")
        self._say({"content": ANSWER})

    def log_message(self, *_: object) -> None: ...


if ANSWER == "nothing":
    sys.exit("error: no such model")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()

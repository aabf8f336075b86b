"""A worker as a child process: for the demo and the benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from worker.embedded_redis import end_process, free_port
from worker.errors import Fatal

PATIENCE_S = 60.0
open_local = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""Like urlopen, but past any proxy: workers are near, and a proxy that stands in the environment is for what is far."""


@dataclass(frozen=True, slots=True)
class Running:
    """A worker that is ready."""

    url: str
    """Its HTTP address."""
    pid: int


@contextmanager
def worker_process(command: Sequence[str], redis_url: str, settings: Mapping[str, str]) -> Iterator[Running]:
    """Run `python -m command`, until it is ready and then until the caller is done: it is stopped by SIGTERM.

    Args:
        settings: by the names of the environment, without POINTSMAN_. Nothing else of the caller's settings is passed on.

    Raises:
        Fatal: it ended, or was not ready in time.
    """
    port = free_port()
    own = {"REDIS_URL": redis_url, "HTTP_PORT": str(port), "LOG_LEVEL": "warning", **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POINTSMAN_")}
    environment |= {f"POINTSMAN_{name}": value for name, value in own.items()}
    process = subprocess.Popen([sys.executable, "-m", *command], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _ready(url):
            if process.poll() is not None:
                raise Fatal(f"the worker ended with exit code {process.returncode}; it says why above")
            if time.monotonic() > deadline:
                raise Fatal(f"the worker was not ready after {PATIENCE_S:.0f} s")
            time.sleep(0.05)
        yield Running(url, process.pid)
    finally:
        end_process(process, patience_s=30)


def _ready(url: str) -> bool:
    try:
        with open_local(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False

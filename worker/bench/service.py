"""Whole workers on a real Redis: how many messages a second, and how long each one takes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from redis import Redis

from worker.bench.rounds import rates
from worker.classifier import Classifier
from worker.errors import Fatal
from worker.routing import Streams
from worker.worker_process import worker_process

STREAMS = Streams("pointsman-bench")
PATIENCE_S = 120.0
GROUP = "routers"
STAND_IN_SETTINGS = {"BATCH_SIZE": "256", "MAX_IN_FLIGHT": "1024"}
"""Without a model to wait for, the largest batch is best."""
_FILL = """
for number = 1, tonumber(ARGV[1]) do
  redis.call("XADD", KEYS[1], "*", "text", ARGV[2 + (number - 1) % (#ARGV - 1)])
end
"""


@dataclass(frozen=True, slots=True)
class Latency:
    """From XADD to publication, by Redis' clock, at one rate of arrival."""

    offered_per_s: float
    """0 for one message at a time, the next when the last was published."""
    messages: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Saturation:
    """A full queue, from the first publication to the last."""

    messages: int
    messages_per_s: float


def clear(redis: Redis) -> None:
    """Remove the streams of this benchmark and of nothing else."""
    if keys := list(redis.scan_iter(match=f"{STREAMS.queries.rpartition(':')[0]}:*", count=1000)):
        redis.delete(*keys)


def fill(redis: Redis, texts: Sequence[str], count: int) -> None:
    """Add so many entries at once, from inside Redis: producers take no part in what is measured."""
    redis.eval(_FILL, 1, STREAMS.queries, count, *texts)


@contextmanager
def worker(redis_url: str, model: Path, pace_s: float | None = None, **settings: str) -> Iterator[None]:
    """A worker process; with `pace_s` its model is the stand-in."""
    command = ["worker", "run"] if pace_s is None else ["worker.bench.stand_in", str(model), str(pace_s)]
    with worker_process(command, redis_url, {"MODEL": str(model), "NAMESPACE": "pointsman-bench", **settings}):
        yield


def saturate(redis: Redis, texts: Sequence[str], count: int) -> Saturation:
    """Give idle workers a full queue at once, and time them from the first publication to the last."""
    clear_outputs(redis)
    fill(redis, texts, count)
    _wait(redis, count)
    times = sorted(published_ms for _, published_ms in _published(redis))
    # A batch is published at once: the one that starts the clock was computed before it.
    first = times.count(times[0])
    return Saturation(count, (len(times) - first) / max((times[-1] - times[0]) / 1000, 1e-3))


def latencies(
    redis: Redis, texts: Sequence[str], rates_per_s: Sequence[float], seconds: float, on_step: Callable[[], None]
) -> list[Latency]:
    """Arrivals at random moments (Poisson), whether or not the worker keeps up; rate 0 is one at a time."""
    found = []
    for rate in rates_per_s:
        clear_outputs(redis)
        source, sent = random.Random(int(rate * 1000)), 0
        ends, due = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < ends:
            redis.xadd(STREAMS.queries, {"text": texts[sent % len(texts)]})
            sent += 1
            if rate == 0:
                _wait(redis, sent)
            else:
                due += source.expovariate(rate)
                time.sleep(max(0.0, due - time.monotonic()))
        _wait(redis, sent)
        times = [published - added for added, published in _published(redis)]
        cuts = quantiles(times, n=100, method="inclusive")
        found.append(Latency(rate, sent, cuts[49], cuts[98]))
        on_step()
    return found


def clear_outputs(redis: Redis) -> None:
    for name in _outputs(redis):
        redis.delete(name)


def bare_lua(redis: Redis, batch_size: int, count: int) -> float:
    """Messages/s of a loop of redis-py alone: read a batch, commit it with the worker's own Lua script."""
    script = redis.register_script(files("worker").joinpath("delivery.lua").read_text(encoding="utf-8"))
    redis.xgroup_create(STREAMS.queries, GROUP, id="0")
    outputs = [STREAMS.topic(f"label{number}") for number in range(19)]
    done, started = 0, time.perf_counter()
    while done < count:
        replies: Any = redis.xreadgroup(GROUP, "bare", {STREAMS.queries: ">"}, count=batch_size)
        arguments: list[Any] = [GROUP, "keep"]
        for number, (entry_id, fields) in enumerate(replies[0][1]):
            arguments += (entry_id, 2 + number % len(outputs), 2 * len(fields) + 2, *(part for pair in fields.items() for part in pair))
            arguments += ("pointsman.id", entry_id)
        script(keys=[STREAMS.queries, *outputs], args=arguments)
        done += len(replies[0][1])
    return count / (time.perf_counter() - started)


def end_to_end(
    redis: Redis, redis_url: str, model: Path, texts: Sequence[str], rounds: int, on_step: Callable[[], None]
) -> Mapping[str, list[float]]:
    """Messages/s through Redis, and of the classifier alone on the same texts, in turns."""
    found: dict[str, list[float]] = {"through Redis": [], "engine alone": []}
    for _ in range(rounds):
        classifier = Classifier.open(model)
        alone = rates({"engine alone": lambda: len(classifier.classify(texts))}, 2)  # noqa: B023 - called before the next round
        classifier.close()
        found["engine alone"].append(max(alone["engine alone"]))
        clear(redis)
        with worker(redis_url, model):
            found["through Redis"].append(saturate(redis, texts, len(texts)).messages_per_s)
        on_step()
    return found


def scale_out(
    redis: Redis, redis_url: str, model: Path, pace_s: float, counts: Sequence[int], seconds: float, on_step: Callable[[], None]
) -> dict[int, float]:
    """Messages/s of several workers whose model is the paced stand-in."""
    found = {}
    for count in counts:
        clear(redis)
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(worker(redis_url, model, pace_s))
            found[count] = saturate(redis, ["how much was it"], int(count * seconds / pace_s)).messages_per_s
        on_step()
    return found


def _outputs(redis: Redis) -> list[Any]:
    return [
        name for name in redis.scan_iter(match=f"{STREAMS.queries.rpartition(':')[0]}:*", count=1000) if name.decode() != STREAMS.queries
    ]


def _wait(redis: Redis, count: int) -> None:
    """Until so many entries are published."""
    deadline = time.monotonic() + PATIENCE_S
    names = _outputs(redis)
    while sum(redis.xlen(name) for name in names) < count:
        if time.monotonic() > deadline:
            raise Fatal(f"not all of {count} messages were published within {PATIENCE_S:.0f} s")
        time.sleep(0.001 if count < 1000 else 0.02)
        names = _outputs(redis)


def _published(redis: Redis) -> list[tuple[int, int]]:
    """(added, published) in milliseconds of everything on the output streams."""
    found = []
    for name in _outputs(redis):
        for entry_id, fields in redis.xrange(name):
            found.append((int(fields[b"pointsman.id"].partition(b"-")[0]), int(entry_id.partition(b"-")[0])))
    return found


def overall(found: Mapping[str, list[float]]) -> tuple[float, float, float]:
    """Medians of both rates of `end_to_end`, and of their ratio."""
    through, alone = found["through Redis"], found["engine alone"]
    return median(through), median(alone), median(left / right for left, right in zip(through, alone, strict=True))

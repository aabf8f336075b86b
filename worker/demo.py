"""`make demo`: a real Redis, a real worker, real queries; every one must arrive exactly once."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any, cast

from redis.asyncio import Redis
from rich import box
from rich.console import Console
from rich.table import Table

from worker.embedded_redis import embedded_redis
from worker.errors import Fatal
from worker.routing import Streams
from worker.terminal import progress
from worker.worker_process import PATIENCE_S, open_local, worker_process

ONE_BY_ONE = 60
BURST = 100
STREAMS = Streams()
OUT_OF_SCOPE = "out_of_scope"


@dataclass(frozen=True, slots=True)
class Sample:
    """A query and, if known, its right label."""

    text: str
    label: str | None


@dataclass(slots=True)
class Arrivals:
    """What was seen on the output streams, by the number that the query was sent with."""

    streams: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    latency_ms: dict[int, int] = field(default_factory=dict)
    last_ms: int = 0


def read_samples(path: Path) -> list[Sample]:
    """JSON lines of {"text", "label"}, or plain text, a query a line."""
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.startswith("{"):
            try:
                row = json.loads(line)
                samples.append(Sample(str(row["text"]), row.get("label")))
            except (ValueError, KeyError) as error:
                raise Fatal(f'{path}, line {number}: not a JSON object with "text" ({error})') from error
        elif line.strip():
            samples.append(Sample(line, None))
    if not samples:
        raise Fatal(f"{path} holds no queries")
    return samples


def demo(model: Path, samples: Sequence[Sample], console: Console) -> bool:
    """Route all samples and print what happened. True if each arrived exactly once."""
    with tempfile.TemporaryDirectory(prefix="pointsman-demo-") as directory, embedded_redis(Path(directory)) as redis_url:
        console.print(f"Redis    {redis_url} (embedded, for this demo alone)")
        with ExitStack() as stack:
            with console.status("loading and checking the model"):
                http_url = stack.enter_context(worker_process(["worker", "run"], redis_url, {"MODEL": str(model)})).url
            console.print(f"worker   {http_url}/metrics  /readyz  /asyncapi")
            return asyncio.run(_route(redis_url, http_url, samples, console))


async def _route(redis_url: str, http_url: str, samples: Sequence[Sample], console: Console) -> bool:
    redis = Redis.from_url(redis_url)
    labels = sorted({sample.label for sample in samples if sample.label is not None})
    watched = [STREAMS.review, STREAMS.dead, *(STREAMS.topic(label) for label in labels)]
    arrivals = Arrivals()
    lone = min(ONE_BY_ONE, len(samples))
    burst_s, burst_ids = 0.0, list(range(lone, len(samples)))
    positions: dict[str, str] = dict.fromkeys(watched, "0-0")
    with progress(console) as bar:
        task = bar.add_task("one by one", total=len(samples))
        for number in range(lone):
            await redis.xadd(STREAMS.queries, {"text": samples[number].text, "id": number})
            await _wait(redis, positions, arrivals, {number})
            bar.advance(task)
        bar.update(task, description="in bursts")
        for start in range(0, len(burst_ids), BURST):
            numbers = burst_ids[start : start + BURST]
            pipe = redis.pipeline(transaction=False)
            for number in numbers:
                pipe.xadd(STREAMS.queries, {"text": samples[number].text, "id": number})
            first_ms = int((await pipe.execute())[0].partition(b"-")[0])
            await _wait(redis, positions, arrivals, set(numbers))
            burst_s += (arrivals.last_ms - first_ms) / 1000
            bar.advance(task, len(numbers))
    await _wait(redis, positions, arrivals, set(), settle_s=0.3)
    pending = (await redis.xpending(STREAMS.queries, "routers"))["pending"]
    await redis.aclose()

    console.print(_routes(samples, arrivals, labels))
    alone = [arrivals.latency_ms[n] for n in range(lone) if n in arrivals.latency_ms]
    burst = [arrivals.latency_ms[n] for n in burst_ids if n in arrivals.latency_ms]
    console.print(f"XADD to publish, one by one      {_percentiles(alone)}")
    if burst:
        console.print(f"XADD to publish, bursts of {BURST:<4}  {_percentiles(burst)}, {len(burst) / max(burst_s, 0.001):.0f} messages/s")
    console.print(f"as Prometheus saw it             {_published(http_url)} published; metrics were at {http_url}/metrics", soft_wrap=True)
    lost = [n for n in range(len(samples)) if not arrivals.streams[n]]
    doubled = [n for n in range(len(samples)) if len(arrivals.streams[n]) > 1]
    console.print(f"exactly once                     {len(samples) - len(lost) - len(doubled)} of {len(samples)}, "
                  f"{len(lost)} lost, {len(doubled)} doubled, {pending} pending")  # fmt: skip
    return not lost and not doubled and pending == 0


async def _wait(redis: Redis, positions: dict[str, str], arrivals: Arrivals, numbers: set[int], settle_s: float = 0.0) -> None:
    """Read the output streams until all `numbers` are there; then for `settle_s` more, to catch doubles."""
    deadline = time.monotonic() + (settle_s or PATIENCE_S)
    while (settle_s or not all(arrivals.streams.get(n) for n in numbers)) and time.monotonic() < deadline:
        for name, entries in await _read(redis, positions):
            positions[name] = entries[-1][0].decode()
            for entry_id, fields in entries:
                number = int(fields[b"id"])
                arrivals.streams[number].append(name)
                arrived_ms = int(entry_id.partition(b"-")[0])
                arrivals.latency_ms[number] = arrived_ms - int(fields[b"pointsman.id"].partition(b"-")[0])
                arrivals.last_ms = arrived_ms


async def _read(redis: Redis, positions: dict[str, str]) -> list[tuple[str, list[tuple[bytes, dict[bytes, bytes]]]]]:
    async for name in redis.scan_iter(match=STREAMS.topic("") + "*", count=1000):  # a query may go to a label that no sample has
        positions.setdefault(name.decode(), "0-0")
    found: Any = await redis.xread(cast("Any", positions), block=100)
    return [(name.decode(), entries) for name, entries in found or []]


def _routes(samples: Sequence[Sample], arrivals: Arrivals, labels: Sequence[str]) -> Table:
    table = Table(title="where the queries went", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("category", min_width=14, no_wrap=True)
    for column in ("queries", "right", "to review", "wrong"):
        table.add_column(column, justify="right", min_width=len(column), no_wrap=True)
    table.add_column("went to instead", max_width=30)
    totals: Counter[str] = Counter()
    for label in (*labels, *([None] if any(s.label is None for s in samples) else [])):
        numbers = [n for n, sample in enumerate(samples) if sample.label == label]
        went = Counter(arrivals.streams[n][0] for n in numbers if arrivals.streams[n])
        right = went.pop(STREAMS.topic(label), 0) if label is not None else 0
        review = went.pop(STREAMS.review, 0)
        if label == OUT_OF_SCOPE:
            right, review = review, 0
        wrong = sum(went.values())
        totals.update({"queries": len(numbers), "right": right, "review": review, "wrong": wrong})
        others = ", ".join(f"{name.rpartition(':')[2]} {count}" for name, count in went.most_common(3))
        table.add_row(label or "(not labelled)", *map(_blank_zero, (len(numbers), right, review, wrong)), others)
    table.add_section()
    table.add_row("all", *(str(totals[key]) for key in ("queries", "right", "review", "wrong")), "")
    if OUT_OF_SCOPE in labels:
        table.caption = f"right for {OUT_OF_SCOPE} is the review stream"
    return table


def _blank_zero(count: int) -> str:
    return str(count) if count else "·"


def _percentiles(values: Sequence[int]) -> str:
    if len(values) < 2:
        return "too few to say"
    cuts = quantiles(values, n=100, method="inclusive")
    return f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms"


def _published(http_url: str) -> str:
    with open_local(f"{http_url}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("pointsman_published_total "):
                return f"{float(line.split()[1]):.0f}"
    return "none"

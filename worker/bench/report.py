"""All benchmarks in turn, and their figures as a table, JSON, CSV and a plot."""

from __future__ import annotations

import csv
import json
import platform
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from worker.bench import engine, service
from worker.classifier import Classifier, EngineOptions, tuning
from worker.classifier.cores import available_cores, cpu_name
from worker.classifier.engine import backend, call_tokens, layers_on_gpu, system_info
from worker.embedded_redis import embedded_redis
from worker.settings import Settings
from worker.terminal import progress

GOALS = {
    "engine / prefill": 1.0,
    "engine / prefill, unlike texts": 1.0,
    "engine / create_completion": 10.0,
    "engine / llama-server": 3.0,
    "through Redis / engine": 0.97,
    "stand-in / bare redis-py": 0.4,
}
CEILINGS = {"p50 alone / forward pass": 1.3, "p99 at half load / forward pass": 3.0}
STAND_IN_PER_S = 15_000
"""Messages that a worker shall move without a model's work, so that a GPU would not starve."""
PACKAGES = ("pointsman", "llama-cpp-python", "faststream", "redis")
SCALE_PACE_S = 0.005
SCALE_WORKERS = (1, 2, 4, 8, 16)
MEMORY_MESSAGES = 200_000


@dataclass(frozen=True, slots=True)
class Report:
    """Everything measured in one run on one machine."""

    machine: dict[str, Any]
    ratios: dict[str, float]
    engine: engine.EngineFigures
    through_redis_per_s: float
    stand_in: service.Flow
    bare_redis_per_s: float
    latencies: list[service.Latency]
    scale_out: dict[int, service.Flow]
    """By number of workers, with a stand-in model of SCALE_PACE_S a message; empty in a quick run."""

    memory: service.Memory | None
    """None in a quick run."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    settings: Settings, texts: Sequence[str], console: Console, *, quick: bool, redis_url: str | None = None, server: Path | None = None
) -> Report:
    """Measure engine, pipeline and whole service, in the format and with the options that a worker would use.

    Args:
        texts: the queue.
        quick: take fewer rounds.
        redis_url: a Redis to measure on; an embedded one if not given.
        server: a llama-server to compare with.

    Raises:
        Fatal: Redis or a worker does not start or does not finish.
    """
    rounds, seconds, shares = (3, 4.0, (0.25, 0.5, 0.75)) if quick else (7, 30.0, (0.1, 0.25, 0.5, 0.75, 0.9))
    stand_in_messages = 20_000 if quick else 60_000
    with ExitStack() as stack:
        bar = stack.enter_context(progress(console))
        steps = {"engine": (7 + bool(server)) * rounds, "through Redis": rounds, "stand-in": rounds, "latency": 1 + len(shares)}
        counts = () if quick else SCALE_WORKERS
        steps |= {} if quick else {"scale-out": len(counts), "memory": 1}
        tasks = {name: bar.add_task(name, total=total) for name, total in steps.items()}
        if redis_url is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pointsman-bench-"))
            redis_url = stack.enter_context(embedded_redis(Path(directory)))
        options = EngineOptions(sequences=settings.batch_size, threads=settings.threads)
        path, options = tuning.choose(settings.model, settings.format, settings.cache_dir, options, n_gpu_layers=settings.n_gpu_layers)
        made = machine(path, options, settings.n_gpu_layers)
        running = service.make(redis_url, path, options, made.pop("labels"), settings)
        stack.callback(service.clear, running)

        figures = engine.measure(
            path, options, texts, rounds, lambda: bar.advance(tasks["engine"]), n_gpu_layers=settings.n_gpu_layers, server=server
        )
        whole, stand_in, times = [], [], []
        for _ in range(rounds):
            whole.append(service.through_redis(running, texts))
            bar.advance(tasks["through Redis"])
        for _ in range(rounds):
            stand_in.append(service.stand_in(running, texts, stand_in_messages))
            bar.advance(tasks["stand-in"])
        made["redis-server"] = service.redis_version(running)
        through = median(flow.messages_per_s for flow, _ in whole)
        service.clear(running)
        length = figures.forward_pass_tokens
        with service.worker(running), engine.prefill(path, options, settings.n_gpu_layers, length) as decode:
            for share in (0.0, *shares):
                times.append(service.latency(running, texts, share * through, seconds, lambda: decode() / length))
                bar.advance(tasks["latency"])

        scaled = {}
        for count in counts:
            scaled[count] = service.scale_out(running, count, SCALE_PACE_S, seconds=6.0)
            bar.advance(tasks["scale-out"])
        soaked = None
        if not quick:
            soaked = service.memory(running, texts, MEMORY_MESSAGES)
            bar.advance(tasks["memory"])

    half = min(times[1:], key=lambda latency: abs(latency.offered_per_s - through / 2))
    ratios = {
        "engine / prefill": figures.to_prefill,
        "engine / prefill, unlike texts": figures.unlike_to_prefill,
        "engine / create_completion": figures.to_ordinary,
        **({} if figures.to_server is None else {"engine / llama-server": figures.to_server}),
        "through Redis / engine": median(flow.messages_per_s / alone for flow, alone in whole),
        "stand-in / bare redis-py": median(flow.messages_per_s / bare for flow, bare in stand_in),
        "p50 alone / forward pass": times[0].p50_ms / times[0].forward_pass_ms,
        "p99 at half load / forward pass": half.p99_ms / half.forward_pass_ms,
    }
    bare_per_s = median(bare for _, bare in stand_in)
    flow = service.Flow(median(flow.messages_per_s for flow, _ in stand_in), median(flow.redis_us for flow, _ in stand_in))
    return Report(made, ratios, figures, through, flow, bare_per_s, times, scaled, soaked)


def machine(model: Path, options: EngineOptions, n_gpu_layers: int) -> dict[str, Any]:
    """What the figures were made on and with."""
    classifier = Classifier.open(model, n_gpu_layers=n_gpu_layers)
    card, weights = classifier.card, classifier.weight_format
    classifier.close()
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "backend": backend(n_gpu_layers),
        "features": system_info(),
        "model": f"{card.name} {card.version} ({card.base})",
        "format": weights,
        "engine": asdict(options) | {"batch_tokens": call_tokens(options, on_gpu=layers_on_gpu(n_gpu_layers) != 0)},
        "labels": card.labels.names,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def table(report: Report) -> Table:
    made = report.machine
    title = f"{made['model']}, {made['format']}, on {made['cores']} cores of {made['cpu']}"
    grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    grid.add_column("ratio (median), and a rate", no_wrap=True)
    for column in ("measured", "goal"):
        grid.add_column(column, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)

    def add(name: str, measured: str, goal: str, *, reached: bool) -> None:
        grid.add_row(name, measured, goal, "ok" if reached else "missed", style="" if reached else "yellow")

    for name, value in report.ratios.items():
        if name in CEILINGS:
            add(name, f"{value:.2f}", f"<= {CEILINGS[name]:g}", reached=value <= CEILINGS[name])
        else:
            add(name, f"{value:.2f}", f">= {GOALS[name]:g}", reached=value >= GOALS[name])
    moved = report.stand_in.messages_per_s
    add("stand-in, messages/s", f"{moved:,.0f}", f">= {STAND_IN_PER_S:,}", reached=moved >= STAND_IN_PER_S)
    return grid


def lines(report: Report) -> list[str]:
    """The absolute figures, which hold for this machine at this moment only."""
    figures, made = report.engine, report.machine
    flows = {f"with batches of {service.STAND_IN_SETTINGS['BATCH_SIZE']}": report.stand_in}
    if report.scale_out:
        flows[f"with {max(report.scale_out)} workers, in small batches"] = report.scale_out[max(report.scale_out)]
    return [
        f"computed by       {made['backend']}",
        f"versions          {', '.join(f'{name} {made[name]}' for name in ('python', *PACKAGES, 'redis-server'))}",
        f"engine            {figures.messages_per_s:,.0f} messages/s, {figures.tokens_per_s:,.0f} tokens/s "
        f"({figures.tokens_per_message:.1f} tokens a message, {figures.computed_share:.0%} of them computed)",
        f"in batches        {figures.batches_to_prefill:.2f} of prefill, as a worker gets them from the queue: "
        f"{made['engine']['sequences']} messages at most",
        f"llama.cpp prefill {figures.prefill_tokens_per_s:,.0f} tokens/s, {figures.prefill_tokens} at a time",
        f"create_completion {figures.ordinary_messages_per_s:,.1f} messages/s",
        *([] if figures.server_messages_per_s is None else [f"llama-server      {figures.server_messages_per_s:,.1f} messages/s"]),
        f"one query alone   {median(at.forward_pass_ms for at in report.latencies):.1f} ms of computing",
        f"through Redis     {report.through_redis_per_s:,.0f} messages/s",
        f"stand-in model    {report.stand_in.messages_per_s:,.0f} messages/s; bare redis-py {report.bare_redis_per_s:,.0f}",
        *(f"Redis itself      {1e6 / flow.redis_us:,.0f} messages/s of its one core, {how}" for how, flow in flows.items()),
        *(
            f"latency           {'one at a time' if not at.offered_per_s else f'{at.offered_per_s:.0f} messages/s':<16} "
            f"p50 {at.p50_ms:.0f} ms, p99 {at.p99_ms:.0f} ms"
            for at in report.latencies
        ),
        *(
            f"{count:>2} paced workers  {flow.messages_per_s:,.0f} messages/s, "
            f"{flow.messages_per_s / count / report.scale_out[1].messages_per_s:.2f} of linear"
            for count, flow in report.scale_out.items()
        ),
        *(
            [
                f"memory            {soak.late_mb:,.0f} MB after {soak.messages:,} messages, {soak.early_mb:,.0f} MB after a tenth of them"
                + (f", {soak.peak_mb:,.0f} MB at most" if soak.peak_mb else "")
            ]
            if (soak := report.memory)
            else []
        ),
    ]


def save(report: Report, directory: Path) -> list[Path]:
    """Write bench.json, latency.csv and, where matplotlib is installed, latency.png. Returns what was written."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "bench.json", directory / "latency.csv"]
    written[0].write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    with written[1].open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("offered_per_s", "messages", "p50_ms", "p99_ms"))
        rows.writerows((round(at.offered_per_s, 2), at.messages, at.p50_ms, at.p99_ms) for at in report.latencies)
    try:
        import matplotlib as mpl
    except ImportError:
        return written
    mpl.use("Agg")
    from matplotlib import pyplot

    loaded = [at for at in report.latencies if at.offered_per_s]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, values in (("p50", [at.p50_ms for at in loaded]), ("p99", [at.p99_ms for at in loaded])):
        axes.plot([at.offered_per_s for at in loaded], values, marker="o", label=name)
    axes.axhline(median(at.forward_pass_ms for at in report.latencies), linestyle=":", color="grey", label="one forward pass")
    axes.axvline(report.through_redis_per_s, linestyle="--", color="grey", label="saturated")
    axes.set(xlabel="messages per second, arriving at random", ylabel="XADD to publish, ms", ylim=(0, None), xlim=(0, None))
    axes.set_title(f"{report.machine['model']}, {report.machine['format']}, {report.machine['cores']} cores", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(directory / "latency.png", dpi=150)
    return [*written, directory / "latency.png"]

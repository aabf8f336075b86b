"""The command line: python -m worker (console script pointsman)."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop
from rich.table import Table
from rich.text import Text

from worker import __version__, operating
from worker import doctor as diagnosis
from worker.app import Listening, serve
from worker.bench import report as benchmark
from worker.classifier import Decision, EngineError, EngineOptions, ModelFileError, tuning
from worker.classifier.model_file import content_hash
from worker.demo import demo as run_demo
from worker.demo import read_samples
from worker.embedded_redis import embedded_redis
from worker.errors import Fatal
from worker.logs import configure
from worker.model import open_classifier
from worker.settings import load_settings
from worker.terminal import Json, Model, Namespace, RedisUrl, Texts, err, out, safe, stdin_lines

EMBEDDED_DIRECTORY = Path(".pointsman/redis")
CHUNK = 64
QUICK_QUERIES = 256
"""Queries that a quick benchmark takes, spread over all it was given."""

app = typer.Typer(
    help="Route user queries from a Redis stream to the stream of their category.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Every setting is an environment variable POINTSMAN_...; `doctor` lists them.",
)
app.add_typer(operating.app)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if show:
        print(f"pointsman {__version__}")
        raise typer.Exit


@app.command()
def run(
    model: Model = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    http_port: Annotated[int | None, typer.Option(help="Port of /metrics and the health checks; 0 picks a free one.")] = None,
    embedded: Annotated[bool, typer.Option("--embedded-redis", help=f"Start a Redis that keeps its data in {EMBEDDED_DIRECTORY}.")] = False,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C."""
    settings = load_settings(model=model, redis_url=redis_url, namespace=namespace, http_port=http_port)
    configure(settings.log_level, settings.log_format)
    with ExitStack() as stack:
        if embedded or settings.embedded_redis:
            url = stack.enter_context(embedded_redis(settings.embedded_redis or EMBEDDED_DIRECTORY))
            settings = load_settings(model=model, redis_url=url, namespace=namespace, http_port=http_port)
        announce = _announce_with_commands if embedded or settings.embedded_redis else _announce
        uvloop.run(serve(settings, open_classifier, announce))


def _announce(at: Listening) -> None:
    structlog.get_logger("pointsman").info("routing", metrics=f"{at.http_url}/metrics")


def _announce_with_commands(at: Listening) -> None:
    _announce(at)
    command = f"POINTSMAN_REDIS_URL={at.redis_url} {sys.executable} -m worker"
    err.print(
        "\nIn other terminals:\n"
        f'  {command} send "My pool pump is humming"\n'
        f"  {command} tail\n"
        f"  {command} top --metrics {at.http_url}\n"
        "Ctrl-C stops the worker and this Redis; its data stays.",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def classify(texts: Texts = None, model: Model = None, as_json: Json = False) -> None:
    """Classify queries and print the decisions. Needs no Redis."""
    settings = load_settings(model=model)
    classifier = open_classifier(settings)
    lines = iter(texts) if texts else stdin_lines()
    while chunk := list(islice(lines, CHUNK)):
        for text, decision in zip(chunk, classifier.classify(chunk), strict=True):
            _print_decision(text, decision, as_json)
    classifier.close()


def _print_decision(text: str, decision: Decision, as_json: bool) -> None:
    if as_json:
        row = {
            "text": text,
            "label": decision.label,
            "confidence": round(decision.confidence, 6),
            "probabilities": {label: round(value, 6) for label, value in decision.probabilities.items()},
            "tokens": decision.tokens,
            "truncated": decision.truncated,
        }
        print(json.dumps(row, ensure_ascii=False), flush=True)
        return
    line = Text.assemble((f"{decision.label:<16}", "bold"), f" {decision.confidence:6.1%}  ", (safe(text), "dim"))
    out.print(line, soft_wrap=True)


@app.command()
def doctor(model: Model = None, redis_url: RedisUrl = None, as_json: Json = False) -> None:
    """Say what is wrong here: Redis, permissions, model, CPU. Exit code 1 if anything is. Lists every setting."""
    settings = load_settings(model=model, redis_url=redis_url)
    findings = asyncio.run(diagnosis.examine(settings))
    if as_json:
        print(json.dumps({"findings": [f.as_dict() for f in findings], "settings": diagnosis.shown_settings(settings)}))
    else:
        for finding in findings:
            mark, colour = ("ok  ", "green") if finding.ok else ("FAIL", "red")
            out.print(Text.assemble((mark, colour), f"  {finding.what:<12} {finding.detail}"), soft_wrap=True)
        table = Table(title="settings")
        for column in ("variable", "value", "meaning"):
            table.add_column(column, overflow="fold")
        for row in diagnosis.shown_settings(settings):
            table.add_row(row["variable"], row["value"], Text(row["meaning"]))
        out.print(table)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def demo(
    queries: Annotated[Path, typer.Option(help='JSON lines of {"text", "label"}, or plain lines.')],
    model: Model = None,
) -> None:
    """Route samples through a Redis and a worker of its own. Shows where they went."""
    settings = load_settings(model=model)
    if not queries.is_file():
        raise Fatal(f"there is no file of queries at {queries}")
    if not run_demo(settings.model, read_samples(queries), out):
        raise Fatal("not every query arrived exactly once")


@app.command()
def tune(
    model: Model = None,
    texts: Annotated[
        Path | None, typer.Option(help="Queries to measure with, as for demo; the test split beside the model if not given.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Weight formats only, in fewer rounds: minutes.")] = False,
    as_json: Json = False,
) -> None:
    """Find what is fastest here: weight format, threads, batches. `run` uses what was found."""
    settings = load_settings(model=model)
    texts = texts or (beside if (beside := settings.model.with_suffix(".test.jsonl")).is_file() else None)
    queue = [sample.text for sample in read_samples(texts)] if texts else []
    trials = []

    def show(trial: tuning.Trial) -> None:
        trials.append(trial)
        if not as_json:
            speed = f"{trial.ratio:5.2f} x" if trial.ratio else "      -"
            mark = ("chosen", "green") if trial.chosen else (trial.note or "kept what was", "dim")
            out.print(Text.assemble(f"{trial.what:<28} {speed}  same label {trial.agreement:6.1%}  ", mark), soft_wrap=True)

    master_hash = content_hash(settings.model)
    profile = tuning.measure(
        settings.model,
        master_hash,
        queue,
        settings.cache_dir,
        base=EngineOptions(sequences=settings.batch_size, threads=settings.threads),
        n_gpu_layers=settings.n_gpu_layers,
        formats_only=quick,
        rounds=3 if quick else 7,
        on_trial=show,
    )
    if profile is None:
        raise Fatal(f"there is nothing to measure with: {settings.model} has no probes, so give queries with --texts")
    path = tuning.save_profile(profile, master_hash, settings.cache_dir, settings.n_gpu_layers)
    if as_json:
        print(json.dumps({"profile": asdict(profile), "path": str(path), "trials": [asdict(trial) for trial in trials]}))
    else:
        kept = profile.weight_format or "the format of the file"
        out.print(
            f"best here: {kept}, {profile.threads or 'all'} threads, calls of {profile.batch_tokens} tokens; kept in {path}",
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def bench(
    model: Model = None,
    texts: Annotated[Path | None, typer.Option(help="Queries, as for demo; the test split beside the model if not given.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help=f"Fewer rounds and at most {QUICK_QUERIES} of the queries: some minutes.")] = False,
    redis_url: Annotated[
        str | None, typer.Option(help="A Redis to measure on, under pointsman-bench:*; an embedded one if not given.")
    ] = None,
    llama_server: Annotated[
        Path | None, typer.Option(help="A llama-server binary of llama.cpp, to compare with.", show_default=False)
    ] = None,
    save_to: Annotated[Path, typer.Option(help="Where bench.json, latency.csv and latency.png go.")] = Path("bench"),
    as_json: Json = False,
) -> None:
    """Measure engine, pipeline and service against their limits."""
    settings = load_settings(model=model)
    texts = texts or settings.model.with_suffix(".test.jsonl")
    if not texts.is_file():
        raise Fatal(f"there is no file of queries at {texts}: give one with --texts")
    queue = [sample.text for sample in read_samples(texts)]
    if quick:
        queue = queue[:: -(-len(queue) // QUICK_QUERIES)]
    report = benchmark.bench(settings, queue, err if as_json else out, quick=quick, redis_url=redis_url, server=llama_server)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        out.print(benchmark.table(report))
        for line in benchmark.lines(report):
            out.print(line, highlight=False, soft_wrap=True)
    written = benchmark.save(report, save_to)
    if not any(path.suffix == ".png" for path in written):
        err.print("no plot: matplotlib is not installed (`make setup` brings it)")
    err.print(f"wrote {', '.join(map(str, written))}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; a known error becomes one clear message and its exit code."""
    try:
        app()
    except Fatal as error:
        _fail(str(error), error.exit_code)
    except (ModelFileError, EngineError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _fail(message: str, exit_code: int) -> None:
    err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(exit_code)

"""The command line: python -m worker (console script pointsman)."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker import __version__
from worker import doctor as diagnosis
from worker.app import Listening, serve
from worker.bench import report as benchmark
from worker.classifier import Decision, EngineError, EngineOptions, ModelFileError, tuning
from worker.classifier.model_file import content_hash
from worker.connection import check_redis, connect
from worker.dead_letters import dead_letters, purge, replay
from worker.demo import demo as run_demo
from worker.demo import read_samples
from worker.embedded_redis import embedded_redis
from worker.errors import REDIS_ERRORS, Fatal
from worker.follow import Followed, follow
from worker.logs import configure
from worker.model import open_classifier
from worker.routing import Streams
from worker.settings import load_settings

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
dead = typer.Typer(help="Look at the dead stream, and send its entries again.", no_args_is_help=True)
app.add_typer(dead, name="dead")
out, err = Console(), Console(stderr=True)

Model = Annotated[Path | None, typer.Option(help="The Pointsman GGUF (POINTSMAN_MODEL).", show_default=False)]
RedisUrl = Annotated[str | None, typer.Option(help="Redis (POINTSMAN_REDIS_URL).", show_default=False)]
Namespace = Annotated[str | None, typer.Option(help="Prefix of all streams (POINTSMAN_NAMESPACE).", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines for machines.")]
Texts = Annotated[list[str] | None, typer.Argument(help="Queries; lines of standard input if none.", show_default=False)]


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
        "Ctrl-C stops the worker and this Redis; its data stays.",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def classify(texts: Texts = None, model: Model = None, as_json: Json = False) -> None:
    """Classify queries and print the decisions. Needs no Redis."""
    settings = load_settings(model=model)
    classifier = open_classifier(settings)
    lines = iter(texts) if texts else _stdin_lines()
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
    line = Text.assemble((f"{decision.label:<16}", "bold"), f" {decision.confidence:6.1%}  ", (text, "dim"))
    out.print(line, soft_wrap=True)


@app.command()
def send(
    texts: Texts = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Put queries on the stream of queries, as a backend would; prints their ids."""
    settings = load_settings(redis_url=redis_url, namespace=namespace)
    streams = Streams(settings.namespace)

    async def put() -> None:
        redis = connect(settings)
        await check_redis(redis, settings)
        for text in texts or _stdin_lines():
            raw_id: Any = await redis.xadd(streams.queries, {"text": text})
            entry_id = raw_id.decode()
            print(json.dumps({"id": entry_id, "stream": streams.queries}) if as_json else entry_id, flush=True)
        await redis.aclose()

    _run(put())


@app.command()
def tail(
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with what is already there.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Follow all output streams: topics, review and dead. Shows the queries' text."""
    settings = load_settings(redis_url=redis_url, namespace=namespace)

    async def watch() -> None:
        redis = connect(settings)
        await check_redis(redis, settings)
        seen = 0
        async for item in follow(redis, Streams(settings.namespace), from_start=from_start):
            _print_followed(item, as_json)
            seen += 1
            if seen == count:
                break
        await redis.aclose()

    _run(watch())


def _print_followed(item: Followed, as_json: bool) -> None:
    if as_json:
        print(json.dumps(item.as_dict(), ensure_ascii=False), flush=True)
        return
    colour = {"review": "yellow", "dead": "red"}.get(item.place, "green")
    out.print(Text.assemble((f"{item.place:<16}", colour), f" {item.note:>7}  ", (item.text, "dim")), soft_wrap=True)


@dead.command("list")
def dead_list(
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    reason: Annotated[str | None, typer.Option(help="Only of this reason.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, oldest first.")] = 100,
    show_text: Annotated[bool, typer.Option("--show-text", help="Show the queries' text, which is personal data.")] = False,
    as_json: Json = False,
) -> None:
    """List rejected and poison entries with their reasons."""
    settings = load_settings(redis_url=redis_url, namespace=namespace)

    async def show() -> None:
        redis = connect(settings)
        await check_redis(redis, settings)
        letters = []
        async for letter in dead_letters(redis, Streams(settings.namespace), reason=reason):
            letters.append(letter)
            if len(letters) == limit:
                break
        await redis.aclose()
        if as_json:
            for letter in letters:
                row = {
                    "id": letter.id,
                    "reason": letter.reason,
                    "detail": letter.detail,
                    "deliveries": letter.deliveries,
                    "age_s": round(time.time() - letter.died_ms / 1000, 1),
                }
                print(json.dumps(row | ({"text": letter.text} if show_text else {}), ensure_ascii=False))
            return
        if not letters:
            err.print("no dead letters")
            return
        table = Table()
        for column in ("id", "age", "reason", "detail", *(["text"] if show_text else [])):
            table.add_column(column)
        for letter in letters:
            age = f"{(time.time() - letter.died_ms / 1000) / 60:.0f} min"
            shown = [Text(letter.text[:200])] if show_text else []
            table.add_row(letter.id, age, letter.reason, Text(letter.detail), *shown)
        out.print(table)

    _run(show())


@dead.command("replay")
def dead_replay(
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    entry_id: Annotated[str | None, typer.Option("--id", help="Only this dead letter.", show_default=False)] = None,
    reason: Annotated[str | None, typer.Option(help="Only of this reason.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: Json = False,
) -> None:
    """Send dead letters again: each moves back to the stream of queries with its original fields."""
    if not (entry_id or reason or every):
        raise Fatal("say which dead letters to replay: --id ID, --reason REASON or --all")
    settings = load_settings(redis_url=redis_url, namespace=namespace)
    streams = Streams(settings.namespace)

    async def again() -> None:
        redis = connect(settings)
        await check_redis(redis, settings)
        chosen = [letter async for letter in dead_letters(redis, streams, reason=reason, only_id=entry_id)]
        if entry_id and not chosen:
            raise Fatal(f"there is no dead letter {entry_id}: `dead list` shows them")
        moved = 0
        for letter in chosen:
            new_id = await replay(redis, streams, letter)
            if new_id is not None:
                moved += 1
                if as_json:
                    print(json.dumps({"id": letter.id, "new_id": new_id, "reason": letter.reason}))
        await redis.aclose()
        if not as_json:
            err.print(f"replayed {moved} of {len(chosen)}")

    _run(again())


@dead.command("purge")
def dead_purge(
    older_than: Annotated[str, typer.Option(help="Age from which they are deleted, such as 90s, 15m, 12h or 30d.")],
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    reason: Annotated[str | None, typer.Option(help="Only of this reason.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Delete old dead letters for good."""
    seconds = _seconds(older_than)
    settings = load_settings(redis_url=redis_url, namespace=namespace)

    async def delete() -> None:
        redis = connect(settings)
        await check_redis(redis, settings)
        purged = await purge(redis, Streams(settings.namespace), older_than_s=seconds, reason=reason)
        await redis.aclose()
        if as_json:
            print(json.dumps({"purged": purged}))
        else:
            err.print(f"purged {purged}")

    _run(delete())


def _seconds(age: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = age[:-1], age[-1:]
    if not number.isdigit() or unit not in units:
        raise Fatal(f"{age!r} is not an age: say a number and s, m, h or d, such as 30d")
    return int(number) * units[unit]


@app.command()
def doctor(model: Model = None, redis_url: RedisUrl = None, as_json: Json = False) -> None:
    """Say what is wrong here: Redis, its permissions, the model, the CPU. Exit code 1 if anything is."""
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
    """Route sample queries through an embedded Redis and a worker, and show where they went."""
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
    quick: Annotated[bool, typer.Option("--quick", help="Weight formats only, in fewer rounds: under a minute.")] = False,
    as_json: Json = False,
) -> None:
    """Find the weight format, threads and batches that are fastest on this machine. `run` uses what was found."""
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
    """Measure engine, pipeline and service, each as a ratio to its limit, on this machine."""
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
    err.print(f"wrote {', '.join(map(str, written))}", highlight=False, soft_wrap=True)


def _stdin_lines() -> Iterator[str]:
    if sys.stdin.isatty():
        err.print("one query a line, Ctrl-D ends")
    raw: Iterable[bytes] = sys.stdin.buffer
    return (text for line in raw if (text := line.decode("utf-8", errors="replace").rstrip("\r\n")).strip())


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(work)
    except REDIS_ERRORS as error:
        raise Fatal(f"Redis: {error}") from error


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

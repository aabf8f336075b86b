"""The commands for who operates a router: queries in, what came out, what died."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from redis.exceptions import ResponseError
from rich.table import Table
from rich.text import Text

from worker.connection import check_redis, connect
from worker.dead_letters import dead_letters, purge, replay
from worker.errors import Fatal
from worker.follow import Followed, follow
from worker.routing import Streams
from worker.settings import load_settings
from worker.terminal import Json, Namespace, RedisUrl, Texts, err, out, run_with_redis, safe, stdin_lines
from worker.top import live
from worker.top.scrape import check_url
from worker.top.view import render

DEFAULT_INTERVAL_S = 2.0

app = typer.Typer()
dead = typer.Typer(help="List dead letters, send them again, delete old ones.", no_args_is_help=True)
app.add_typer(dead, name="dead")


@app.command()
def send(
    texts: Texts = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Put queries on the stream, as a backend would. Prints their ids."""
    settings = load_settings(redis_url=redis_url, namespace=namespace)
    streams = Streams(settings.namespace)

    async def put() -> None:
        redis = connect(settings)
        await check_redis(redis, settings)
        for text in texts or stdin_lines():
            raw_id: Any = await redis.xadd(streams.queries, {"text": text})
            entry_id = raw_id.decode()
            print(json.dumps({"id": entry_id, "stream": streams.queries}) if as_json else entry_id, flush=True)
        await redis.aclose()

    run_with_redis(put())


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

    run_with_redis(watch())


def _print_followed(item: Followed, as_json: bool) -> None:
    if as_json:
        print(json.dumps(item.as_dict(), ensure_ascii=False), flush=True)
        return
    colour = {"review": "yellow", "dead": "red"}.get(item.place, "green")
    out.print(Text.assemble((f"{item.place:<16}", colour), f" {item.note:>7}  ", (safe(item.text), "dim")), soft_wrap=True)


@app.command()
def top(
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="A worker's HTTP address, for its own figures; may be given again, and a name that stands for many is asked at each. "
            "If not given, POINTSMAN_HTTP_HOST and _PORT are tried.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[
        float | None, typer.Option(min=0.2, help="Seconds from frame to frame, which rates are of; 2 if not given.", show_default=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, after one interval, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one frame as JSON; with --interval one after the other.")] = False,
) -> None:
    """Watch all workers of a group: rates, lag, latency, labels. `q` ends. Shows no texts."""
    settings = load_settings(redis_url=redis_url, namespace=namespace)
    urls = tuple(check_url(url) for url in metrics or ())
    if not (once or as_json or out.is_terminal):
        raise Fatal("there is no terminal to show it on: --once prints one frame, --json one for machines")
    interval_s = DEFAULT_INTERVAL_S if interval is None else interval

    async def look() -> None:
        redis = connect(settings)
        await check_redis(redis, settings)
        host = f"[{settings.http_host}]" if ":" in settings.http_host else settings.http_host
        own = () if urls or not settings.http_port else (check_url(f"http://{host}:{settings.http_port}"),)
        source = live.Source(redis, Streams(settings.namespace), settings.group, urls or own, expected=bool(urls))
        if not (once or as_json):
            await live.watch(source, out, interval_s)
        else:
            async for frame in live.frames(source, interval_s):
                if as_json:
                    print(json.dumps(frame.as_dict(), ensure_ascii=False), flush=True)
                else:
                    with out.capture() as printed:
                        out.print(render(frame, out.width))
                    print("\n".join(line.rstrip() for line in printed.get().splitlines()), flush=True)
                if once or interval is None:
                    break
        await redis.aclose()

    run_with_redis(look())


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
            shown = [Text(safe(letter.text[:200]))] if show_text else []
            table.add_row(letter.id, age, letter.reason, Text(safe(letter.detail)), *shown)
        out.print(table)

    run_with_redis(show())


@dead.command("replay")
def dead_replay(
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    entry_id: Annotated[str | None, typer.Option("--id", help="Only this dead letter.", show_default=False)] = None,
    reason: Annotated[str | None, typer.Option(help="Only of this reason.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: Json = False,
) -> None:
    """Send dead letters again. Each moves back to the stream of queries with its original fields."""
    if not (entry_id or reason or every):
        raise Fatal("say which dead letters to replay: --id ID, --reason REASON or --all")
    settings = load_settings(redis_url=redis_url, namespace=namespace)
    streams = Streams(settings.namespace)

    refused = 0

    async def again() -> None:
        nonlocal refused
        redis = connect(settings)
        await check_redis(redis, settings)
        chosen = [letter async for letter in dead_letters(redis, streams, reason=reason, only_id=entry_id)]
        if entry_id and not chosen:
            raise Fatal(f"there is no dead letter {entry_id}: `dead list` shows them")
        moved = 0
        for letter in chosen:
            try:
                new_id = await replay(redis, streams, letter)
            except (ValueError, ResponseError) as error:
                refused += 1
                err.print(f"{letter.id} stays: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
                continue
            if new_id is not None:
                moved += 1
                if as_json:
                    print(json.dumps({"id": letter.id, "new_id": new_id, "reason": letter.reason}))
        await redis.aclose()
        if not as_json:
            err.print(f"replayed {moved} of {len(chosen)}")

    run_with_redis(again())
    if refused:
        raise typer.Exit(1)


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

    run_with_redis(delete())


def _seconds(age: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = age[:-1], age[-1:]
    if not number.isdigit() or unit not in units:
        raise Fatal(f"{age!r} is not an age: say a number and s, m, h or d, such as 30d")
    return int(number) * units[unit]

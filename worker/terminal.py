"""What the commands share: the terminal, its bars, options that mean the same everywhere, standard input and one client of Redis."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from worker.errors import REDIS_ERRORS, Fatal

out, err = Console(), Console(stderr=True)
_HARMLESS = "\u00a0\u202f\u200c\u200d"
"""Spaces that do not break, and what parts or joins letters and emoji."""

Model = Annotated[Path | None, typer.Option(help="The Pointsman GGUF (POINTSMAN_MODEL).", show_default=False)]
RedisUrl = Annotated[str | None, typer.Option(help="Redis (POINTSMAN_REDIS_URL).", show_default=False)]
Namespace = Annotated[str | None, typer.Option(help="Prefix of all streams (POINTSMAN_NAMESPACE).", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines for machines.")]
Texts = Annotated[list[str] | None, typer.Argument(help="Queries; lines of standard input if none.", show_default=False)]


def progress(console: Console) -> Progress:
    """The bars of long work, on a terminal."""
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    return Progress(*columns, console=console, disable=not console.is_terminal)


def safe(text: str) -> str:
    """Texts and names come from strangers: what would move the cursor, or more, is no part of them."""
    return "".join(char if char.isprintable() or char in _HARMLESS else "\ufffd" for char in text.replace("\t", " "))


def stdin_lines() -> Iterator[str]:
    """The lines of standard input that hold anything."""
    if sys.stdin.isatty():
        err.print("one query a line, Ctrl-D ends")
    raw: Iterable[bytes] = sys.stdin.buffer
    return (text for line in raw if (text := line.decode("utf-8", errors="replace").rstrip("\r\n")).strip())


def run_with_redis(work: Coroutine[Any, Any, None]) -> None:
    """Run to its end; what Redis refuses meanwhile becomes one clear line."""
    try:
        asyncio.run(work)
    except REDIS_ERRORS as error:
        raise Fatal(f"Redis: {error}") from error

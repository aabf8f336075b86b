"""What the commands share: the terminal, and options that mean the same everywhere."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import rich.progress
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")]
DATA_HELP = "A JSON array or JSONL of {instruction, input, output}, CSV text,label, or hf:OWNER/NAME[@REVISION][:SPLIT]."
DataFile = Annotated[Path, typer.Option(help=DATA_HELP)]
SplitName = Annotated[
    str, typer.Option(help="all, or train, validation or test: the part of the data in the split that the model was trained by.")
]
Directory = Annotated[Path, typer.Argument(help="A model's directory, such as models/household.")]
REFUSED = 3
"""Exit code where a gate refused a model, or a form of one."""


Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is, and of how much (None: unknown)."""

_SAY_EVERY_S = 30.0
_SAY_AT_MOST_EVERY_S = 5.0
_clock = time.monotonic


def progress() -> rich.progress.Progress:
    """The bar of a long step, on a terminal."""
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    return rich.progress.Progress(*columns, console=console, disable=not console.is_terminal)


@contextmanager
def steps() -> Iterator[Progress]:
    """The bars of one step after another.

    Off a terminal a line for each step of unknown length, and of the others one at each tenth or after 30 s, but none within 5 s.
    """
    with progress() as bars:
        task, step, said, tenth = bars.add_task(""), "", _clock(), 0
        began, skipped = said, 0

        def tell(what: str, done: int, total: int | None) -> None:
            nonlocal task, step, said, tenth, began, skipped
            begins = what.partition(",")[0] != step
            if begins:
                step, tenth = what.partition(",")[0], 0
                began, skipped = _clock(), done
                bars.remove_task(task)
                task = bars.add_task(what, total=total)
            bars.update(task, description=what, completed=done, total=total)
            now, reached = _clock(), 10 * done // total if total else 0
            due = now - said > (_SAY_AT_MOST_EVERY_S if reached > tenth else _SAY_EVERY_S)
            if not console.is_terminal and (due or (begins and total is None)):
                much = f", {done} of {total}{_left(now - began, done - skipped, total - done)}" if total else ""
                console.print(f"          {what}{much}", markup=False, soft_wrap=True)
                said, tenth = now, reached

        yield tell


def _left(seconds: float, done: int, to_do: int) -> str:
    """In words, from two minutes on: what remains takes as long as what was done."""
    minutes = seconds * to_do / done / 60 if done > 0 else 0.0
    if minutes < 2:
        return ""
    return f", about {minutes:.0f} minutes left" if minutes < 120 else f", about {minutes / 60:.0f} hours left"


def peak_memory_gb() -> float:
    """The most memory that this process has had in RAM, in 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9

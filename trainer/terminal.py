"""What the commands share: the terminal, and options that mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


def progress(what: str) -> Progress:
    """The bar of a long step; off a terminal only training tells how far it is."""
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    return Progress(*columns, console=console, transient=not console.is_terminal, disable=not console.is_terminal and what != "training")

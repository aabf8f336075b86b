"""Checkpoints of one training: directories named by their step, each there whole or not at all; the newest one is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.files import sync


def newest(directory: Path) -> Path | None:
    """The checkpoint to go on from; its name is its step."""
    return max(_finished(directory), key=lambda path: int(path.name), default=None)


@contextmanager
def writing(directory: Path, step: int) -> Iterator[Path]:
    """Fill the directory that this gives; when it is full it becomes the checkpoint, and the earlier ones go."""
    partial = directory / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for path in partial.iterdir():
        sync(path)
    earlier = _finished(directory)
    os.replace(partial, directory / str(step))
    for path in earlier:
        shutil.rmtree(path)


def _finished(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []

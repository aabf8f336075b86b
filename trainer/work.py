"""What a run has done already, and of what: so that the same command goes on where it was cut off.

A run's directory holds the hashes of what training depends on. With the same ones a run takes over what is there; else it begins anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.files import write_json, write_whole
from trainer.recipe import RecipeError

INPUTS_FILE = "inputs.json"

Arrays = dict[str, npt.NDArray[Any]]


def prepare(directory: Path, inputs: Mapping[str, str], *, fresh: bool = False) -> list[str]:
    """Make the directory, emptied if what it holds was made of other inputs; returns the names of those that changed.

    Args:
        inputs: a hash of each thing that training depends on, by what people call it.
        fresh: empty it in any case.
    """
    try:
        before = dict(json.loads((directory / INPUTS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        before = {}
    changed = [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)] if before else []
    if fresh or changed or not before:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        write_json(directory / INPUTS_FILE, inputs)
    return changed


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """One command at a time changes a model's directory; where there is none, there is nothing to change.

    Raises:
        RecipeError: another one is at work there.
    """
    if not directory.is_dir():
        yield
        return
    lock = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecipeError(f"another command is at work in {directory}: wait until it ends; a run may name another --output") from error
        yield
    finally:
        os.close(lock)


def remember(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write down what a step found, atomically: facts that JSON can hold, and arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, _facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]
    write_whole(path, buffer.getvalue())


def recall(path: Path) -> tuple[dict[str, Any], Arrays] | None:
    """What a step found before; None if it did not come to its end."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return dict(json.loads(str(arrays.pop("_facts")))), arrays
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def fingerprint(value: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

"""Names on the Hugging Face hub: hf:OWNER/NAME[@REVISION][:SPLIT] is a data set wherever a data file is, hf:OWNER/NAME[@REVISION][:FILE]
a model or a file of it. Here are also the rows of a data set."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.dataset import DataError

SCHEME = "hf:"
TEXT_COLUMNS = ("text", "query", "utterance", "input", "sentence", "question", "instruction")
LABEL_COLUMNS = ("label_text", "label", "intent", "category", "output")
"""The first that is there and holds text, or for labels a ClassLabel, is taken."""
_ID = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^\s:@]+))?(?::(?P<part>[\w.-]+(?:/[\w.-]+)*))?")


@dataclass(frozen=True, slots=True)
class HubId:
    """A data set on the hub, at a commit, tag or branch of it, and the split that is meant."""

    name: str
    revision: str | None
    split: str


@dataclass(frozen=True, slots=True)
class ModelId:
    """A model on the hub, at a commit, tag or branch of it, or one file of it."""

    name: str
    revision: str | None
    file: str | None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{SCHEME}{self.name}{revision}" + ("" if self.file is None else f":{self.file}")


def is_hub_id(source: Path | str) -> bool:
    return str(source).startswith(SCHEME)


def parse_hub_id(source: Path) -> HubId:
    """Raises DataError unless it is hf:OWNER/NAME[@REVISION][:SPLIT]; the split is train where none is named."""
    found = _ID.fullmatch(str(source))
    if found is None or "/" in (found["part"] or ""):
        raise DataError(f"{source} names no data set of the Hugging Face hub: write hf:OWNER/NAME[@REVISION][:SPLIT]")
    return HubId(found["name"], found["revision"], found["part"] or "train")


def parse_model_id(source: str) -> ModelId:
    """Raises ValueError unless it is hf:OWNER/NAME[@REVISION][:FILE]."""
    found = _ID.fullmatch(source)
    if found is None:
        raise ValueError(f"{source} names no model of the Hugging Face hub: write hf:OWNER/NAME[@REVISION][:FILE.gguf]")
    return ModelId(found["name"], found["revision"], found["part"])


def load_rows(source: Path) -> list[tuple[int, dict[str, Any]]]:
    """Fetch a data set: each row's number, counted from 1, and its "text" and "label".

    Raises:
        DataError: it cannot be had from here, has no such split, or no column that could be text or label.
    """
    hub = parse_hub_id(source)
    try:
        import datasets  # takes seconds, and files do not need it
    except ModuleNotFoundError as error:
        raise DataError(f"{source} needs the library `datasets`: run `make setup`, or give a file") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(hub.name, split=hub.split, revision=hub.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:  # what its documentation and its code raise
        raise DataError(f"cannot load {source}: {error}. Without a network, give a file") from error
    return rows_of(data, str(source))


def rows_of(data: Any, name: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a `datasets.Dataset`, with the label's name where the column holds a ClassLabel's integers.

    Raises:
        DataError: no column can be the text or the label; the columns found are named.
    """
    features = data.features
    texts = [column for column in TEXT_COLUMNS if column in features and _holds_text(features[column])]
    labels = [column for column in LABEL_COLUMNS if column in features and (_holds_text(features[column]) or _names(features[column]))]
    if not texts or not labels:
        found = ", ".join(f"{column} ({_kind(feature)})" for column, feature in features.items())
        sought = f"text ({', '.join(TEXT_COLUMNS)})" if not texts else f"names of labels ({', '.join(LABEL_COLUMNS)})"
        raise DataError(f"{name} has no column of {sought} among: {found}")
    names = _names(features[labels[0]])
    pairs = zip(data[texts[0]], data[labels[0]], strict=True)
    return [
        (number, {"text": text, "label": _name(names, label) if names else label}) for number, (text, label) in enumerate(pairs, start=1)
    ]


def _holds_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _names(feature: Any) -> list[str]:
    return list(getattr(feature, "names", None) or ())


def _name(names: list[str], label: int | None) -> str | None:
    return names[label] if label is not None and 0 <= label < len(names) else None


def _kind(feature: Any) -> str:
    return "names" if _names(feature) else str(getattr(feature, "dtype", type(feature).__name__))

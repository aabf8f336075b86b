"""Data: load, check, write, split without leakage."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.files import write_whole
from trainer.near_duplicates import near_duplicate_clusters, near_duplicates, plain

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
JSON_FIELDS, CSV_FIELDS = ("input", "output"), ("text", "label")
"""Where a row has its text and its label."""
_BEYOND = "\0"
"""The name of what a CSV row has beyond its header."""


class DataError(Exception):
    """A data file that cannot be used; the message names the rows."""


@dataclass(frozen=True, slots=True)
class Example:
    """A query with its right label."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Row:
    """An example where it stands in its file, with whatever else stood there."""

    number: int
    """Counted from 1; in JSONL the line. CSV counts its header."""
    example: Example
    fields: Mapping[str, Any]


def load_examples(source: Path) -> list[Example]:
    """The examples of `load_rows`, which tells what it reads and raises."""
    return [row.example for row in load_rows(source)]


def load_rows(source: Path) -> list[Row]:
    """Read a data file: a JSON array or JSONL of {"instruction", "input", "output"} or {"text", "label"}, or CSV with text,label.

    Args:
        source: the file, or hf:OWNER/NAME[@REVISION][:SPLIT] for a data set of the Hugging Face hub.

    Raises:
        DataError: the file cannot be read, or rows are malformed; up to ten are named.
    """
    from trainer import hub  # which imports this module

    if hub.is_hub_id(source):
        names, found = CSV_FIELDS, iter(hub.load_rows(source))
    elif source.suffix.lower() == ".csv":
        names, found = CSV_FIELDS, _csv_rows(_read(source), source)
    else:
        names, found = JSON_FIELDS, _json_rows(_read(source), source)
    rows, problems = [], []
    for number, fields in found:
        if not isinstance(fields, dict):
            problems.append(f"row {number}: not an object but {type(fields).__name__}")
            continue
        own = CSV_FIELDS if CSV_FIELDS[0] in fields and not fields.keys() >= set(JSON_FIELDS) else names
        text, label = fields.get(own[0]), fields.get(own[1])
        wrong = [name for name, value in zip(own, (text, label), strict=True) if not _is_text(value)]
        if wrong:
            problems.append(f"row {number}: {', '.join(wrong)} missing, empty or not text")
        elif any(str(field).strip() for field in fields.get(_BEYOND, ())):
            problems.append(f"row {number}: more fields than the header has; a text that holds a comma must stand in double quotes")
        else:
            rows.append(Row(number, Example(str(text), str(label).strip()), fields))
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(f"{source} has {len(problems)} bad row(s):\n  " + "\n  ".join(problems[:10]) + more)
    if not rows:
        raise DataError(f"{source} holds no rows")
    return rows


def check_target(path: Path, sources: Iterable[Path]) -> None:
    """Raises DataError unless `write_rows` can write this file, and it is none of `sources`."""
    if path.suffix not in (".json", ".jsonl", ".csv"):
        raise DataError(f"cannot tell what to write from the name {path}: end it in .json, .jsonl or .csv")
    if not path.absolute().parent.is_dir():
        raise DataError(f"cannot write {path}: there is no directory {path.parent}")
    if path.exists() and any(source.exists() and path.samefile(source) for source in sources):
        raise DataError(f"{path} is among the files that are read: name another to write")


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a data file; see `write_fields`.

    All that stood in a row is kept, unless rows of {"input", "output"} become CSV: then text and label alone.
    """
    names = CSV_FIELDS if path.suffix == ".csv" else JSON_FIELDS
    readable = (CSV_FIELDS,) if path.suffix == ".csv" else (JSON_FIELDS, CSV_FIELDS)
    write_fields(
        [
            row.fields
            if any(row.fields.keys() >= set(fields) for fields in readable)
            else dict(zip(names, (row.example.text, row.example.label), strict=True))
            for row in rows
        ],
        path,
    )


def write_fields(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a data file, atomically: CSV, JSONL or a JSON array by its suffix, one row a line.

    Raises:
        DataError: there is nothing to write, or the file cannot be written.
    """
    if not rows:
        raise DataError(f"no row is left to write to {path}")
    if path.suffix == ".csv":
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, [name for name in rows[0] if name != _BEYOND], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        content = buffer.getvalue()
    else:
        lines = [json.dumps(fields, ensure_ascii=False) for fields in rows]
        content = "[\n" + ",\n".join(lines) + "\n]\n" if path.suffix == ".json" else "\n".join(lines) + "\n"
    try:
        write_whole(path, content.encode("utf-8", errors="backslashreplace"))  # half a surrogate pair becomes its escape in JSON
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from error


def _is_text(value: Any) -> bool:
    """Whether it says something and can be written: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= char <= "\udfff" for char in value)


def _csv_rows(content: str, path: Path) -> Iterator[tuple[int, Any]]:
    try:  # a file, not splitlines(): that also splits at U+2028 and the like
        reader = csv.DictReader(io.StringIO(content, newline=""), restkey=_BEYOND)
        header = reader.fieldnames or []
        if not set(CSV_FIELDS) <= set(header):
            raise DataError(
                f"{path} has bad row(s): its header is {','.join(header)!r}; the columns text and label, parted by a comma, must be in it"
            )
        yield from enumerate(reader, start=2)
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}") from error


def _json_rows(content: str, path: Path) -> Iterator[tuple[int, Any]]:
    if content.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(content), start=1)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is not a JSON array: {error}") from error
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}, is not JSON: {error}") from error


def check_labels(rows: Sequence[Row], names: Iterable[str], source: Path, known_to: str) -> list[Example]:
    """The examples of a file, all of whose labels are known.

    Args:
        names: the labels that are known.
        source: the file, for the message.
        known_to: who knows them, for the message: "the model" or "the recipe".

    Raises:
        DataError: a label is not among `names`; up to ten are named, with the first rows that have it.
    """
    known, strangers = set(names), defaultdict[str, list[int]](list)
    for row in rows:
        if row.example.label not in known:
            strangers[row.example.label].append(row.number)
    if strangers:
        most = sorted(strangers.items(), key=lambda item: -len(item[1]))[:10]
        listed = "".join(f"\n  {label!r} ({len(found)} rows): {_numbered(found)}" for label, found in most)
        raise DataError(f"{source} has labels that {known_to} does not know:{listed}")
    return [row.example for row in rows]


def _numbered(rows: Sequence[int]) -> str:
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:5]))}{', ...' if len(rows) > 5 else ''}"


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 over all texts and labels, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.text, example.label], ensure_ascii=False).encode())
    return digest.hexdigest()


def split(examples: Sequence[Example], *, seed: int, validation: float, test: float) -> dict[Part, list[Example]]:
    """A stratified, seeded split in which near-duplicates never fall into different parts.

    A text's place depends on the seed and its own words alone, so rows added later do not reshuffle the
    others (scikit-learn's splitters do).
    """
    groups: dict[str, list[list[Example]]] = defaultdict(list)
    for cluster in near_duplicate_clusters([example.text for example in examples]):
        members = [examples[index] for index in cluster]
        groups[min(member.label for member in members)].append(members)

    def place(members: list[Example]) -> str:
        first = min(plain(example.text) for example in members)
        return hashlib.sha256(f"{seed}:{first}".encode()).hexdigest()

    parts: dict[Part, list[Example]] = {part: [] for part in PARTS}
    for label in sorted(groups):
        clusters = sorted(groups[label], key=place)
        total = sum(map(len, clusters))
        quota = {"test": round(total * test), "validation": round(total * validation)}
        for members in clusters:
            part = next((part for part in ("test", "validation") if quota[part] >= len(members)), "train")
            if part != "train":
                quota[part] -= len(members)
            parts[part].extend(members)  # type: ignore[index]
    return parts


def part_of(path: Path, part: str, training: Mapping[str, Any], labels: Iterable[str] | None = None) -> list[Example]:
    """All examples of a data file, or those of one part of it.

    Args:
        part: `all`, or one of PARTS.
        training: the model's metadata of that name, which tells how the data was split.
        labels: those that the model knows; None where the file's own do not matter.

    Raises:
        DataError: the file cannot be read, has other labels, there is no such part, or nothing in it.
    """
    rows = load_rows(path)
    examples = [row.example for row in rows] if labels is None else check_labels(rows, labels, path, "the model")
    if part == "all":
        return examples
    for known in PARTS:
        if part == known:
            found = split(examples, **training["recipe"]["split"])[known]
            if not found:
                raise DataError(f"the model takes no {part} part from its data ({path}): give the file that is one, and --split all")
            return found
    raise DataError(f"there is no split {part!r}: use all, train, validation or test")


def without_copies(examples: Sequence[Example], of: Sequence[Example]) -> list[Example]:
    """The examples that are no near-duplicates of any in `of`."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        places[plain(example.text)].append(index)
    held = list({plain(example.text) for example in of})
    near = {right - len(held) for left, right in near_duplicates([*held, *places]) if left < len(held) <= right}
    copies = {index for place, indices in enumerate(places.values()) if place in near for index in indices}
    return [example for index, example in enumerate(examples) if index not in copies]

"""What people corrected becomes data: the stream `NAMESPACE:corrections` -> a data file with provenance.

Whoever looks after the review stream adds a correction with `XADD NAMESPACE:corrections * id ID text TEXT label LABEL`: the
message's own id, its text, and the right label. The last correction of an id counts. Harvesting again adds nothing again, so
a run that died may be repeated.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from redis.asyncio import Redis

from trainer.dataset import DataError, write_fields
from worker.connection import check_redis, connect
from worker.errors import REDIS_ERRORS, Fatal
from worker.settings import Settings, load_settings

SOURCE = "correction"
PAGE = 500
MAX_ID_BYTES = 512

Change = Literal["new", "changed", "known"]


@dataclass(frozen=True, slots=True)
class Correction:
    """One entry of the stream that can be learnt from."""

    stream_id: str
    id: str
    text: str
    label: str

    @property
    def row(self) -> dict[str, str]:
        """As it stands in the data file."""
        milliseconds = int(self.stream_id.partition("-")[0])
        time = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
        return {
            "instruction": "",
            "input": self.text,
            "output": self.label,
            "source": SOURCE,
            "id": self.id,
            "stream_id": self.stream_id,
            "time": time,
        }


@dataclass(frozen=True, slots=True)
class Unusable:
    """One entry that cannot be learnt from: it stays in the stream."""

    stream_id: str
    id: str
    """As far as it can be read."""
    reason: str
    """Holds nothing of the text, nor of the label, which may be the text by mistake."""
    text: str
    """As far as it can be read."""


@dataclass(frozen=True, slots=True)
class Harvest:
    """What a harvest found, and what became of it."""

    changes: Counter[Change]
    unusable: list[Unusable]
    trimmed: int
    """Entries deleted from the stream."""
    rows: int
    """Rows that the data file has now."""


class HarvestError(DataError):
    """Corrections that cannot be fetched; the message says why and what to do."""


def harvest(output: Path, labels: Collection[str] | None, redis_url: str | None, namespace: str | None, *, trim: bool) -> Harvest:
    """Add the corrections in the stream to a data file.

    Args:
        labels: those that there are; None to take any.
        redis_url, namespace: instead of the worker's settings.
        trim: delete from the stream what is in the file, once it is.

    Raises:
        HarvestError: Redis cannot be reached or refuses, or a setting is wrong.
        DataError: the data file cannot be read or written.
    """
    try:
        return asyncio.run(_harvest(output, labels, load_settings(redis_url=redis_url, namespace=namespace), trim))
    except Fatal as error:
        raise HarvestError(str(error)) from error
    except REDIS_ERRORS as error:
        raise HarvestError(f"Redis: {error}") from error


async def _harvest(output: Path, labels: Collection[str] | None, settings: Settings, trim: bool) -> Harvest:
    redis = connect(settings)
    try:
        await check_redis(redis, settings)
        stream = f"{settings.namespace}:corrections"
        found = await _read(redis, stream, labels, settings.max_text_bytes)
        corrections = [each for each in found if isinstance(each, Correction)]
        before = load_rows(output)
        rows, changes = merge(before, corrections)
        if rows != before:
            write_fields(rows, output)
        trimmed = await _trim(redis, stream, corrections) if trim else 0
    finally:
        await redis.aclose()
    return Harvest(Counter(changes), [each for each in found if isinstance(each, Unusable)], trimmed, len(rows))


async def _read(redis: Redis, stream: str, labels: Collection[str] | None, max_text_bytes: int) -> list[Correction | Unusable]:
    """All entries of the stream, from the oldest on."""
    found: list[Correction | Unusable] = []
    start = "-"
    while page := cast("Any", await redis.xrange(stream, min=start, count=PAGE)):
        found += [parse(entry_id.decode(), fields, labels, max_text_bytes) for entry_id, fields in page]
        start = f"({page[-1][0].decode()}"
    return found


async def _trim(redis: Redis, stream: str, corrections: Sequence[Correction]) -> int:
    """Delete what was harvested. Returns how many entries were there still."""
    deleted = 0
    for first in range(0, len(corrections), PAGE):
        deleted += await redis.xdel(stream, *(each.stream_id for each in corrections[first : first + PAGE]))
    return deleted


def parse(stream_id: str, fields: Mapping[bytes, bytes], labels: Collection[str] | None, max_text_bytes: int) -> Correction | Unusable:
    """Check one entry.

    Args:
        labels: those that there are; None to take any.
    """
    readable = {name: fields.get(name.encode(), b"").decode(errors="replace") for name in ("id", "text", "label")}

    def unusable(reason: str) -> Unusable:
        return Unusable(stream_id, readable["id"], reason, readable["text"])

    for name, shown in readable.items():
        value = fields.get(name.encode())
        if value is None:
            return unusable(f"there is no field {name}")
        if not shown.strip():
            return unusable(f"{name} is empty")
        try:
            value.decode()
        except UnicodeDecodeError:
            return unusable(f"{name} is not UTF-8")
        limit = max_text_bytes if name == "text" else MAX_ID_BYTES
        if len(value) > limit:
            return unusable(f"{name} has {len(value)} bytes, more than {limit}")
    if labels is not None and readable["label"] not in labels:
        return unusable(f"label is none of the model's {len(labels)}")
    correction = Correction(stream_id, readable["id"], readable["text"], readable["label"])
    try:
        _ = correction.row
    except (ValueError, OverflowError, OSError):
        return unusable("its id in the stream is no time")
    return correction


def merge(rows: Sequence[dict[str, Any]], corrections: Sequence[Correction]) -> tuple[list[dict[str, Any]], list[Change]]:
    """The rows of a data file with the corrections, and what became of each of these.

    The later correction of an id stands where the earlier did; rows that are no corrections stay as they are.
    """
    merged = list(rows)
    places = {row["id"]: index for index, row in enumerate(merged) if row.get("source") == SOURCE}
    changes: list[Change] = []
    for correction in corrections:
        place = places.setdefault(correction.id, len(merged))
        if place == len(merged):
            merged.append(correction.row)
            changes.append("new")
        elif _order(correction.stream_id) <= _order(merged[place]["stream_id"]):
            changes.append("known")
        else:
            merged[place] = correction.row
            changes.append("changed")
    return merged, changes


def _order(stream_id: str) -> tuple[int, ...]:
    return tuple(map(int, stream_id.split("-")))


def load_rows(path: Path) -> list[dict[str, Any]]:
    """What a data file holds that earlier harvests wrote; nothing if there is none.

    Raises:
        DataError: it is not a JSON array of objects, or a correction in it lacks where it is from.
    """
    if path.suffix != ".json":
        raise DataError(f"cannot add to {path}: it holds a JSON array, so its name must end in .json")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"cannot add to {path} ({error}): it must be a JSON array, or not be there yet") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"cannot add to {path}: it is not a JSON array of objects")
    for number, row in enumerate(rows, start=1):
        if row.get("source") == SOURCE and not (isinstance(row.get("id"), str) and _is_stream_id(row.get("stream_id"))):
            raise DataError(f"cannot add to {path}: row {number} is a correction without its id and stream_id")
    return rows


def _is_stream_id(value: object) -> bool:
    parts = value.split("-") if isinstance(value, str) else []
    return len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts)

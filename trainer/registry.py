"""`registry.json`, beside the models' directories: of each model the versions that were published, and what each replaced."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from trainer.files import write_whole

REGISTRY_FILE = "registry.json"


class PublishError(Exception):
    """A version that cannot be published; the message says why and what to do."""


class Judgement(BaseModel):
    """What the gate said of a version before it was published."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    passed: bool
    """False where a person published it all the same."""
    reasons: tuple[str, ...]


class Version(BaseModel):
    """One version of a model, as the registry keeps it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    published: str
    """When it was last put in place; ISO 8601, UTC."""
    replaced: str | None
    """The version that was in place before it."""
    adapter_sha256: str
    gguf_sha256: str | None
    """None for a version that was there before the registry, without its GGUF."""
    data_sha256: dict[str, str] | str | None
    accuracy: float | None
    """On the test split, at training; None where there was none, or where answers have changed since by calibrating."""
    gate: Judgement | None
    """None for a version that was there before the registry."""
    kept: str
    """Directory of its adapter and metadata, relative to the registry."""


_Registry = TypeAdapter(dict[str, list[Version]])


def versions(directory: Path) -> list[Version]:
    """What the registry knows of a model, in the order in which it came to know them.

    Raises:
        PublishError: the registry is damaged.
    """
    return _read(directory.parent / REGISTRY_FILE).get(directory.name, [])


def find(known: list[Version], version: str | None) -> Version | None:
    """The version of this name."""
    return next((each for each in known if each.version == version), None)


def register(directory: Path, entry: Version) -> None:
    """Add a version of a model, or put it in the place of what was known of it; atomically."""
    path = directory.parent / REGISTRY_FILE
    registry = _read(path)
    known = registry.setdefault(directory.name, [])
    place = next((index for index, each in enumerate(known) if each.version == entry.version), len(known))
    known[place : place + 1] = [entry]
    write_whole(path, _Registry.dump_json(registry, indent=1) + b"\n")


def _read(path: Path) -> dict[str, list[Version]]:
    try:
        return _Registry.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise PublishError(f"cannot read the registry {path} ({error}): restore it, or remove it to begin a new one") from error


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")

"""The base model of a recipe: where it comes from, and the GGUF that it is on this machine.

A base that is no GGUF, but a checkpoint for transformers, is converted once, by llama.cpp's own converter, and kept by its content.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from trainer import hub
from worker.classifier.model_file import content_hash

CONVERTER = Path(sys.prefix) / "converter" / "convert_hf_to_gguf.py"
"""In a directory of its own: its package brings another version of the library gguf along."""
_CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt")
"""What a checkpoint is read from. No program is among it."""
_NETWORK = "Without a network, fetch it where there is one and give its path"


class BaseError(Exception):
    """A base model that cannot be had; the message says what to do."""


class Base(BaseModel):
    """A GGUF that an installed Python package carries (`package`, `file`), or what `source` names.

    `source` is a GGUF or a checkpoint's directory on this machine, or on the Hugging Face hub hf:OWNER/NAME[@REVISION] for a
    checkpoint and hf:OWNER/NAME[@REVISION]:FILE.gguf for a GGUF.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    licence: str
    package: str | None = None
    file: str | None = None
    source: str | None = None

    @field_validator("source")
    @classmethod
    def _source_can_be_read(cls, source: str | None) -> str | None:
        if source is not None and hub.is_hub_id(source):
            part = hub.parse_model_id(source).file
            if part is not None and not part.endswith(".gguf"):
                raise ValueError(f"{part} is no GGUF: name one, or leave the file out for a checkpoint")
        return source

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> Base:
        if (self.package is None) != (self.file is None) or (self.source is None) == (self.package is None):
            raise ValueError("name either package and file, or source")
        return self

    @classmethod
    def recorded_in(cls, training: Mapping[str, str]) -> Base:
        """The base of a model, as its metadata tells it."""
        places = {place: training.get(f"base_{place}") for place in ("package", "file", "source")}
        return cls(name=training["base"], licence=training["base_licence"], **places)

    @classmethod
    def path_recorded_in(cls, training: Mapping[str, str]) -> Path:
        """The GGUF of a model's base on this machine: the very one that it was trained on where that was a GGUF and its hash is recorded.

        Raises:
            BaseError: it cannot be had, or is another.
            ModelFileError: it is no GGUF.
        """
        base = cls.recorded_in(training)
        path, recorded = base.path(), training.get("base_sha256")
        if recorded is None or base.checkpoint() is not None:  # converters of two versions need not write the same bytes
            return path
        if (found := content_hash(path)) != recorded:
            raise BaseError(
                f"{path} is not the base that the model was trained on: its SHA-256 is {found}, that one's was {recorded}. "
                "Put that one back, or train anew"
            )
        return path

    def record(self) -> dict[str, str]:
        """For a model's metadata. Of a source on the hub it names the commit, so that a branch that moves on changes nothing.

        Raises:
            BaseError: it cannot be had.
        """
        given = {"base": self.name, "base_licence": self.licence}
        if self.package is not None and self.file is not None:
            return given | {"base_package": self.package, "base_file": self.file}
        assert self.source is not None
        if not hub.is_hub_id(self.source):
            return given | {"base_source": self.source}
        found = hub.parse_model_id(self.source)
        return given | {"base_source": str(hub.ModelId(found.name, _commit(self._fetched()), found.file))}

    def path(self) -> Path:
        """The GGUF on this machine, fetched or converted if it has to be.

        Raises:
            BaseError: it cannot be had; a checkpoint cannot be converted.
        """
        if self.package is not None:
            return self._in_package()
        where = self._fetched()
        return converted(where) if where.is_dir() else where

    def checkpoint(self) -> Path | None:
        """The checkpoint's directory, where the base is one.

        Raises:
            BaseError: it cannot be had.
        """
        if self.source is None:
            return None
        where = self._fetched()
        return where if where.is_dir() else None

    def _in_package(self) -> Path:
        assert self.package is not None
        assert self.file is not None
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise BaseError(f"the base model's package {self.package!r} is not installed: run `make setup`")
        path = Path(spec.submodule_search_locations[0]) / self.file
        if not path.is_file():
            raise BaseError(f"the package {self.package!r} carries no file {self.file!r}")
        return path

    def _fetched(self) -> Path:
        """A GGUF, or a checkpoint's directory."""
        assert self.source is not None
        if hub.is_hub_id(self.source):
            return _from_hub(hub.parse_model_id(self.source))
        path = Path(self.source).expanduser()
        if not path.exists():
            raise BaseError(f"there is no base model at {path}: give a GGUF, a checkpoint's directory, or hf:OWNER/NAME[@REVISION]")
        if path.is_dir() and not (path / "config.json").is_file():
            raise BaseError(f"{path} is no checkpoint: it has no config.json")
        return path


def converted(checkpoint: Path) -> Path:
    """The GGUF (BF16) of a checkpoint: made now, or as it was made before.

    Raises:
        BaseError: it brings a program of its own, the converter is not installed, or it refuses the checkpoint.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if _brings_code(checkpoint / name):
            raise BaseError(f"{checkpoint} brings a program of its own (auto_map in {name}): only architectures of transformers are taken")
    cache = cache_directory() / "bases"
    path = cache / f"{_content_key(checkpoint)}.gguf"
    if path.is_file():
        return path
    if not CONVERTER.is_file():
        raise BaseError(f"{checkpoint} is no GGUF, and llama.cpp's converter is not installed: run `make setup`")
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".converting-") as work:
            made = Path(work) / path.name
            line = [sys.executable, str(CONVERTER), str(checkpoint), "--outfile", str(made), "--outtype", "bf16"]
            done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
            if done.returncode != 0 or not made.is_file():
                last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
                raise BaseError(f"llama.cpp's converter refuses {checkpoint}: {last}")
            os.replace(made, path)
    except OSError as error:
        raise BaseError(f"cannot keep the GGUF of {checkpoint} in {cache} ({error}): set POINTSMAN_CACHE_DIR") from error
    return path


def cache_directory() -> Path:
    """Where the trainer keeps what it can make again: the worker's own setting says where."""
    return Path(os.environ.get("POINTSMAN_CACHE_DIR", "~/.cache/pointsman")).expanduser()


def _from_hub(wanted: hub.ModelId) -> Path:
    try:
        import huggingface_hub  # takes a second, and other bases do not need it
    except ModuleNotFoundError as error:
        raise BaseError(f"{wanted} needs the library `huggingface_hub`: run `make setup`, or give a path") from error
    try:
        if wanted.file is not None:
            return Path(huggingface_hub.hf_hub_download(wanted.name, wanted.file, revision=wanted.revision))
        found = huggingface_hub.snapshot_download(wanted.name, revision=wanted.revision, allow_patterns=list(_CHECKPOINT_FILES))
    except (OSError, ValueError, huggingface_hub.errors.EntryNotFoundError) as error:
        raise BaseError(f"cannot fetch {wanted} from the Hugging Face hub: {error}. {_NETWORK}") from error
    return Path(found)


def _commit(fetched: Path) -> str:
    """The hub's cache keeps every file under snapshots/COMMIT/."""
    parts = fetched.parts
    return parts[len(parts) - 1 - parts[::-1].index("snapshots") + 1]


def _brings_code(configuration: Path) -> bool:
    try:
        return "auto_map" in json.loads(configuration.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _content_key(checkpoint: Path) -> str:
    """Changes with every file's name, size and time: reading gigabytes of weights would take longer than many a build."""
    digest = hashlib.sha256(str(checkpoint.resolve()).encode())
    for file in sorted(path for pattern in _CHECKPOINT_FILES for path in checkpoint.glob(pattern)):
        state = file.stat()
        digest.update(f"\n{file.name} {state.st_size} {state.st_mtime_ns}".encode())
    return f"{checkpoint.resolve().name}-{digest.hexdigest()[:16]}"

"""The self-describing GGUF: read and check the Pointsman metadata that a model file carries.

Labels, prompt, calibration and self-check travel in the file with the weights, so they cannot drift apart.
The format is a table of string keys, each holding JSON; its version is one of `METADATA_FORMATS`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp

from worker.classifier.calibration import Calibration
from worker.classifier.kernels import load_kernels
from worker.classifier.labels import Label, LabelSet
from worker.classifier.prompt import Prompt

METADATA_FORMATS = (1, 2)
"""The second has `offsets` in its calibration, without which its temperature and thresholds are wrong."""
_FORMAT_NAMES: dict[str, str] = {
    str(value): name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_")
    for name, value in vars(llama_cpp).items()
    if name.startswith("LLAMA_FTYPE_")
}
"""By the value of `general.file_type`."""
KEYS = ("format", "labels", "prompt", "calibration", "evaluation", "probes", "training")


def format_of(calibration: Mapping[str, Any]) -> int:
    """The first that can say this calibration, so that workers read it that know no other."""
    return 2 if calibration.get("offsets") else 1


class ModelFileError(Exception):
    """A model file that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A text with the label and probability that the model must give: the self-check at load."""

    text: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Everything a model file says about itself, checked. `version` is the content hash of the adapter."""

    labels: LabelSet
    prompt: Prompt
    calibration: Calibration
    probes: tuple[Probe, ...]
    probe_tolerance: float
    evaluation: Mapping[str, Any]
    training: Mapping[str, Any]
    name: str
    version: str
    base: str


def parse_card(metadata: Mapping[str, str], source: str) -> ModelCard:
    """Check the `pointsman.*` values of a model file.

    Args:
        metadata: all string metadata of the file, by key.
        source: the file, for error messages.

    Raises:
        ModelFileError: a key is missing, is not JSON, or does not hold what the format says.
    """
    missing = [key for key in KEYS if f"pointsman.{key}" not in metadata]
    if len(missing) == len(KEYS):
        raise ModelFileError(
            f"{source} is a GGUF without Pointsman metadata, so its labels and prompt are unknown. "
            "Build a router model with `python -m trainer build`."
        )
    if missing:
        raise ModelFileError(f"{source} lacks metadata: {', '.join(f'pointsman.{key}' for key in missing)}. Build it again.")
    try:
        values = {key: json.loads(metadata[f"pointsman.{key}"]) for key in KEYS}
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{source}: Pointsman metadata is not JSON ({error}). Build it again.") from error
    if values["format"] not in METADATA_FORMATS:
        raise ModelFileError(
            f"{source} has Pointsman format {values['format']}, this worker reads {' and '.join(map(str, METADATA_FORMATS))}. "
            "Use the trainer of the same release."
        )
    try:
        return _card(values)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelFileError(f"{source}: Pointsman metadata is malformed ({type(error).__name__}: {error}).") from error


def _card(values: Mapping[str, Any]) -> ModelCard:
    labels = LabelSet(
        tuple(Label(str(row["name"]), str(row["description"]), str(row["code"])) for row in values["labels"]["labels"]),
        values["labels"].get("out_of_scope"),
    )
    probes = tuple(Probe(str(row["text"]), str(row["label"]), float(row["probability"])) for row in values["probes"]["probes"])
    unknown = sorted({probe.label for probe in probes} - set(labels.names))
    if unknown:
        raise ValueError(f"probes name unknown labels: {', '.join(unknown)}")
    if not values["prompt"]["suffix"]:
        raise ValueError("the prompt has no suffix: a query needs a token after it, at which the model answers")
    calibration = values["calibration"]
    offsets = {str(name): float(offset) for name, offset in calibration.get("offsets", {}).items()}
    if offsets and values["format"] == 1:
        raise ValueError("format 1 has no offsets")
    if strangers := sorted(set(offsets) - set(labels.names)):
        raise ValueError(f"offsets name unknown labels: {', '.join(strangers)}")
    return ModelCard(
        labels=labels,
        prompt=Prompt(str(values["prompt"]["prefix"]), str(values["prompt"]["suffix"])),
        calibration=Calibration(
            float(calibration["temperature"]),
            float(calibration["threshold"]),
            dict(calibration.get("thresholds", {})),
            offsets,
        ),
        probes=probes,
        probe_tolerance=float(values["probes"]["tolerance"]),
        evaluation=dict(values["evaluation"]),
        training=dict(values["training"]),
        name=str(values["training"]["name"]),
        version=str(values["training"]["version"]),
        base=str(values["training"]["base"]),
    )


_log_lines: list[str] = []


def start_llama_cpp() -> None:
    """Before anything else of llama.cpp: its log is kept here, where `first_error` finds it, and not on standard error."""
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))
    load_kernels()
    llama_cpp.llama_backend_init()
    _log_lines.clear()


def first_error() -> str:
    """The first thing that llama.cpp complained of since `start_llama_cpp`."""
    return _log_lines[0] if _log_lines else "llama.cpp gave no reason"


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _: Any) -> None:
    if level in (3, 4) and len(_log_lines) < 20:
        _log_lines.append(text.decode(errors="replace").strip())


class LoadedModel:
    """A GGUF in memory: the llama.cpp handle and all its string metadata. Close it when done."""

    def __init__(self, path: Path, handle: Any, metadata: Mapping[str, str], *, on_gpu: bool = False) -> None:
        self.path = path
        self.handle = handle
        self.metadata = metadata
        self.on_gpu = on_gpu
        """Whether any of its layers is on a GPU."""
        self.vocab = llama_cpp.llama_model_get_vocab(handle)

    def close(self) -> None:
        if self.handle is not None:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

    def tokenize(self, text: str, *, parse_special: bool, add_special: bool = False) -> list[int]:
        """Token ids of `text`. Control tokens in it are recognised only with `parse_special`."""
        data = text.encode("utf-8", errors="replace")
        capacity = len(data) + 4
        buffer = (llama_cpp.llama_token * capacity)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), buffer, capacity, add_special, parse_special)
        if count < 0:
            raise ValueError(f"llama.cpp could not tokenise a text of {len(data)} bytes")
        return list(buffer[:count])

    @property
    def weight_format(self) -> str:
        """The format of most weights, such as BF16 or Q4_K_M."""
        return _FORMAT_NAMES.get(self.metadata.get("general.file_type", ""), "unknown")

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""
        return int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Every token that ends generation."""
        return tuple(i for i in range(self.n_tokens) if llama_cpp.llama_vocab_is_eog(self.vocab, i))


def content_hash(path: Path) -> str:
    """SHA-256 of a GGUF.

    Raises:
        ModelFileError: the file is missing, cannot be read, or is no GGUF.
    """
    _require_gguf(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, sha256: str) -> None:
    """Raises ModelFileError unless the file is there and has this hash."""
    found = content_hash(path)
    if found != sha256.lower():
        raise ModelFileError(f"{path} has SHA-256 {found}, expected {sha256.lower()}: refusing to load it.")


def _require_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ModelFileError(f"there is no model file at {path}. Build one with `make model`, or set POINTSMAN_MODEL.") from error
    except OSError as error:
        raise ModelFileError(f"cannot read the model file {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelFileError(f"{path} is not a GGUF file (wrong first bytes). Was it downloaded completely?")


def knows_gpu() -> bool:
    """Whether this build of llama.cpp can use a GPU, and finds one."""
    start_llama_cpp()
    return bool(llama_cpp.llama_supports_gpu_offload())


def load(path: Path, *, n_gpu_layers: int = 0, vocab_only: bool = False) -> LoadedModel:
    """Load a GGUF.

    Args:
        n_gpu_layers: layers to put on a GPU; -1 for all. A CPU build of llama.cpp ignores it.
        vocab_only: load tokenizer and metadata, no weights.

    Raises:
        ModelFileError: the file is missing, is no GGUF, or is damaged.
    """
    _require_gguf(path)
    start_llama_cpp()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    params.vocab_only = vocab_only
    handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not handle:
        raise ModelFileError(f"{path} cannot be loaded, it is damaged or of an unknown kind: {first_error()}")
    return LoadedModel(path, handle, _metadata(handle), on_gpu=n_gpu_layers != 0 and knows_gpu())


def _metadata(handle: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for index in range(llama_cpp.llama_model_meta_count(handle)):
        key = _read(partial(llama_cpp.llama_model_meta_key_by_index, handle, index))
        if key.startswith(("pointsman.", "general.")):
            found[key] = _read(partial(llama_cpp.llama_model_meta_val_str_by_index, handle, index))
    return found


def _read(call: Callable[[Any, int], int]) -> str:
    """Read a C string whose length llama.cpp tells: once to ask, once to copy."""
    length = call(ctypes.create_string_buffer(1), 1)
    buffer = ctypes.create_string_buffer(length + 1)
    call(buffer, length + 1)
    return buffer.value.decode("utf-8", errors="replace")

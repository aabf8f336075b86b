"""Base GGUF + adapter + metadata -> GGUF. Needs numpy and gguf, no torch; takes seconds.

Every key and tensor of the base is carried over, so tokenizer and hyper-parameters are never re-invented.
A tensor with an adapter becomes W + (alpha / rank) B A, stored as BF16; the others stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.fast_gguf import gguf

METADATA_FILE = "pointsman.json"
ADAPTER_FILE = "adapter.gguf"
RECORD_FILE = "report.json"
"""What was measured for the report; see trainer.figures."""
_STRUCTURAL = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")


class BuildError(Exception):
    """A model that cannot be built; the message says what does not fit."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Low-rank updates by tensor name: each an (A, B) pair, and their common alpha."""

    updates: Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    alpha: float

    def delta(self, name: str) -> npt.NDArray[np.float32]:
        """The update of one weight matrix, shape (rows, columns)."""
        a, b = self.updates[name]
        return np.asarray((self.alpha / a.shape[0]) * (b @ a), dtype=np.float32)


def model_file_of(directory: Path) -> Path:
    """The GGUF that belongs to a model's directory: beside it, with the same name."""
    return directory.with_name(directory.name + ".gguf")


def directory_of(model: Path) -> Path:
    """The directory that belongs to a GGUF: the other way of `model_file_of`."""
    return model.with_suffix("")


def read_metadata(directory: Path) -> dict[str, Any]:
    """The value of each `pointsman.*` key, as training left them in a model's directory.

    Raises:
        BuildError: there are none.
    """
    path = directory / METADATA_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BuildError(f"cannot read {path} ({error}): is {directory} a model's directory?") from error


def read_adapter(path: Path) -> Adapter:
    """Read a llama.cpp LoRA adapter (GGUF).

    Raises:
        BuildError: the file is missing or is no LoRA adapter.
    """
    if not path.is_file():
        raise BuildError(f"there is no adapter at {path}: run `python -m trainer run` with its recipe first")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise BuildError(f"{path} is not a GGUF: {error}") from error
    alpha = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    if alpha is None:
        raise BuildError(f"{path} is a GGUF but no LoRA adapter")
    factors = {tensor.name: np.asarray(tensor.data, dtype=np.float32) for tensor in reader.tensors}
    names = sorted({name.rsplit(".lora_", 1)[0] for name in factors})
    if single := [name for name in names if not {f"{name}.lora_a", f"{name}.lora_b"} <= factors.keys()]:
        raise BuildError(f"{path} lacks a factor of its updates: {', '.join(single[:3])}")
    return Adapter({name: (factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]) for name in names}, float(alpha.contents()))


def content_version(adapter: Path, metadata: Mapping[str, Any]) -> str:
    """Twelve hex digits that change with the adapter, the labels, the prompt or the calibration."""
    digest = hashlib.sha256(adapter.read_bytes())
    for key in ("labels", "prompt", "calibration"):
        digest.update(json.dumps(metadata[key], sort_keys=True).encode())
    return digest.hexdigest()[:12]


def build(
    base: Path,
    adapter: Adapter | None,
    metadata: Mapping[str, Any],
    output: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Write the model file, atomically: it is there complete or not at all.

    Args:
        adapter: None to keep the base's weights (a baseline).
        metadata: the value of each `pointsman.*` key, by the key's last part.

    Raises:
        BuildError: the adapter does not fit the base.
    """
    reader = gguf.GGUFReader(base)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    unknown = sorted(set(adapter.updates if adapter else ()) - set(tensors))
    if unknown:
        raise BuildError(f"the adapter changes tensors that {base.name} does not have: {', '.join(unknown[:3])}")
    for name, (a, b) in (adapter.updates if adapter else {}).items():
        shape = [int(size) for size in reversed(tensors[name].shape)]
        if [*b.shape[:1], *a.shape[1:]] != shape or a.shape[0] != b.shape[1]:
            raise BuildError(f"the adapter's factors {b.shape} x {a.shape} of {name} do not fit its shape {shape} in {base.name}")

    architecture = str(reader.fields["general.architecture"].contents())
    partial = output.with_name(output.name + ".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    for key, field in reader.fields.items():
        if key not in _STRUCTURAL and key not in ("general.name", "general.file_type"):
            element = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=element)
    writer.add_name(f"Pointsman {metadata['training']['name']}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if adapter else reader.fields["general.file_type"].contents())
    for key, value in metadata.items():
        writer.add_string(f"pointsman.{key}", json.dumps(value, ensure_ascii=False))

    for number, tensor in enumerate(reader.tensors):
        if adapter and tensor.name in adapter.updates:
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type) + adapter.delta(tensor.name)
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(tensor.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        progress(number + 1, len(tensors))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, output)

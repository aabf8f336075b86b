"""The same model in other weight formats, made by llama.cpp's own quantiser and kept by the content of the original.

Which format is fastest depends on the CPU: with AVX512-BF16 it is BF16, elsewhere often a quantised one.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import llama_cpp

from worker.classifier.cores import available_cores
from worker.classifier.model_file import ModelFileError, content_hash, first_error, start_llama_cpp

_FILE_TYPES = {
    "F32": llama_cpp.LLAMA_FTYPE_ALL_F32,
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "Q5_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
FORMATS = tuple(_FILE_TYPES)
"""From the most exact to the smallest."""
_OF_LATE_S = 3600.0


def cached(master: Path, weight_format: str, cache: Path, master_hash: str) -> Path:
    """Where `in_format` keeps this format of the model."""
    return cache / master_hash[:16] / f"{master.stem}.{weight_format}.gguf"


def in_format(master: Path, weight_format: str, cache: Path, master_hash: str) -> Path:
    """The model in this format: made now, or as it was made before. Metadata and tokenizer are carried over.

    Args:
        cache: where such files are kept; made if missing, for this user alone.
        master_hash: `content_hash` of `master`.

    Raises:
        ModelFileError: llama.cpp cannot make it, there is no room for it, or `master` was replaced meanwhile.
    """
    path = cached(master, weight_format, cache, master_hash)
    seal = _seal(path)
    try:
        # The file was verified when it was made; the seal tells whether it is still that one.
        if path.is_file() and seal.is_file() and seal.read_text().strip() == content_hash(path):
            with suppress(OSError):  # of another user, or read-only
                os.utime(seal)
            return path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".partial", delete=False) as file:
            partial = Path(file.name)  # of this process alone: several workers may share the cache
        try:
            _quantise(master, weight_format, partial)
            if content_hash(master) != master_hash:
                raise ModelFileError(f"{master} was replaced while {weight_format} was made of it: try again")
            made_hash = content_hash(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        seal.write_text(made_hash + "\n")
        _make_room(path, cache)
    except OSError as error:
        raise ModelFileError(f"cannot keep {master.name} as {weight_format} in {cache} ({error}): set POINTSMAN_CACHE_DIR") from error
    return path


def forget(path: Path) -> None:
    """Remove a file that `in_format` made."""
    path.unlink(missing_ok=True)
    _seal(path).unlink(missing_ok=True)


def _make_room(path: Path, cache: Path) -> None:
    """Remove the same format of what the model was before, and what killed processes left, unless it was used of late.

    A worker that still decides by such a file has it mapped, so it does so until it ends.
    """
    for other in (*cache.glob(f"*/{path.name}"), *cache.glob(f"*/{path.name}*.partial")):
        with suppress(OSError):  # of another user, or removed by another worker meanwhile
            used = _seal(other) if _seal(other).is_file() else other
            if other != path and time.time() - used.stat().st_mtime > _OF_LATE_S:
                forget(other)


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _quantise(master: Path, weight_format: str, output: Path) -> None:
    start_llama_cpp()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPES[weight_format]
    params.allow_requantize = True
    params.nthread = available_cores()  # llama.cpp would take the host's, and be throttled together with the batch at work
    if llama_cpp.llama_model_quantize(str(master).encode(), str(output).encode(), params) != 0:
        raise ModelFileError(f"llama.cpp cannot make {weight_format} of {master}: {first_error()}")

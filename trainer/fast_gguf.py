"""The library `gguf`, two of its functions made fast: for this package, and for transformers, which reads by it as well.

A vocabulary is 98,000 strings, and gguf slices a `numpy.memmap` three times for each, which costs ten times what a slice of
a plain array does: seconds for each file, and a training reads six. transformers asks for the map of the tensors'
names once for every module of the network, though it is the same each time: half of the time that loading takes then.
"""

from __future__ import annotations

import functools
from typing import Any

import gguf
import numpy as np

__all__ = ["gguf"]

_get = gguf.GGUFReader._get


def _get_from_plain_array(reader: gguf.GGUFReader, *which: Any, **order: Any) -> Any:
    """As `GGUFReader._get`, from the same mapped memory."""
    if type(reader.data) is np.memmap:
        reader.data = np.asarray(reader.data)
    return _get(reader, *which, **order)


gguf.GGUFReader._get = _get_from_plain_array
gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)

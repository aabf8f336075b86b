"""llama.cpp's kernels: the libraries that do the arithmetic.

A build for one machine has them linked to llama.cpp. One for any machine, as in the images, has a library for each generation of
CPUs, and none of them counts until it is loaded; llama.cpp knows which is the best that this CPU can run.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import llama_cpp

DIRECTORY = Path(llama_cpp.__file__).parent / "lib"
# llama_cpp has no names for these functions of ggml. They are found through the library that it has loaded: a second copy of ggml
# would have a register of kernels of its own.
_ggml: ctypes.CDLL = llama_cpp.llama_cpp._lib
_ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
_ggml.ggml_backend_reg_by_name.argtypes = [ctypes.c_char_p]
_ggml.ggml_backend_reg_by_name.restype = ctypes.c_void_p
_ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]


class _Symbol(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("address", ctypes.c_void_p))


def load_kernels() -> None:
    """Have llama.cpp load the best kernels for this machine, if none are linked to it."""
    if _ggml.ggml_backend_reg_count() == 0:
        # By itself llama.cpp looks for them beside the Python executable and in the current directory, where anyone's may lie.
        _ggml.ggml_backend_load_all_from_path(os.fsencode(DIRECTORY))


def cpu_kernels() -> str | None:
    """The generation of CPUs whose kernels were loaded, such as `haswell`; None if this build has one for all."""
    symbol = _Symbol()
    register = ctypes.c_void_p(_ggml.ggml_backend_reg_by_name(b"CPU"))
    if not ctypes.CDLL(None).dladdr(register, ctypes.byref(symbol)):
        return None
    found = re.fullmatch(r"libggml-cpu-(.+)\.so", os.path.basename(os.fsdecode(symbol.file)))
    return found and found[1]

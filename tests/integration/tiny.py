"""A base so small that training it takes seconds: SmolLM2's tokenizer and random weights, as a package that a recipe can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.integration.parts import base_file

PACKAGE, FILE = "tiny_base", "tiny.gguf"
LAYERS, WIDTH, HEADS, KV_HEADS, INNER = 2, 64, 4, 2, 128
_SIZES = {
    "llama.block_count": LAYERS,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.dimension_count": WIDTH // HEADS,
}


def write_package(directory: Path) -> dict[str, str]:
    """Write the package, to be found with `directory` on the path of modules; returns a recipe's `base`."""
    package = directory / PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    reader = gguf.GGUFReader(base_file())
    writer = gguf.GGUFWriter(package / FILE, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        element = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, _SIZES.get(key, field.contents()), field.types[0], sub_type=element)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, values in _weights(len(reader.fields["tokenizer.ggml.tokens"].data)).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"name": "Tiny", "licence": "Apache-2.0", "package": PACKAGE, "file": FILE}


def _weights(vocabulary: int) -> dict[str, Any]:
    rng = np.random.default_rng(5)

    def drawn(rows: int, columns: int) -> Any:
        return (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    keys = WIDTH * KV_HEADS // HEADS
    shapes = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (keys, WIDTH), "attn_v": (keys, WIDTH), "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
    }  # fmt: skip
    weights = {"token_embd.weight": drawn(vocabulary, WIDTH), "output_norm.weight": np.ones(WIDTH, dtype=np.float32)}
    for layer in range(LAYERS):
        weights |= {f"blk.{layer}.{name}.weight": drawn(*shape) for name, shape in shapes.items()}
        weights |= {f"blk.{layer}.{name}.weight": np.ones(WIDTH, dtype=np.float32) for name in ("attn_norm", "ffn_norm")}
    return weights

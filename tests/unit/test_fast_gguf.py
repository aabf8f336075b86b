"""Files of GGUF are read as they were written, by the library made fast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.fast_gguf import gguf

TOKENS = ["a", "", "ü", "Ġthe", "\x00"] * 50
WEIGHTS = np.arange(64, dtype=np.float32).reshape(2, 32)


def write(path: Path, order: gguf.GGUFEndian) -> None:
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_string("text", "Grüße")
    writer.add_uint32("number", 2**31 + 5)
    writer.add_float32("share", 0.25)
    writer.add_array("tokens", TOKENS)
    writer.add_array("scores", [-1.5, 2.0])
    writer.add_tensor("weights", WEIGHTS.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("order", [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG])
def test_what_was_written_is_read(tmp_path: Path, order: gguf.GGUFEndian) -> None:
    write(tmp_path / "some.gguf", order)
    reader = gguf.GGUFReader(tmp_path / "some.gguf")
    found = {name: reader.fields[name].contents() for name in ("text", "number", "share", "tokens", "scores")}
    assert found == {"text": "Grüße", "number": 2**31 + 5, "share": 0.25, "tokens": TOKENS, "scores": [-1.5, 2.0]}
    assert np.array_equal(reader.tensors[0].data, WEIGHTS)
    assert not isinstance(reader.data, np.memmap), "else each of a vocabulary's strings costs ten times as much"


@pytest.mark.parametrize("kept", [3, 40, 500])
def test_a_file_cut_short_is_an_error_that_build_knows(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "some.gguf"
    write(path, gguf.GGUFEndian.LITTLE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((ValueError, IndexError)):
        gguf.GGUFReader(path)


def test_the_map_of_the_tensors_names_is_made_once() -> None:
    assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30) is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)

"""Which of llama.cpp's kernels are loaded, and from where. A build with kernels to choose from is tested in the worker's image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.classifier import kernels


class FakeGgml:
    """ggml with so many kernels in its register; remembers where it was told to look for others."""

    def __init__(self, registered: int) -> None:
        self._registered = registered
        self.searched: list[Path] = []

    def ggml_backend_reg_count(self) -> int:
        return self._registered

    def ggml_backend_load_all_from_path(self, directory: bytes) -> None:
        self.searched.append(Path(os.fsdecode(directory)))


@pytest.mark.parametrize(("registered", "searched"), [(0, [kernels.DIRECTORY]), (1, [])], ids=["none linked", "linked"])
def test_kernels_are_looked_for_beside_llama_cpp_alone_and_only_if_none_are_linked(
    registered: int, searched: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ggml = FakeGgml(registered)
    monkeypatch.setattr(kernels, "_ggml", ggml)
    kernels.load_kernels()
    assert ggml.searched == searched
    assert kernels.DIRECTORY.is_dir()


def test_the_kernels_have_the_name_of_a_library_if_there_are_several() -> None:
    kernels.load_kernels()
    there: set[str | None] = {path.stem.removeprefix("libggml-cpu-") for path in kernels.DIRECTORY.glob("libggml-cpu-*.so")}
    assert kernels.cpu_kernels() in (there or {None})

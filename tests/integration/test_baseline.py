"""The untuned base asked for real, both ways; and its failures counted, where what it writes is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from tests.integration import tiny
from tests.unit.parts import a_card
from trainer.base import Base
from trainer.baseline import baseline
from trainer.dataset import Example

CARD = a_card("pool", "car", "fence")
TOLD = (("pump hums", "pool"), ("tyre is flat", "car"), ("post is rotten", "fence"), ("green water", "pool"))
EXAMPLES = [Example(*each) for each in TOLD]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield Base(**tiny.write_package(directory)).path()


def test_an_untuned_base_is_asked_freely_and_held_to_the_labels(base: Path) -> None:
    """Of random weights nothing can be right but by chance, and what they write is no label."""
    asked: list[int] = []
    found = baseline(CARD, base, EXAMPLES, asked.append)
    assert found["n"] == 4
    assert asked[-1] == 8, "each example twice"
    free, constrained = found["free"], found["constrained"]
    assert free["preamble"] + free["invented"] == 4 - free["right"] > 0
    assert constrained["preamble"] == constrained["invented"] == 0
    assert constrained["most_used"]["label"] in CARD.labels.names
    assert constrained["most_used"]["share"] >= 0.5, "three labels for four queries"
    assert constrained["accuracy"] == constrained["right"] / 4


def test_preambles_inventions_and_the_most_used_label_are_counted(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = iter(["Pool.", "The category is: pool", "swimming", "pool"])

    def write(_: llama_cpp.Llama, prompt: list[int], **options: Any) -> dict[str, Any]:
        assert prompt
        assert options["temperature"] == 0
        return {"choices": [{"text": next(written)}]}

    monkeypatch.setattr(llama_cpp.Llama, "create_completion", write)
    free = baseline(CARD, base, EXAMPLES)["free"]
    assert (free["right"], free["accuracy"], free["preamble"], free["invented"]) == (2, 0.5, 1, 1)
    assert free["most_used"] == {"label": "pool", "share": 0.75}
    assert free["macro_f1"] == pytest.approx(1 / 3, abs=1e-4), "pool 1, car and fence 0"

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.dataset import DataError, Example, part_of
from trainer.measuring import learnt_from

TRAINING = {"recipe": {"split": {"seed": 1, "validation": 0.2, "test": 0.2}}}


def written(path: Path, texts: Sequence[str], label: str = "pool") -> Path:
    path.write_text(json.dumps([{"instruction": "", "input": text, "output": label} for text in texts]))
    return path


def test_beside_an_official_test_file_peers_learn_from_the_whole_training_file(tmp_path: Path) -> None:
    test = [Example("how warm is the pool today", "pool")]
    train = written(tmp_path / "train.json", ["how warm is the pool today?", "clean the filter"])
    found = learnt_from([train], written(tmp_path / "test.json", [test[0].text]), "all", TRAINING, test)
    assert [example.text for example in found] == ["how warm is the pool today?", "clean the filter"]


def test_where_a_part_is_measured_peers_learn_from_the_training_part_and_files_without_copies_of_it(tmp_path: Path) -> None:
    data = written(tmp_path / "data.json", ["green water", "the pump hums", "add chlorine", "cover is torn", "ladder wobbles"])
    test = part_of(data, "test", TRAINING)
    assert len(test) == 1
    more = written(tmp_path / "more.json", [test[0].text, "skimmer basket broke"])
    found = learnt_from([more], data, "test", TRAINING, test)
    assert {example.text for example in found} == {"skimmer basket broke"} | {e.text for e in part_of(data, "train", TRAINING)}


def test_peers_that_would_learn_from_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give --train FILE"):
        learnt_from([], written(tmp_path / "data.json", ["green water"]), "all", TRAINING, [])

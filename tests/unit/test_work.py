from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer import work
from trainer.recipe import RecipeError

INPUTS = {"the data": "a1", "the base": "b2"}


def test_what_lies_there_is_kept_as_long_as_the_inputs_are_the_same(tmp_path: Path) -> None:
    directory = tmp_path / "work"
    assert work.prepare(directory, INPUTS) == []
    (directory / "found").touch()
    assert work.prepare(directory, INPUTS) == []
    assert (directory / "found").exists()


def test_with_other_inputs_nothing_is_kept_and_what_changed_is_named(tmp_path: Path) -> None:
    work.prepare(tmp_path / "work", INPUTS)
    (tmp_path / "work" / "found").touch()
    assert work.prepare(tmp_path / "work", INPUTS | {"the data": "a2"}) == ["the data"]
    assert not (tmp_path / "work" / "found").exists()
    assert work.prepare(tmp_path / "work", INPUTS | {"the data": "a2"}) == []


def test_fresh_keeps_nothing(tmp_path: Path) -> None:
    work.prepare(tmp_path / "work", INPUTS)
    (tmp_path / "work" / "found").touch()
    assert work.prepare(tmp_path / "work", INPUTS, fresh=True) == []
    assert not (tmp_path / "work" / "found").exists()


def test_a_directory_of_unknown_inputs_is_emptied(tmp_path: Path) -> None:
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "adapter").touch()
    (directory / work.INPUTS_FILE).write_text('{"the data": ')
    assert work.prepare(directory, INPUTS) == []
    assert [path.name for path in directory.iterdir()] == [work.INPUTS_FILE]


def test_a_second_run_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with work.alone(tmp_path / "model"), pytest.raises(RecipeError, match="another command is at work"), work.alone(tmp_path / "model"):
        pass
    with work.alone(tmp_path / "model"):
        pass


def test_what_a_step_found_comes_back_as_it_was(tmp_path: Path) -> None:
    answers = np.array([[0.1, 0.2]])
    work.remember(tmp_path / "found.npz", {"steps": 5, "losses": [[1, 0.5]]}, {"answers": answers})
    found = work.recall(tmp_path / "found.npz")
    assert found is not None
    assert found[0] == {"steps": 5, "losses": [[1, 0.5]]}
    np.testing.assert_array_equal(found[1]["answers"], answers)
    assert set(found[1]) == {"answers"}


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half a file"])
def test_a_step_that_did_not_come_to_its_end_found_nothing(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "found.npz").write_bytes(content)
    assert work.recall(tmp_path / "found.npz") is None

from __future__ import annotations

from pathlib import Path

from trainer import checkpoints


def write(directory: Path, step: int, content: str) -> None:
    with checkpoints.writing(directory, step) as partial:
        (partial / "weights").write_text(content)


def test_the_newest_checkpoint_is_kept_and_the_earlier_go(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step, str(step))
    assert checkpoints.newest(tmp_path) == tmp_path / "100"
    assert [path.name for path in tmp_path.iterdir()] == ["100"]
    assert (tmp_path / "100" / "weights").read_text() == "100"


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "none") is None


def test_a_checkpoint_cut_off_in_writing_is_as_if_it_had_not_been_begun(tmp_path: Path) -> None:
    write(tmp_path, 10, "ten")
    cut_off = checkpoints.writing(tmp_path, 20)
    (cut_off.__enter__() / "weights").write_text("half of")
    assert checkpoints.newest(tmp_path) == tmp_path / "10"
    write(tmp_path, 20, "twenty")
    assert [path.name for path in (tmp_path / "20").iterdir()] == ["weights"]
    assert (tmp_path / "20" / "weights").read_text() == "twenty"


def test_an_earlier_checkpoint_that_was_being_removed_is_not_gone_on_from(tmp_path: Path) -> None:
    write(tmp_path, 20, "whole")
    (tmp_path / "10").mkdir()
    assert checkpoints.newest(tmp_path) == tmp_path / "20"
    write(tmp_path, 30, "next")
    assert [path.name for path in tmp_path.iterdir()] == ["30"]

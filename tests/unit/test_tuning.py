"""What tuning keeps and when it is used; the measuring itself is tested on the real model."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from worker.classifier import EngineOptions, ModelFileError, formats, tuning
from worker.classifier.model_file import content_hash
from worker.classifier.tuning import Profile, choose, load_profile, save_profile

PROFILE = Profile("Q8_0", threads=3, batch_tokens=511, micro_batch_tokens=256)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF, or so it says")
    return path


def test_a_profile_is_found_again_for_the_same_content_and_for_no_other(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert load_profile(content_hash(model), cache) is None
    kept = save_profile(PROFILE, content_hash(model), cache)
    assert load_profile(content_hash(model), cache) == PROFILE
    assert kept.parent.stat().st_mode & 0o077 == 0, "others could put a model of theirs there"
    model.write_bytes(b"GGUF, another")
    assert load_profile(content_hash(model), cache) is None


def test_a_profile_of_another_machine_is_not_used(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_profile(PROFILE, content_hash(model), tmp_path)
    monkeypatch.setattr(tuning, "available_cores", lambda: 977)
    assert load_profile(content_hash(model), tmp_path) is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"threads": 3}', "{not json", '{"weight_format": "Q9", "threads": 3, "batch_tokens": 511, "micro_batch_tokens": 256}'],
)
def test_a_damaged_profile_counts_as_none(model: Path, tmp_path: Path, content: str) -> None:
    save_profile(PROFILE, content_hash(model), tmp_path).write_text(content)
    assert load_profile(content_hash(model), tmp_path) is None


def test_a_cache_that_cannot_be_written_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="POINTSMAN_CACHE_DIR"):
        save_profile(PROFILE, content_hash(model), tmp_path / "file")


def test_threads_set_by_hand_go_before_those_found() -> None:
    assert PROFILE.options(EngineOptions(threads=7, sequences=5)) == EngineOptions(
        threads=7, sequences=5, batch_tokens=511, micro_batch_tokens=256
    )
    assert PROFILE.options(EngineOptions()).threads == 3
    assert Profile(None, None, 511, 256).options(EngineOptions()).threads is None


def test_without_a_profile_the_file_is_used_as_it_is(model: Path, tmp_path: Path) -> None:
    assert choose(model, "tuned", tmp_path / "none", EngineOptions()) == (model, EngineOptions())


def test_original_is_the_file_as_it_is_even_with_a_profile(model: Path, tmp_path: Path) -> None:
    save_profile(PROFILE, content_hash(model), tmp_path)
    assert choose(model, "original", tmp_path, EngineOptions()) == (model, EngineOptions())


def test_a_profile_that_kept_the_files_format_still_sets_threads_and_batches(model: Path, tmp_path: Path) -> None:
    save_profile(Profile(None, 3, 511, 256), content_hash(model), tmp_path)
    path, options = choose(model, "tuned", tmp_path, EngineOptions())
    assert path == model
    assert (options.threads, options.batch_tokens) == (3, 511)


def test_the_same_format_of_an_older_content_makes_room_unless_it_was_used_of_late(tmp_path: Path) -> None:
    def made(content: str, age_s: float, name: str = "mine.Q8_0.gguf") -> Path:
        path = tmp_path / content / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"GGUF")
        path.with_suffix(".sha256").write_text("0")
        for file in (path, path.with_suffix(".sha256")):
            os.utime(file, (time.time() - age_s,) * 2)
        return path

    new, late, old = made("new", 9000), made("late", 60), made("old", 9000)
    other, killed = made("old", 9000, "other.Q8_0.gguf"), made("old", 9000, "mine.Q8_0.ggufx1.partial")
    formats._make_room(new, tmp_path)
    assert [path.exists() for path in (new, late, old, other, killed)] == [True, True, False, True, False]
    assert not old.with_suffix(".sha256").exists()

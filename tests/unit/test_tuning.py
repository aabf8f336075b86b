"""What tuning keeps and when it is used; the measuring itself is tested on the real model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.parts import StandIn, a_decision
from worker.classifier import Classifier, EngineOptions, ModelFileError, formats, tuning
from worker.classifier.formats import FORMATS
from worker.classifier.model_file import content_hash
from worker.classifier.tuning import Profile, Trial, choose, load_profile, measure, save_profile

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


class Paced(StandIn):
    """A model whose speed and labels are said by its file's name."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        super().__init__(lambda texts: [a_decision("pool" if "Q4_0" not in path.name else "car") for _ in texts])
        self.path, self.options = path, options
        self.weight_format = "BF16"

    def encode(self, _text: str) -> SimpleNamespace:
        return SimpleNamespace(ids=[0] * 100)


@pytest.fixture
def measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Profile | None, list[Trial]]]:
    """`measure` with stand-ins: F16 is twice as fast, calls of 511 tokens 1.5 times, one thread 1.2 times; Q4_0 answers otherwise."""

    def speed(found: Paced) -> float:
        options = found.options
        return (
            (2.0 if "F16" in found.path.name and "BF16" not in found.path.name else 1.0)
            * (1.5 if options.batch_tokens == 511 else 1.0)
            * (1.2 if options.threads == 1 else 1.0)
        )

    monkeypatch.setattr(tuning, "available_cores", lambda: 2)
    monkeypatch.setattr(tuning, "in_format", lambda model, name, *_: model.with_suffix(f".{name}.gguf"))
    monkeypatch.setattr(Classifier, "open", lambda path, options, **_: Paced(path, options))
    monkeypatch.setattr(tuning, "_speed_ratio", lambda new, standing, *_: speed(new) / speed(standing))

    def run(**options: Any) -> tuple[Profile | None, list[Trial]]:
        trials: list[Trial] = []
        texts = [f"query {number}" for number in range(120)]
        return measure(model, "0" * 64, texts, model.parent, base=EngineOptions(), on_trial=trials.append, **options), trials

    return run


def test_tuning_in_full_tries_formats_threads_calls_and_micro_batches_and_keeps_what_is_faster(
    measured: Callable[..., tuple[Profile | None, list[Trial]]],
) -> None:
    profile, trials = measured()
    assert profile == Profile("F16", threads=1, batch_tokens=511, micro_batch_tokens=512)
    assert [trial.what for trial in trials] == [
        *(name for name in FORMATS if name != "BF16"),
        "1 threads", "calls of 127 tokens", "calls of 511 tokens", "calls of 1023 tokens",
        "micro-batches of 128 tokens", "micro-batches of 256 tokens",
    ]  # fmt: skip
    assert [trial.what for trial in trials if trial.chosen] == ["F16", "1 threads", "calls of 511 tokens"]
    (unlike,) = [trial for trial in trials if trial.note]
    assert (unlike.what, unlike.ratio) == ("Q4_0", 0.0)


def test_on_a_gpu_larger_calls_are_tried(
    measured: Callable[..., tuple[Profile | None, list[Trial]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "layers_on_gpu", lambda layers: layers)
    _, trials = measured(n_gpu_layers=-1)
    assert [trial.what for trial in trials if trial.what.startswith("calls")] == [f"calls of {n} tokens" for n in (511, 1023, 4095)]


def test_auto_measures_once_and_keeps_what_it_found(
    model: Path, measured: Callable[..., tuple[Profile | None, list[Trial]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, trials = model.parent / "cache", list[Trial]()
    monkeypatch.setattr(tuning, "_queue", lambda *_: (["query"] * 120, 1))
    path, options = choose(model, "auto", cache, EngineOptions(), on_trial=trials.append)
    assert path.name == "model.F16.gguf"
    assert options == EngineOptions(batch_tokens=255)
    assert [trial.what for trial in trials if trial.chosen] == ["F16"]
    assert load_profile(content_hash(model), cache) == Profile("F16", None, 255, 512)
    assert choose(model, "auto", cache, EngineOptions(), on_trial=lambda _: pytest.fail("measured again")) == (path, options)


def test_a_format_is_not_kept_under_the_hash_of_what_the_file_was_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced_meanwhile(master: Path, _format: str, output: Path) -> None:
        output.write_bytes(master.read_bytes())
        master.write_bytes(b"GGUF, another")

    monkeypatch.setattr(formats, "_quantise", replaced_meanwhile)
    before = content_hash(model)
    with pytest.raises(ModelFileError, match="was replaced while Q8_0 was made of it"):
        formats.in_format(model, "Q8_0", tmp_path / "cache", before)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

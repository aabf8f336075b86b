"""Weight formats made by llama.cpp and chosen by measuring, on the real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support import MODEL_DIRECTORY, command, environment
from trainer.base import Base
from trainer.build import build, read_metadata
from worker.classifier import Classifier, EngineOptions, ModelFileError, tuning
from worker.classifier.formats import in_format
from worker.classifier.model_file import content_hash
from worker.classifier.tuning import Trial
from worker.cli import app


@pytest.fixture
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured in them says little of the machine, and is measured all the same."""
    monkeypatch.setattr(tuning, "_TOKENS_A_ROUND", 200)


@pytest.fixture(scope="module")
def master_hash(model_file: Path) -> str:
    return content_hash(model_file)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def eight_bits(model_file: Path, master_hash: str, cache: Path) -> Path:
    return in_format(model_file, "Q8_0", cache, master_hash)


def test_another_format_keeps_the_metadata_and_nearly_all_answers(eight_bits: Path, household: Classifier, texts: list[str]) -> None:
    classifier = Classifier.open(eight_bits)
    try:
        assert classifier.weight_format == "Q8_0"
        assert classifier.card == household.card
        given = [decision.label for decision in classifier.classify(texts[:100])]
    finally:
        classifier.close()
    expected = [decision.label for decision in household.classify(texts[:100])]
    assert sum(a == b for a, b in zip(given, expected, strict=True)) >= 97


def test_a_format_is_made_once_and_again_if_the_file_was_changed(model_file: Path, master_hash: str, cache: Path, eight_bits: Path) -> None:
    made, right = eight_bits.stat().st_mtime_ns, content_hash(eight_bits)
    assert in_format(model_file, "Q8_0", cache, master_hash) == eight_bits
    assert eight_bits.stat().st_mtime_ns == made
    with eight_bits.open("r+b") as file:
        file.seek(-100, 2)
        file.write(bytes(100))
    assert content_hash(eight_bits) != right
    assert in_format(model_file, "Q8_0", cache, master_hash) == eight_bits
    assert content_hash(eight_bits) == right
    assert not list(cache.rglob("*.partial"))


def test_a_cache_that_cannot_be_written_is_named(model_file: Path, master_hash: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="POINTSMAN_CACHE_DIR"):
        in_format(model_file, "Q8_0", tmp_path / "file", master_hash)


@pytest.mark.usefixtures("short_rounds")
def test_a_format_that_answers_otherwise_is_never_chosen(
    model_file: Path, master_hash: str, cache: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_CLOSE", ("Q8_0",))
    monkeypatch.setattr(tuning, "_WORTH_IT", 0.0)
    trials: list[Trial] = []

    def tuned() -> tuning.Profile | None:
        return tuning.measure(
            model_file, master_hash, texts[:10], cache, base=EngineOptions(), formats_only=True, rounds=1, on_trial=trials.append
        )

    chosen = tuned()
    assert chosen is not None
    assert chosen.weight_format == "Q8_0", "chosen when any speed is worth it"
    assert list(cache.rglob("*.Q8_0.gguf"))
    monkeypatch.setattr(tuning, "LEAST_AGREEMENT", 1.01)
    kept = tuned()
    assert kept is not None
    assert kept.weight_format is None
    assert not list(cache.rglob("*.Q8_0.gguf")), "what is not chosen is not kept"
    assert [trial.chosen for trial in trials] == [True, False]
    assert "unlike the original" in trials[1].note


@pytest.mark.usefixtures("short_rounds")
def test_tune_keeps_a_profile_that_run_and_doctor_use(model_file: Path, tmp_path: Path) -> None:
    queries = tmp_path / "few.jsonl"
    queries.write_text('{"text": "My pool pump is humming", "label": "pool"}\n')
    settings = environment(model=model_file, cache_dir=tmp_path)
    done = CliRunner().invoke(app, ["tune", "--quick", "--json", "--texts", str(queries)], env=settings, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert Path(report["path"]).is_file()
    assert [trial["what"] for trial in report["trials"]] == ["F32", "F16", "Q8_0"], "with one text only what answers nearly alike"
    for trial in report["trials"]:
        assert not trial["chosen"] or trial["agreement"] >= tuning.LEAST_AGREEMENT
    shown = command("doctor", "--json", model=model_file, cache_dir=tmp_path, redis_url="redis://127.0.0.1:1")
    speed = next(finding for finding in json.loads(shown.stdout)["findings"] if finding["what"] == "speed")
    assert speed["detail"].startswith("tuned on this machine")
    shown = command("doctor", "--json", model=model_file, cache_dir=tmp_path, redis_url="redis://127.0.0.1:1", format="original")
    assert "not used: POINTSMAN_FORMAT=original" in shown.stdout.decode()
    answered = command("classify", "Who fixed the sprinkler system in the yard?", "--json", model=model_file, cache_dir=tmp_path)
    assert json.loads(answered.stdout)["label"] == "irrigation"


def test_without_any_query_nothing_is_measured_and_tune_says_so(tmp_path: Path) -> None:
    silent = tmp_path / "silent.gguf"
    metadata = read_metadata(MODEL_DIRECTORY)
    metadata["probes"]["probes"] = []
    build(Base.recorded_in(metadata["training"]).path(), None, metadata, silent)
    done = command("tune", model=silent, cache_dir=tmp_path / "cache")
    assert done.returncode == 1
    assert "has no probes, so give queries with --texts" in done.stderr.decode()
    assert tuning.choose(silent, "auto", tmp_path / "cache", EngineOptions()) == (silent, EngineOptions())


def test_a_start_with_little_patience_tries_no_format_when_its_time_is_up(model_file: Path, master_hash: str, cache: Path) -> None:
    trials: list[Trial] = []
    found = tuning.measure(
        model_file, master_hash, [], cache, base=EngineOptions(), formats_only=True, rounds=1, budget_s=0.0, on_trial=trials.append
    )
    assert found is not None
    assert found.weight_format is None
    assert {trial.note for trial in trials} == {"no time was left for it"}
    assert "F32" not in {trial.what for trial in trials}, "twice as large as the original"


def test_a_format_asked_for_by_name_is_made_and_served(model_file: Path, tmp_path: Path) -> None:
    answered = command(
        "classify", "Who fixed the sprinkler system in the yard?", "--json", model=model_file, cache_dir=tmp_path, format="F16"
    )
    assert answered.returncode == 0, answered.stderr.decode()
    assert json.loads(answered.stdout)["label"] == "irrigation"
    assert [path.name for path in tmp_path.rglob("*.gguf")] == ["household.F16.gguf"]

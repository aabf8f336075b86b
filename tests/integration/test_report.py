"""The command `report` on the real model and a few queries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import DATA, MODEL_DIRECTORY, assert_clear_failure, command
from trainer import baseline, figures
from trainer.dataset import DataError, Example, load_examples
from worker.classifier import Classifier

FEW = 24


def spread(examples: list[Example], number: int, start: int) -> list[Example]:
    return examples[start :: len(examples) // number][:number]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries of all labels, and beside them others to learn from."""
    directory = tmp_path_factory.mktemp("few")
    examples = load_examples(DATA)
    for name, number, start in (("few", FEW, 0), ("train", 600, 7)):
        lines = [json.dumps({"input": example.text, "output": example.label}) for example in spread(examples, number, start)]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def test_what_is_measured_is_kept_and_shown_again_without_measuring(model_file: Path, few: Path, household: Classifier) -> None:
    output = few / "out"
    measured = command(
        "report", MODEL_DIRECTORY, "--data", few / "few.jsonl", "--peers", "--train", few / "train.jsonl", "--output", output,
        module="trainer",
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr.decode()
    record = json.loads((output / "report.json").read_text(encoding="utf-8"))
    examples = load_examples(few / "few.jsonl")
    decisions = household.classify([example.text for example in examples])
    right = sum(decision.label == example.label for decision, example in zip(decisions, examples, strict=True))
    assert record["evaluation"]["accuracy"] == pytest.approx(right / FEW, abs=1e-4)
    assert record["data"]["n"] == record["evaluation"]["n"] == sum(row["n"] for row in record["evaluation"]["reliability"]) == FEW
    assert 0 < record["yardsticks"]["taught"] <= 600
    assert record["yardsticks"]["majority"]["accuracy"] < record["yardsticks"]["tfidf_svm"]["accuracy"]
    page, card = (output / "report.html").read_bytes(), (output / "card.md").read_bytes()
    assert b"TF-IDF" in page
    for text in (example.text for example in examples):
        assert text.encode() not in page + card, "query text is personal data"

    again = command("report", model_file, "--output", output, module="trainer")
    assert again.returncode == 0, again.stderr.decode()
    assert (output / "report.html").read_bytes() == page, "the GGUF says of itself what its directory says"
    assert json.loads((output / "report.json").read_text(encoding="utf-8")) == record


def test_formats_are_measured_against_the_file_as_it_is(model_file: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FORMATS", ("BF16", "Q8_0"))
    examples = load_examples(few / "few.jsonl")[:4]
    found = figures._weight_formats(model_file, examples, lambda _: None)
    assert found["n"] == 4
    assert [row["format"] for row in found["rows"]] == ["BF16", "Q8_0"]
    assert found["rows"][0]["agreement"] == 1.0
    assert found["rows"][1]["agreement"] >= 0.75
    assert found["rows"][1]["megabytes"] < found["rows"][0]["megabytes"]
    assert all(row["tokens_per_s"] > 0 and row["to_original"] > 0 for row in found["rows"])


def test_the_untuned_base_is_asked_about_a_spread_of_the_queries(model_file: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Example]] = []

    def ask(_card: Any, base: Path, examples: list[Example], _advance: Any) -> dict[str, Any]:
        asked.append(examples)
        return {"n": len(examples), "base": base.name}

    monkeypatch.setattr(baseline, "baseline", ask)
    examples = load_examples(few / "few.jsonl")
    version = figures.read_metadata(model_file)["training"]["version"]
    parts: Iterator[dict[str, Any]] = figures.measure(model_file, version, examples[:6], lambda _: None, baseline=(Path("base.gguf"), 3))
    assert [list(part) for part in parts] == [["time", "evaluation"], ["baseline"]]
    assert asked == [examples[:6:2]]


def test_a_gguf_of_another_version_than_its_directory_is_not_measured(model_file: Path, few: Path) -> None:
    with pytest.raises(DataError, match="python -m trainer build"):
        next(figures.measure(model_file, "another", load_examples(few / "few.jsonl"), lambda _: None))


def test_there_is_nothing_to_compare_with_without_data(model_file: Path, tmp_path: Path) -> None:
    assert_clear_failure(
        command("report", MODEL_DIRECTORY, "--peers", "--output", tmp_path, module="trainer"), "give --data FILE", exit_code=1
    )

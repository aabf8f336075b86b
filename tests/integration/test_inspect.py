"""The command `inspect` on files, with the base model's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import assert_clear_failure, command
from trainer.dataset import load_rows

PUMP, GATE = "The pool pump hums loudly at night", "My gate sticks whenever it rains"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [(PUMP, "pool"), (PUMP, "pool"), (GATE, "fence"), ("word " * 200, "pool"), ("Paint the boards", "fence")]
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"input": GATE.upper(), "output": "fence"}))
    return path


def test_the_json_report_names_every_row_and_the_cleaned_file_lacks_those_it_says(data: Path, held_out: Path) -> None:
    clean = data.with_name("clean.csv")
    done = command("inspect", data, "--against", held_out, "--clean", clean, "--json", module="trainer")
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert (found["rows"], found["labels"]) == (5, {"pool": 3, "fence": 2})
    assert [(pair["left"]["row"], pair["right"]["row"]) for pair in found["copies"]["duplicates"]] == [(2, 3)]
    assert [(pair["left"]["row"], pair["right"]["file"]) for pair in found["copies"]["leaks"]] == [(4, str(held_out))]
    assert found["tokens"]["longest_row"] == 5
    assert found["tokens"]["longest"] >= 200
    assert found["tokens"]["cut"] == [5]
    assert [row["place"]["row"] for row in found["dropped"]] == [3, 4]
    assert [row.example.text for row in load_rows(clean)] == [PUMP, "word " * 200, "Paint the boards"]


def test_a_person_reads_rows_and_reasons_and_the_input_stays(data: Path, model_file: Path) -> None:
    before = data.read_bytes()
    done = command("inspect", data, "--clean", data.with_name("clean.json"), "--model", model_file, module="trainer")
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    for words in ("5 rows, 2 labels", "tokens of household.gguf", f"row 2 = row 3: pool: {PUMP}", f"row 3 repeats row 2: {PUMP}"):
        assert words in text
    assert data.read_bytes() == before
    assert len(json.loads(data.with_name("clean.json").read_text())) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.csv"], ("cannot read", "none.csv")),
        (["data.csv", "--clean", "data.csv"], ("data.csv is among the files that are read",)),
        (["data.csv", "--model", "data.csv"], ("is not a GGUF file",)),
        (["data.csv", "--against", "hf:nowhere"], ("hf:nowhere names no data set",)),
    ],
)
def test_what_cannot_be_inspected_is_one_clear_line(arguments: list[str], words: tuple[str, ...], data: Path) -> None:
    placed = [str(data.with_name(argument)) if argument.endswith(".csv") else argument for argument in arguments]
    assert_clear_failure(command("inspect", *placed, module="trainer"), *words, exit_code=1)

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset import DataError, Example, load_examples, write_fields
from trainer.harvest import Correction, Unusable, load_rows, merge, parse

LABELS = ("pool", "car")
GOOD = {b"id": b"42", b"text": b"My pump hums", b"label": b"pool"}


def parsed(fields: dict[bytes, bytes], stream_id: str = "1700000000000-0") -> Correction | Unusable:
    return parse(stream_id, fields, LABELS, max_text_bytes=100)


def correction(number: int, name: str = "42", label: str = "pool") -> Correction:
    return Correction(f"17000000000{number:02}-0", name, f"text {number}", label)


def test_a_correction_becomes_a_row_with_where_it_is_from() -> None:
    found = parsed(GOOD | {b"reviewer": b"ann"})
    assert isinstance(found, Correction)
    assert found.row == {
        "instruction": "",
        "input": "My pump hums",
        "output": "pool",
        "source": "correction",
        "id": "42",
        "stream_id": "1700000000000-0",
        "time": "2023-11-14T22:13:20+00:00",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({b"label": b"My pump hums"}, "label is none of the model's 2"),
        ({b"label": b"Pool"}, "label is none of the model's 2"),
        ({b"text": b" \n"}, "text is empty"),
        ({b"id": b""}, "id is empty"),
        ({b"text": b"caf\xe9"}, "text is not UTF-8"),
        ({b"text": b"x" * 101}, "text has 101 bytes, more than 100"),
        ({b"id": b"x" * 513}, "id has 513 bytes, more than 512"),
    ],
)
def test_what_cannot_be_learnt_from_is_told_with_its_reason(change: dict[bytes, bytes], reason: str) -> None:
    found = parsed(GOOD | change)
    assert isinstance(found, Unusable)
    assert found.reason == reason


@pytest.mark.parametrize("name", ["id", "text", "label"])
def test_a_missing_field_is_named(name: str) -> None:
    found = parsed({key: value for key, value in GOOD.items() if key != name.encode()})
    assert isinstance(found, Unusable)
    assert found.reason == f"there is no field {name}"


def test_an_entry_whose_stream_id_is_no_time_is_unusable() -> None:
    found = parsed(GOOD, "18446744073709551615-1")
    assert isinstance(found, Unusable)
    assert found.reason == "its id in the stream is no time"


def test_without_a_model_any_label_is_taken() -> None:
    assert isinstance(parse("1-1", GOOD | {b"label": b"boat"}, None, 100), Correction)


@given(st.dictionaries(st.sampled_from([b"id", b"text", b"label", b"other"]), st.binary(max_size=120)))
def test_any_entry_is_parsed_and_the_reason_never_holds_the_text(fields: dict[bytes, bytes]) -> None:
    found = parsed({b"text": b"secret words", b"label": b"secret label"} | fields)
    if isinstance(found, Unusable):
        assert "secret" not in found.reason
    else:
        assert found.label in LABELS


def test_the_last_correction_of_an_id_wins() -> None:
    rows, changes = merge([], [correction(1), correction(2, "43"), correction(3, label="car")])
    assert changes == ["new", "new", "changed"]
    assert [(row["id"], row["output"], row["input"]) for row in rows] == [("42", "car", "text 3"), ("43", "pool", "text 2")]


def test_an_older_correction_than_what_is_in_the_file_changes_nothing() -> None:
    rows, _ = merge([], [correction(3)])
    assert merge(rows, [correction(1), correction(3)]) == (rows, ["known", "known"])


def test_stream_ids_are_compared_as_numbers() -> None:
    early, late = Correction("1700000000000-9", "42", "a", "pool"), Correction("1700000000000-10", "42", "b", "car")
    rows, _ = merge([], [early])
    assert merge(rows, [late])[1] == ["changed"]


def test_rows_that_are_no_corrections_stay() -> None:
    mine = [{"input": "by hand", "output": "car", "id": "42"}]
    rows, changes = merge(mine, [correction(1)])
    assert changes == ["new"]
    assert rows[:1] == mine


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from("abc"), st.sampled_from(LABELS)), unique_by=lambda row: row[0]))
def test_harvesting_again_changes_nothing(entries: list[tuple[int, str, str]]) -> None:
    corrections = [correction(*entry) for entry in sorted(entries)]
    once, _ = merge([], corrections)
    again, changes = merge(once, corrections)
    assert again == once
    assert set(changes) <= {"known"}


def test_the_file_is_data_to_train_on(tmp_path: Path) -> None:
    path = tmp_path / "corrections.json"
    rows, _ = merge([], [correction(1), correction(2, "ü")])
    write_fields(rows, path)
    assert load_examples(path) == [Example("text 1", "pool"), Example("text 2", "pool")]
    assert load_rows(path) == rows
    assert "ü" in path.read_text(encoding="utf-8")


def test_a_file_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert load_rows(tmp_path / "none.json") == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"input": "a"}\n{"input": "b"}', "it must be a JSON array"),
        ('{"input": "a"}', "is not a JSON array of objects"),
        ('["a"]', "is not a JSON array of objects"),
        (json.dumps([{"source": "correction", "id": "1", "stream_id": "now"}]), "row 1 is a correction without its id and stream_id"),
    ],
)
def test_a_file_that_cannot_be_added_to_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        load_rows(path)


def test_a_name_that_promises_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must end in \.json"):
        load_rows(tmp_path / "corrections.csv")

"""What an inspection finds in made-up data, and what a cleaned file does without."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from trainer.dataset import DataError, Example, Row, check_target, load_rows, write_rows
from trainer.inspection import Copies, Inspection, Suspicion, Tokens, clean, find_copies, inspect, suspicious_labels
from trainer.inspection_report import show, show_dropped

WORDS = {
    "pool": "pump filter chlorine skimmer swim water heater tiles",
    "car": "engine tyre oil clutch brake mileage garage bonnet",
    "fence": "gate post latch picket hinge panel stain boards",
}


def rows_of(*pairs: tuple[str, str]) -> list[Row]:
    """Rows of (text, label), counted from 1."""
    return [Row(number, Example(text, label), {"input": text, "output": label}) for number, (text, label) in enumerate(pairs, start=1)]


def made_up(per_label: int = 30) -> list[Row]:
    dice = random.Random(0)
    return rows_of(*((" ".join(dice.sample(some.split(), 4)), label) for label, some in WORDS.items() for _ in range(per_label)))


def found_of(copies: Copies, labels: dict[str, int], suspicious: list[Suspicion] | None = None) -> Inspection:
    return Inspection(sum(labels.values()), labels, copies, Tokens("a.gguf", 128, 9.0, 20.0, 200, 3, [3, 4]), suspicious or [])


def numbers(pairs: list[object]) -> list[tuple[int, int]]:
    return [(pair.left.row, pair.right.row) for pair in pairs]  # type: ignore[attr-defined]


def printed(found: Inspection) -> str:
    out = io.StringIO()
    show(Console(file=out), "data.json", found)
    return out.getvalue()


PUMP, GATE = "The pool pump hums loudly at night", "My gate sticks whenever it rains"


def test_texts_that_differ_in_case_and_white_space_are_duplicates() -> None:
    copies = find_copies(rows_of((PUMP, "pool"), (GATE, "fence"), (f" {PUMP.upper()}\n", "pool"), (PUMP.replace(" ", "  "), "pool")), {})
    assert numbers([*copies.duplicates]) == [(1, 3), (1, 4)]
    assert copies.near_duplicates == copies.contradictions == copies.leaks == []


def test_the_same_text_under_two_labels_is_a_contradiction_and_under_one_a_duplicate() -> None:
    copies = find_copies(rows_of((PUMP, "pool"), (PUMP, "car"), (PUMP.lower(), "car")), {})
    assert numbers([*copies.contradictions]) == [(1, 2)]
    assert [pair.exact for pair in copies.contradictions] == [True]
    assert numbers([*copies.duplicates]) == [(2, 3)]


def test_nearly_the_same_text_is_a_near_duplicate_or_a_contradiction_by_its_label() -> None:
    near = "The pool pump hums so loudly at night"
    copies = find_copies(rows_of((PUMP, "pool"), (near, "pool"), (GATE, "fence"), (GATE + " hard", "car")), {})
    assert numbers([*copies.near_duplicates]) == [(1, 2)]
    assert numbers([*copies.contradictions]) == [(3, 4)]
    assert [pair.exact for pair in copies.near_duplicates + copies.contradictions] == [False, False]
    assert copies.duplicates == []


def test_rows_that_another_file_holds_are_leaks_with_all_their_copies() -> None:
    data = rows_of((PUMP, "pool"), (GATE, "fence"), (PUMP.lower(), "pool"), ("Change the oil of the van", "car"))
    test = rows_of(("Something else entirely", "car"), (PUMP, "pool"), (GATE + " hard", "car"), (GATE + " hard!", "car"))
    copies = find_copies(data, {"test.json": test})
    assert [(pair.left.row, pair.right.file, pair.right.row, pair.exact) for pair in copies.leaks] == [
        (1, "test.json", 2, True),
        (2, "test.json", 3, False),
        (3, "test.json", 2, True),
    ]
    assert copies.near_duplicates == [], "what the other file repeats itself is its own affair"


def test_wrong_labels_are_found_and_right_ones_are_not() -> None:
    rows = made_up()
    wrong = {5: "car", 40: "fence", 77: "pool"}
    noisy = [Row(row.number, Example(row.example.text, wrong.get(row.number, row.example.label)), {}) for row in rows]
    found = suspicious_labels(noisy)
    assert {doubt.place.row: doubt.suggested for doubt in found} == {number: rows[number - 1].example.label for number in wrong}
    leads = [doubt.suggested_probability - doubt.probability for doubt in found]
    assert leads == sorted(leads, reverse=True)
    assert suspicious_labels(noisy) == found, "the folds are seeded"


def test_labels_with_too_few_rows_are_not_judged() -> None:
    rows = made_up()
    alone = Row(91, Example(rows[0].example.text, "boat"), {})
    assert suspicious_labels([*rows, alone]) == []
    assert suspicious_labels(rows_of((PUMP, "pool"), (GATE, "fence"))) == []


def test_data_with_one_label_cannot_be_trained_on() -> None:
    with pytest.raises(DataError, match="all rows have the label 'pool': a router needs at least two"):
        inspect(rows_of((PUMP, "pool"), (GATE, "pool")), {}, Path("none.gguf"), 128, lambda _: None)


def test_cleaning_drops_leaks_copies_and_outvoted_labels_and_says_why() -> None:
    rows = rows_of(
        (PUMP, "pool"), (PUMP, "pool"), (PUMP, "car"),
        (GATE, "fence"), (GATE, "car"),
        ("Change the oil of the van", "car"), ("Change the oil of the vans", "fence"), ("Change the oil of the van!", "car"),
        ("A test question about chlorine", "pool"), ("A test question about the brake pads", "car"),
    )  # fmt: skip
    test = rows_of(("a test question about chlorine", "pool"), ("A test question about the brake pad", "car"))
    kept, dropped = clean(rows, find_copies(rows, {"test.json": test}))
    assert [row.number for row in kept] == [1, 6, 7, 8], "near-duplicates and near-contradictions stay"
    assert {row.place.row: row.reason for row in dropped} == {
        2: "repeats row 1",
        3: "the same text is more often pool",
        4: "the same text is as often fence as car",
        5: "the same text is as often fence as car",
        9: "repeats test.json row 1",
        10: "nearly repeats test.json row 2",
    }


def test_a_cleaned_file_has_nothing_left_to_clean() -> None:
    dice = random.Random(1)
    texts = [PUMP, GATE, PUMP + "!", GATE.upper(), "Change the oil of the van", "Which paint for the boards?"]
    for _ in range(50):
        rows = rows_of(*((dice.choice(texts), dice.choice(["pool", "car"])) for _ in range(12)))
        test = rows_of((dice.choice(texts), "pool"))
        kept, dropped = clean(rows, find_copies(rows, {"t": test}))
        assert sorted([row.number for row in kept] + [row.place.row for row in dropped]) == list(range(1, 13))
        copies = find_copies(kept, {"t": test})
        assert copies.duplicates == copies.leaks == []
        assert [pair for pair in copies.contradictions if pair.exact] == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "d.json",
            '[\n{"instruction": "Sort.", "input": "my pööl", "output": "pool", "id": 7},\n{"input": "b", "output": "\\ud83c\\udfca"}\n]\n',
        ),
        ("d.jsonl", '{"instruction": "Sort.", "input": "my pool", "output": "pool", "other": "\\ud800"}\n{"input": "b", "output": "c"}\n'),
        ("d.csv", 'id,label,text\r\n7,pool,"my ""pool""\r\nand yours"\r\n8,car,b\r\n'),
    ],
)
def test_a_written_file_holds_all_that_stood_in_the_rows(name: str, content: str, tmp_path: Path) -> None:
    path, again = tmp_path / name, tmp_path / f"again-{name}"
    path.write_bytes(content.encode())
    rows = load_rows(path)
    write_rows(rows, again)
    assert load_rows(again) == rows
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
@pytest.mark.parametrize("fields", [{"text": "my pool", "label": "pool", "id": 1}, {"input": "my pool", "output": "pool", "id": 1}])
def test_a_row_is_written_to_another_kind_of_file_too(name: str, fields: dict[str, object], tmp_path: Path) -> None:
    write_rows([Row(1, Example("my pool", "pool"), fields)], tmp_path / name)
    assert [row.example for row in load_rows(tmp_path / name)] == [Example("my pool", "pool")]


def test_what_is_read_is_never_written_over(tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text("[]")
    (tmp_path / "link.json").symlink_to(data)
    for target in (data, tmp_path / "link.json", tmp_path / "." / "data.json"):
        with pytest.raises(DataError, match="is among the files that are read"):
            check_target(target, [Path("hf:owner/name"), data])
    check_target(tmp_path / "clean.json", [data])


@pytest.mark.parametrize(
    ("name", "complaint"), [("clean.txt", "end it in .json, .jsonl or .csv"), ("none/clean.csv", "there is no directory")]
)
def test_a_target_that_cannot_be_written_is_refused(name: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=complaint):
        check_target(tmp_path / name, [])


def test_no_row_left_is_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row is left to write"):
        write_rows([], tmp_path / "clean.json")
    assert list(tmp_path.iterdir()) == []


def test_the_report_counts_everything_and_shows_the_first_rows() -> None:
    rows = rows_of(*((f"{PUMP} {'x' * 30 * number}", "pool") for number in range(1, 9) for _ in range(2)), (PUMP, "car"))
    doubt = Suspicion(find_copies(rows_of((GATE, "car"), (GATE, "car")), {}).duplicates[0].right, 0.01, "fence", 0.98)
    text = printed(found_of(find_copies(rows, {}), {"pool": 100, "car": 20}, [doubt]))
    assert "data.json: 120 rows, 2 labels" in text
    assert "balance   pool 100 rows, car 20: 5.0 to 1" in text
    assert "1 of 2 labels have fewer than 50: car 20" in text
    assert "median 9 tokens of a.gguf, p95 20, longest 200 (row 3); cut at 128: 2 (row 3, 4)" in text
    assert "rows that repeat an earlier one: 8\n" in text
    assert text.count(" = row ") == 5
    assert "row 2: fence 98% rather than car 1%: My gate sticks" in text


def test_control_characters_of_a_text_do_not_reach_the_terminal() -> None:
    evil = "\x1b[2Jgone\x07 [bold]my\u2028pool[/]"
    text = printed(found_of(find_copies(rows_of((evil, "pool"), (evil, "pool")), {}), {"pool": 2, "car": 1}))
    assert "\ufffd[2Jgone\ufffd [bold]my pool[/]" in text
    assert "\x1b" not in text


def test_dropped_rows_are_counted_by_reason_and_the_first_of_each_are_shown() -> None:
    rows = rows_of(*((PUMP, "pool") for _ in range(40)), (GATE, "fence"))
    kept, dropped = clean(rows, find_copies(rows, {"test.json": rows_of((GATE, "fence"))}))
    out = io.StringIO()
    show_dropped(Console(file=out), "clean.json", len(kept), dropped)
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["clean.json: 1 rows; dropped: 40", "dropped, duplicate: 39"]
    assert lines[6:] == [f"  row 6 repeats row 1: {PUMP}", "dropped, leak: 1", f"  row 41 repeats test.json row 1: {GATE}"]


def test_the_json_form_holds_everything() -> None:
    found = found_of(find_copies(rows_of((PUMP, "pool"), (PUMP, "car")), {}), {"pool": 60, "car": 40})
    value = json.loads(json.dumps(found.as_dict()))
    assert (value["rows"], value["imbalance"], value["few"]) == (100, 1.5, {"car": 40})
    assert value["copies"]["contradictions"][0]["right"] == {"file": None, "row": 2, "text": PUMP, "label": "car"}
    assert value["tokens"]["cut"] == [3, 4]

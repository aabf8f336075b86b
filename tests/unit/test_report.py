"""The report's page and the model card, rendered from records."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.support import MODEL_DIRECTORY
from trainer import build, card, figures, plots, report
from trainer.build import read_metadata
from trainer.dataset import DataError, Example

NOT_RECORDED = "not recorded"
MODEL = Path("models/household")


def made_up(n_labels: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and a record in which everything was measured; all figures are different."""
    names = [f"label {number}" for number in range(n_labels - 1)] + ["other"]
    evaluation = {
        "n": 1234,
        "accuracy": 0.9123,
        "macro_f1": 0.8765,
        "ece": 0.0123,
        "reviewed": 0.2345,
        "routed_accuracy": 0.9876,
        "out_of_scope_recall": 0.8642,
        "per_label": {name: {"precision": 0.75, "recall": 0.8, "f1": 0.7742, "n": 50.0} for name in names},
        "confusions": [{"label": a, "given": b, "count": 3 + i % 4} for i, (a, b) in enumerate(itertools.pairwise(names))],
        "routing": [
            {
                "label": None,
                "threshold": None,
                "answers": 1188,
                "routed": 945,
                "coverage": 0.7955,
                "precision": 0.9876,
                "least_precision": 0.9798,
            },
            {
                "label": names[0],
                "threshold": 0.6123,
                "answers": 52,
                "routed": 47,
                "coverage": 0.9038,
                "precision": 0.9362,
                "least_precision": 0.8421,
            },
            {"label": names[1], "threshold": 1.0, "answers": 49, "routed": 0, "coverage": 0.0},
        ],
        "reliability": [{"low": 0.8, "high": 0.9, "n": 61, "confidence": 0.8531, "accuracy": 0.8197}],
        "risk_coverage": {"aurc": 0.01357, "points": [{"coverage": 0.4321, "error": 0.0111, "threshold": 0.9511}]},
        "out_of_scope_detection": {"threshold": 0.4567, "recall": 0.7531, "false_alarms": 0.0468},
    }
    metadata = {
        "labels": {
            "labels": [{"name": name, "description": "this | that", "code": f" {name}"} for name in names],
            "out_of_scope": "other",
        },
        "prompt": {"prefix": "<|begin|>", "suffix": " Topic"},
        "calibration": {"temperature": 0.77, "threshold": 0.6123, "thresholds": {names[1]: 1.0}},
        "evaluation": {"test": evaluation},
        "training": {
            "name": "made-up",
            "version": "0123456789ab",
            "base": "Some-Base-1M",
            "base_licence": "Apache-2.0",
            "recipe": {"split": {"seed": 7}, "training": {"epochs": 3, "learning_rate": 0.001}, "review": {"precision": 0.98}},
            "data_sha256": {"train": "aa11", "validation": "bb22", "test": "cc33"},
            "data_rows": {"train": 9876, "validation": 321, "test": 1234},
            "steps": 2136,
            "losses": [[10, 2.5], [20, 1.5]],
            "eval_losses": [[20, 1.75]],
            "versions": {"torch": "9.9"},
            "time": "2026-01-02T03:04:05+00:00",
            "minutes": 71.1,
        },
    }
    asked = {"right": 3, "accuracy": 0.0732, "macro_f1": 0.0417, "preamble": 17, "invented": 21}
    record = {
        "version": "0123456789ab",
        "data": {"file": "made-up.json", "split": "test", "n": 1234, "sha256": "dd44"},
        "time": "2026-02-03T04:05:06+00:00",
        "evaluation": evaluation,
        "yardsticks": {
            "taught": 8888,
            "majority": {"label": "other", "accuracy": 0.0765, "macro_f1": 0.0075},
            "tfidf_svm": {"accuracy": 0.8511, "macro_f1": 0.8432},
        },
        "baseline": {
            "n": 41,
            "base": "Some-Base-1M",
            "free": asked | {"most_used": {"label": "(invented)", "share": 0.5122}},
            "constrained": asked | {"accuracy": 0.0976, "preamble": 0, "invented": 0, "most_used": {"label": "other", "share": 0.6341}},
        },
        "formats": {
            "n": 64,
            "cpu": "a CPU",
            "cores": 2,
            "rows": [
                {
                    "format": "BF16", "megabytes": 270, "accuracy": 0.9531, "agreement": 1.0, "tokens_per_s": 1234, "to_original": 1.0,
                },
                {"format": "Q4_K_M"},
            ],
        },
    }  # fmt: skip
    return metadata, record


def tables(page: str) -> Iterator[str]:
    """The text of every cell in the page's tables."""
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        for cell in re.findall(r"<td[^>]*>(.*?)</td>", table, re.DOTALL):
            yield unescape(re.sub(r"<[^>]+>", "", cell))


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers_in(part)
    elif isinstance(value, (int, float)):
        yield float(value)


def written(number: float) -> set[str]:
    """The ways in which a recorded number may stand in a table."""
    plain = {f"{number:,.0f}", str(number), *(f"{number:.{places}f}" for places in range(1, 6))}
    return plain | {f"{100 * number:.{places}f} %" for places in (1, 2)}


def test_every_number_in_the_tables_was_recorded() -> None:
    metadata, record = made_up()
    allowed = {text for number in numbers_in([metadata, record]) for text in written(number)}
    cells = [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in tables(report.render(metadata, record))]
    figures_shown = [cell for cell in cells if re.fullmatch(r"[\d.,]+( %)?", cell)]
    assert len(figures_shown) > 40
    assert [cell for cell in figures_shown if cell not in allowed] == []


@pytest.mark.parametrize("n_labels", [2, 19, 151])
def test_the_page_needs_nothing_from_elsewhere(n_labels: int) -> None:
    page = report.render(*made_up(n_labels))
    assert not re.search(r"<(script|link|iframe|img|image)\b|@import|@font-face", page)
    assert [target for target in re.findall(r'(?:src|href)="([^"]*)"', page) if not target.startswith("#")] == []
    assert [target for target in re.findall(r"url\(([^)]*)\)", page) if not target.startswith("#")] == []
    assert page.count("<svg") == page.count("</svg>") == 5


def test_no_two_things_on_the_page_have_the_same_id_and_every_reference_finds_its_own() -> None:
    page = report.render(*made_up(19))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_the_same_record_gives_the_same_page() -> None:
    assert report.render(*made_up()) == report.render(*made_up())


def test_the_page_shows_the_failures_of_the_untuned_base_by_kind() -> None:
    cells = list(tables(report.render(*made_up())))
    row = cells.index("untuned, answering freely")
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in cells[row + 1 : row + 7]] == [
        "41", "7.3 %", "0.042", "17", "21", "(invented), 51.2 %",
    ]  # fmt: skip


def test_the_page_and_the_card_show_what_is_routed_of_each_label_with_its_bound() -> None:
    metadata, record = made_up()
    cells = [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in tables(report.render(metadata, record))]
    start = cells.index("all labels")
    assert cells[start : start + 21] == [
        *("all labels", "", "1,188", "945", "79.5 %", "98.8 %", "98.0 %"),
        *("label 0", "61.2 %", "52", "47", "90.4 %", "93.6 %", "84.2 %"),
        *("label 1", "never routed", "49", "0", "0.0 %", "", ""),
    ]
    text = card.render(metadata, record, MODEL).replace("\N{NO-BREAK SPACE}", " ")
    assert "Least sure of what is routed: label 0 (93.6 % of 47 right, at 95 % confidence at least 84.2 %)" in text
    assert "Guaranteed" not in text


def test_the_page_and_the_card_tell_the_offset_the_share_and_what_was_resolved() -> None:
    metadata, record = made_up()
    metadata["calibration"]["offsets"] = {"other": 3.6037}
    metadata["training"] |= {"base_sha256": "b" * 64, "continues": "0123456789ab", "files": {"data": ["mine.csv"]}}
    metadata["training"]["recipe"] |= {
        "review": {"precision": 0.98, "out_of_scope_share": 0.2}, "gate": {"alpha": 0.05, "least_accuracy": None}, "repeat": {"other": 10},
    }  # fmt: skip
    page = report.render(metadata, record)
    told = ("3.6037", "b" * 64, "0123456789ab", "mine.csv", "out of scope share 0.2", "alpha 0.05, least accuracy none", "other 10")
    assert [each for each in told if each not in page] == []
    text = card.render(metadata, record, MODEL).replace("\N{NO-BREAK SPACE}", " ")
    assert "offset of other 3.6037" in text
    assert "with 20.0 % of the queries to come out of scope" in text


def test_a_guarantee_is_told_with_its_condition() -> None:
    metadata, record = made_up()
    rows = [
        {"label": None, "threshold": 0.61, "answers": 700, "routed": 600, "wrong": 3, "least_precision": 0.9816},
        {"label": "label 0", "threshold": 1.0, "answers": 52, "routed": 0, "wrong": 0, "least_precision": None},
    ]
    metadata["calibration"] |= {"thresholds": {"label 0": 1.0}, "guarantee": {"precision": 0.98, "confidence": 0.9, "tests": rows}}
    cells = list(tables(report.render(metadata, record)))
    assert cells[cells.index("all others together") + 4] == "3"
    text = card.render(metadata, record, MODEL).replace("\N{NO-BREAK SPACE}", " ")
    assert "were (which had a say in when training stopped and which weights were taken, so it is a little less than certain): what" in text
    assert "while queries are drawn as those of the validation part were" in text
    metadata["training"] |= {
        "data_sha256": {"train": "of the training part", "validation": "of the validation part"},
        "data_rows": {"train": 10, "validation": 5},
    }
    for digest, seen, exact in (
        ("of the validation part", {}, False),
        ("of others", {"of_validation": 1}, False),
        ("of others", {}, True),
        ("of others", {"of_validation": 0}, True),
    ):
        metadata["training"]["calibrated"] = {"time": "2026-01-01", "rows": 1052, "sha256": digest} | seen
        assert ("had a say" not in card.render(metadata, record, MODEL)) == exact
        assert ("had a say" not in report.render(metadata, record)) == exact
    text = card.render(metadata, record, MODEL).replace("\N{NO-BREAK SPACE}", " ")
    assert "drawn as the 1,052 queries of its last calibration were: what is routed is right with at least 98.0 %" in text
    assert "The guarantee, from the 1,052 queries of its last calibration" in report.render(metadata, record)
    assert "of label 0 each by itself, of the others together" in text


def test_a_label_cannot_bring_markup_into_the_page() -> None:
    metadata, record = made_up()
    text = json.dumps([metadata, record]).replace("label 0", "<b onload=x>")
    page = report.render(*json.loads(text))
    assert "<b onload" not in page


def test_of_many_labels_the_most_confused_are_shown_in_their_own_order() -> None:
    names = [f"label {number}" for number in range(151)]
    pairs = [{"label": names[number], "given": names[number + 1], "count": number} for number in range(0, 150, 2)]
    kept = plots.most_confused(names, pairs)
    assert kept == names[150 - plots.MOST_LABELS : 150]
    assert plots.most_confused(names[:5], [{"label": names[0], "given": names[4], "count": 1}]) == names[:5]


def test_what_older_training_did_not_record_is_said_to_be_not_recorded() -> None:
    metadata, _ = made_up()
    for key in ("reliability", "risk_coverage", "out_of_scope_detection"):
        del metadata["evaluation"]["test"][key]
    metadata["training"] = {name: metadata["training"][name] for name in ("name", "version", "base")} | {"data_sha256": "ee55"}
    page, text = report.render(metadata, {}), card.render(metadata, {}, MODEL)
    for what in ("Reliability, and errors by coverage", "Weight formats", "The untuned base, prompted", "Losses"):
        assert f"{what}: {NOT_RECORDED}" in page
    assert "91.2\N{NO-BREAK SPACE}%" in page
    assert "91.2\N{NO-BREAK SPACE}%" in text
    assert f"surest first: {NOT_RECORDED}" in text
    assert "ee55" in text


def test_a_model_that_was_never_evaluated_has_a_page_and_a_card() -> None:
    metadata, _ = made_up()
    metadata["evaluation"] = {}
    assert f"How good the model is: {NOT_RECORDED}" in report.render(metadata, {})
    assert NOT_RECORDED in card.render(metadata, {}, MODEL)


def test_a_model_without_out_of_scope_queries_is_not_said_to_lack_a_record() -> None:
    metadata, record = made_up()
    for name in ("out_of_scope_recall", "risk_coverage", "out_of_scope_detection"):
        record["evaluation"][name] = None
    metadata["labels"]["out_of_scope"] = None
    text = card.render(metadata, record, MODEL)
    assert "5 % false alarms, by one threshold on the highest in-scope probability: no such queries" in text
    assert NOT_RECORDED not in text + report.render(metadata, record).replace(f"<td>{NOT_RECORDED}</td>", "")


def test_the_card_tells_labels_licence_data_and_figures() -> None:
    text = card.render(*made_up(), MODEL)
    words = (
        "Apache-2.0",
        "cc33",
        "9,876",
        "this \\| that",
        "learning rate 0.001",
        "0.01357",
        "75.3\N{NO-BREAK SPACE}%",
        "85.1\N{NO-BREAK SPACE}%",
    )
    assert [word for word in words if word not in text] == []
    assert NOT_RECORDED not in text


def test_the_household_card_is_what_is_recorded() -> None:
    metadata = read_metadata(MODEL_DIRECTORY)
    record = figures.read_record(MODEL_DIRECTORY, metadata["training"]["version"])
    committed = (MODEL_DIRECTORY / card.CARD_FILE).read_text(encoding="utf-8")
    assert card.render(metadata, record, MODEL) == committed, "run `python -m trainer report models/household`"


def test_a_model_that_routes_nothing_has_a_page_and_a_card() -> None:
    metadata, record = made_up()
    record["evaluation"] |= {"reviewed": 1.0, "routed_accuracy": None}
    page, text = report.render(metadata, record), card.render(metadata, record, MODEL)
    assert "at the model's threshold" not in page
    assert "| 100.0\N{NO-BREAK SPACE}% | no such queries |" in text


def test_the_card_says_how_to_build_the_model_where_it_is() -> None:
    metadata, record = made_up()
    text = card.render(metadata, record, Path("somewhere/by-name"))
    assert "trainer build somewhere/by-name\n" in text
    assert "POINTSMAN_MODEL=somewhere/by-name.gguf " in text


def test_a_record_is_kept_for_the_same_model_and_queries_alone(tmp_path: Path) -> None:
    examples = [Example("My pool pump is humming", "pool")]
    record = figures.record_for(examples, Path("somewhere/a.json"), "all", "v1", {}) | {"evaluation": {"n": 1}}
    assert "somewhere" not in json.dumps(record)
    figures.write_record(tmp_path, record)
    assert figures.read_record(tmp_path, "v1") == record
    assert figures.read_record(tmp_path, "v2") == {}
    assert figures.record_for(examples, Path("elsewhere/a.json"), "all", "v1", record) == record
    for other, split in ((examples * 2, "all"), (examples, "test")):
        assert "evaluation" not in figures.record_for(other, Path("a.json"), split, "v1", record)


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / build.RECORD_FILE).write_text("[1")
    with pytest.raises(DataError, match="not a record"):
        figures.read_record(tmp_path, "v1")

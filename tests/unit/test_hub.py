"""Data sets of the Hugging Face hub. No network: they are made here, or lie in a directory of the hub's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from trainer.dataset import DataError, Example, load_examples
from trainer.hub import HubId, parse_hub_id, rows_of


def labels_of(columns: dict[str, list[Any]], features: Features | None = None) -> list[Any]:
    return [fields["label"] for _, fields in rows_of(Dataset.from_dict(columns, features=features), "hf:a/b")]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf:PolyAI/banking77", HubId("PolyAI/banking77", None, "train")),
        ("hf:PolyAI/banking77:test", HubId("PolyAI/banking77", None, "test")),
        ("hf:PolyAI/banking77@90d4e2e", HubId("PolyAI/banking77", "90d4e2e", "train")),
        ("hf:a.b/c-d@refs/pr/1:dev_2", HubId("a.b/c-d", "refs/pr/1", "dev_2")),
    ],
)
def test_an_id_names_data_set_revision_and_split(text: str, meant: HubId) -> None:
    assert parse_hub_id(Path(text)) == meant


@pytest.mark.parametrize("text", ["hf:", "hf:banking77", "hf:a/b/c", "hf:a/b:", "hf:a/b@", "hf:a/b:test:x", "hf:a/b c"])
def test_a_malformed_id_is_refused_with_the_form_that_is_meant(text: str) -> None:
    with pytest.raises(DataError, match=r"write hf:OWNER/NAME\[@REVISION\]\[:SPLIT\]"):
        load_examples(Path(text))


def test_class_labels_become_their_names() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pool", "car"])})
    data = Dataset.from_dict({"text": ["my pool", "my car"], "label": [0, 1]}, features=features)
    assert rows_of(data, "hf:a/b") == [(1, {"text": "my pool", "label": "pool"}), (2, {"text": "my car", "label": "car"})]


def test_a_row_without_a_class_has_no_label() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pool", "car"])})
    assert labels_of({"text": ["a", "b", "c"], "label": [-1, None, 1]}, features) == [None, None, "car"]


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"instruction": ["Sort."], "input": ["my pool"], "output": ["pool"]}, ("my pool", "pool")),
        ({"instruction": ["my pool"], "output": ["pool"]}, ("my pool", "pool")),
        ({"id": [7], "utterance": ["my pool"], "intent": ["pool"]}, ("my pool", "pool")),
        ({"query": ["my pool"], "category": ["pool"], "intent": [3]}, ("my pool", "pool")),
        ({"text": ["my pool"], "label": [3], "label_text": ["pool"]}, ("my pool", "pool")),
    ],
)
def test_text_and_label_are_found_by_the_names_of_columns_that_hold_text(columns: dict[str, list[Any]], row: tuple[str, str]) -> None:
    assert rows_of(Dataset.from_dict(columns), "hf:a/b") == [(1, {"text": row[0], "label": row[1]})]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"utt": ["x"], "label": ["pool"]}, r"hf:a/b has no column of text \(text, .*\) among: utt \(string\), label \(string\)$"),
        ({"text": ["x"], "label": [3]}, r"no column of names of labels \(label_text, .*\) among: text \(string\), label \(int64\)$"),
        ({"text": ["x"], "intent": [["a", "b"]]}, r"no column of names of labels .* intent \(List\)$"),
    ],
)
def test_the_columns_found_are_named_where_none_fits(columns: dict[str, list[Any]], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        labels_of(columns)


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory OWNER/NAME, which `datasets` takes for the data set of that name, and a cache of this test's own."""
    files: dict[str, list[dict[str, Any]]] = {
        "train": [{"text": "my pool", "label": "pool"}],
        "test": [{"text": "my car", "label": "car"}, {"text": " ", "label": None}],
    }
    (tmp_path / "owner" / "name").mkdir(parents=True)
    for split, rows in files.items():
        (tmp_path / "owner" / "name" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("local_hub")
def test_a_data_set_is_read_like_a_file() -> None:
    assert load_examples(Path("hf:owner/name")) == [Example("my pool", "pool")]


@pytest.mark.usefixtures("local_hub")
def test_its_bad_rows_are_named() -> None:
    with pytest.raises(DataError, match=r"hf:owner/name:test has 1 bad row\(s\):\n  row 2: text, label missing"):
        load_examples(Path("hf:owner/name:test"))


@pytest.mark.usefixtures("local_hub")
def test_an_unknown_split_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(DataError, match=r'(?s)cannot load hf:owner/name:dev: Unknown split "dev".*train.*test'):
        load_examples(Path("hf:owner/name:dev"))


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot load hf:nobody/nothing: .*Without a network, give a file"):
        load_examples(Path("hf:nobody/nothing"))

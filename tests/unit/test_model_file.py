from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.classifier.model_file import KEYS, ModelFileError, load, parse_card, verify

VALUES: dict[str, Any] = {
    "format": 1,
    "labels": {
        "labels": [{"name": "pool", "description": "water", "code": "A"}, {"name": "other", "description": "", "code": "B"}],
        "out_of_scope": "other",
    },
    "prompt": {"prefix": "<user>", "suffix": "<end>"},
    "calibration": {"temperature": 1.5, "threshold": 0.4, "thresholds": {"pool": 0.6}},
    "evaluation": {"accuracy": 0.9},
    "probes": {"probes": [{"text": "pump hums", "label": "pool", "probability": 0.97}], "tolerance": 0.1},
    "training": {"name": "tiny", "version": "abc", "base": "SmolLM2"},
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["labels", "probes", "name", "code", "text", "label", "thresholds"]), inner, max_size=4)
    ),
    max_leaves=10,
)


def metadata(**changes: Any) -> dict[str, str]:
    return {f"pointsman.{key}": json.dumps(value) for key, value in (VALUES | changes).items()}


def complaint(values: dict[str, str]) -> str:
    with pytest.raises(ModelFileError) as caught:
        parse_card(values, "m.gguf")
    return str(caught.value)


def test_a_complete_card_is_read() -> None:
    card = parse_card(metadata(), "m.gguf")
    assert card.labels.names == ("pool", "other")
    assert card.labels.out_of_scope == "other"
    assert (card.prompt.prefix, card.prompt.suffix) == ("<user>", "<end>")
    assert (card.calibration.temperature, card.calibration.threshold_of("pool"), card.calibration.threshold_of("other")) == (1.5, 0.6, 0.4)
    assert (card.probes[0].text, card.probes[0].label, card.probes[0].probability, card.probe_tolerance) == ("pump hums", "pool", 0.97, 0.1)
    assert (card.name, card.version, card.base) == ("tiny", "abc", "SmolLM2")


def test_a_file_without_any_metadata_is_told_apart_from_a_damaged_one() -> None:
    assert "without Pointsman metadata" in complaint({"general.name": "x"})


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(key: str) -> None:
    values = metadata()
    del values[f"pointsman.{key}"]
    assert f"lacks metadata: pointsman.{key}." in complaint(values)


@pytest.mark.parametrize("text", ["{", "", "nope", "[" * 100_000, "9" * 5000])
def test_metadata_that_is_not_json_is_refused(text: str) -> None:
    assert "is not JSON" in complaint(metadata() | {"pointsman.labels": text})


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_format_version_is_refused(version: object) -> None:
    assert f"has Pointsman format {version}, this worker reads 1 and 2" in complaint(metadata(format=version))


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("labels", {"labels": VALUES["labels"]["labels"][:1]}, "at least two"),
        ("labels", {"labels": [{"name": "pool", "code": "A"}]}, "description"),
        ("labels", VALUES["labels"] | {"out_of_scope": "nowhere"}, "'nowhere'"),
        ("labels", [], "TypeError"),
        ("prompt", {"prefix": ""}, "suffix"),
        ("prompt", {"prefix": "", "suffix": ""}, "the prompt has no suffix"),
        ("calibration", {"temperature": 0, "threshold": 0.5}, "temperature"),
        ("calibration", {"temperature": 1, "threshold": 10**400}, "malformed"),
        ("calibration", {"temperature": 1, "threshold": 0.5, "offsets": {"pool": 1}}, "format 1 has no offsets"),
        ("calibration", {"temperature": 1, "threshold": 0.5, "offsets": {"pool": None}}, "TypeError"),
        ("probes", {"probes": [{"text": "x", "label": "car", "probability": 1}], "tolerance": 0.1}, "unknown labels: car"),
        ("probes", {"probes": []}, "tolerance"),
        ("training", {"name": "x", "version": "y"}, "base"),
    ],
)
def test_metadata_that_does_not_hold_what_the_format_says_is_refused(key: str, value: object, what: str) -> None:
    text = complaint(metadata(**{key: value}))
    assert text.startswith("m.gguf: Pointsman metadata is malformed")
    assert what in text


def test_offsets_are_read_and_name_labels_of_the_model() -> None:
    calibration = {"temperature": 1, "threshold": 0.5, "offsets": {"pool": 1.5}}
    assert parse_card(metadata(format=2, calibration=calibration), "m.gguf").calibration.offsets == {"pool": 1.5}
    assert "unknown labels: sea" in complaint(metadata(format=2, calibration=calibration | {"offsets": {"sea": 1}}))


@given(st.sampled_from(KEYS), json_values)
def test_any_json_is_either_read_or_refused_in_a_sentence(key: str, value: object) -> None:
    complaint = ""
    try:
        card = parse_card(metadata(**{key: value}), "m.gguf")
    except ModelFileError as error:
        complaint = str(error)
    assert complaint.startswith("m.gguf") or len(card.labels) >= 2


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="make model"):
        load(tmp_path / "none.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"<html>not found</html>"])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="is not a GGUF file"):
        load(path)


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGUF and more")
    found = hashlib.sha256(b"GGUF and more").hexdigest()
    with pytest.raises(ModelFileError, match=f"has SHA-256 {found}, expected {'a' * 64}"):
        verify(path, "A" * 64)
    verify(path, found.upper())


def test_a_cut_off_gguf_is_refused_with_llama_cpps_reason(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(ModelFileError, match="cannot be loaded"):
        load(path)

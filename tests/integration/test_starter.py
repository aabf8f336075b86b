"""One recipe, any labels: from a small file of queries to a model that a worker loads, and its report. The base has 2 of its 30 layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from typer.testing import CliRunner

from tests.support import ROOT
from trainer import build
from trainer.cli import app
from trainer.dataset import load_examples
from trainer.recipe import load_recipe
from trainer.registry import versions
from worker.classifier import Classifier

RECIPE = ROOT / "trainer" / "recipes" / "starter.yaml"
LAYERS = 2
HELPDESK, BUERGERAMT = ROOT / "tests/data/helpdesk.csv", ROOT / "tests/data/buergeramt.jsonl"


def with_few_layers(base: Path, output: Path) -> None:
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(output, "llama")
    for key, field in reader.fields.items():
        if key not in (*build._STRUCTURAL, "llama.block_count"):
            element = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=element)
    writer.add_block_count(LAYERS)
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < LAYERS:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("starter")
    small, base = directory / "base.gguf", load_recipe(RECIPE).base
    with_few_layers(base.path(), small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(base), "path", lambda _: small)
        yield directory
    shutil.rmtree(directory)


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(("data", "answers"), [(HELPDESK, "codes"), (BUERGERAMT, "names")])
def test_the_starter_recipe_makes_a_model_of_any_labels_and_a_report(workshop: Path, data: Path, answers: str) -> None:
    model = workshop / data.stem
    run("run", RECIPE, "--data", data, "--output", model, "--answers", answers)
    examples = load_examples(data)
    classifier = Classifier.open(build.model_file_of(model))
    card, lengths = classifier.card, {len(answer) for answer in classifier.code_ids}
    decision = classifier.classify([examples[0].text])[0]
    classifier.close()
    assert (card.name, card.labels.names) == (data.stem, tuple(sorted({example.label for example in examples})))
    assert decision.label in card.labels.names
    assert card.probes, "it checks itself when it is loaded"
    assert (lengths == {1}) == (answers == "codes")

    run("report", model, "--data", data, "--split", "test")
    page = (model / "report.html").read_text()
    for label in card.labels.names:
        assert label in page
    assert "What is routed" in page
    assert f"models/{data.stem}" in (model / "card.md").read_text()


def test_a_model_is_calibrated_anew_without_training(workshop: Path) -> None:
    model = workshop / HELPDESK.stem
    assert build.model_file_of(model).is_file(), "made by the test before"
    before = versions(model)[-1]
    said = run("calibrate", model, "--data", HELPDESK, "--split", "train", "--precision", "0.6", "--confidence", "0.8")
    after = versions(model)[-1]
    assert after.replaced == before.version != after.version
    assert after.adapter_sha256 == before.adapter_sha256
    assert after.version in said
    metadata = build.read_metadata(model)
    assert metadata["training"]["recipe"]["review"] == {"precision": 0.6, "confidence": 0.8}
    assert metadata["calibration"]["guarantee"]["precision"] == 0.6
    assert set(metadata["evaluation"]) == {"validation", "test"}
    assert "ece" not in metadata["evaluation"]["test"], "it was of the old temperature"
    classifier = Classifier.open(build.model_file_of(model))
    assert classifier.card.version == after.version, "it passes its probes"
    classifier.close()
    run("report", model)
    assert "The guarantee, from the validation part" in (model / "report.html").read_text()
    run("rollback", model)
    assert versions(model)[0].version == before.version == json.loads((model / build.METADATA_FILE).read_text())["training"]["version"]

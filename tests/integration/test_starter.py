"""One recipe, any labels: from a small file of queries to a model that a worker loads, and its report. The base is random, and tiny."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support import ROOT
from trainer import build
from trainer.cli import app
from trainer.dataset import DataError, load_examples
from trainer.recipe import load_recipe
from trainer.registry import versions
from worker.classifier import Classifier

RECIPE = ROOT / "trainer" / "recipes" / "starter.yaml"
LAYERS, WIDTH, HEADS = 2, 64, 4
HELPDESK, BUERGERAMT = ROOT / "tests/data/helpdesk.csv", ROOT / "tests/data/buergeramt.jsonl"


def write_tiny_base(like: Path, output: Path) -> None:
    """A random network with the vocabulary of a real base."""
    reader = gguf.GGUFReader(like)
    sizes = {
        "block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": 2 * WIDTH, "rope.dimension_count": WIDTH // HEADS,
        "attention.head_count": HEADS, "attention.head_count_kv": HEADS,
    }  # fmt: skip
    writer = gguf.GGUFWriter(output, "llama")
    for key, field in reader.fields.items():
        if key not in build._STRUCTURAL:
            element = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, sizes.get(key.removeprefix("llama."), field.contents()), field.types[0], sub_type=element)
    generator = np.random.default_rng(3)

    def add(name: str, *shape: int) -> None:
        scale = 1 if name == "token_embd" else WIDTH**-0.5
        values = np.ones(shape) if len(shape) == 1 else scale * generator.standard_normal(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].contents())
    add("token_embd", vocabulary, WIDTH)
    add("output_norm", WIDTH)
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}", WIDTH, WIDTH)
        for part, shape in (("ffn_gate", (2 * WIDTH, WIDTH)), ("ffn_up", (2 * WIDTH, WIDTH)), ("ffn_down", (WIDTH, 2 * WIDTH))):
            add(f"blk.{layer}.{part}", *shape)
        for part in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{part}", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("starter")
    small, base = directory / "base.gguf", load_recipe(RECIPE).base
    # What the random base learns of a few rows is close to chance, where rounding decides.
    (directory / RECIPE.name).write_text(RECIPE.read_text() + "gate:\n  least_agreement: 0.5\n")
    write_tiny_base(base.path(), small)
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
    run("run", workshop / RECIPE.name, "--data", data, "--output", model, "--answers", answers)
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
    assert f"trainer build {model}\n" in (model / "card.md").read_text()


def test_a_model_is_calibrated_anew_without_training(workshop: Path) -> None:
    model = workshop / HELPDESK.stem
    assert build.model_file_of(model).is_file(), "made by the test before"
    before = versions(model)[-1]
    queries = workshop / "queries.jsonl"
    rows = [{"text": f"{example.text} please", "label": example.label} for example in load_examples(HELPDESK)]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = run("calibrate", model, "--data", queries, "--precision", "0.6", "--confidence", "0.8")
    after = versions(model)[-1]
    assert after.replaced == before.version != after.version
    assert after.adapter_sha256 == before.adapter_sha256
    assert after.version in said
    metadata = build.read_metadata(model)
    assert metadata["training"]["recipe"]["review"] == {"precision": 0.6, "confidence": 0.8, "out_of_scope_share": None}
    assert metadata["calibration"]["guarantee"]["precision"] == 0.6
    assert set(metadata["evaluation"]) == {"validation", "test"}
    assert "ece" not in metadata["evaluation"]["test"], "it was of the old temperature"
    classifier = Classifier.open(build.model_file_of(model))
    assert classifier.card.version == after.version, "it passes its probes"
    classifier.close()
    run("report", model)
    assert f"The guarantee, from the {len(rows)} queries of its last calibration" in (model / "report.html").read_text()
    refused = CliRunner().invoke(app, ["calibrate", str(model), "--data", str(HELPDESK)])
    assert isinstance(refused.exception, DataError)
    assert "has learnt from" in str(refused.exception)
    grown = workshop / "grown.jsonl"
    rows = [{"text": example.text, "label": example.label} for example in load_examples(HELPDESK)]
    grown.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "the coffee machine leaks", "label": rows[0]["label"]}]))
    refused = CliRunner().invoke(app, ["calibrate", str(model), "--data", str(grown)])
    assert "has learnt from" in str(refused.exception)
    run("calibrate", model, "--data", grown, "--split", "validation")
    review = build.read_metadata(model)["training"]["recipe"]["review"]
    assert (review["precision"], review["confidence"]) == (0.6, 0.8), "the model's own, where none is given"
    run("rollback", model, "--to", before.version)
    assert versions(model)[0].version == before.version == json.loads((model / build.METADATA_FILE).read_text())["training"]["version"]

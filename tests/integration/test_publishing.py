"""A run's last steps on real model files: judged, published or refused, taken back. Training is a stand-in."""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.support import DATA, MODEL_DIRECTORY
from trainer import build, publish, registry, sft
from trainer.cli import app
from trainer.terminal import REFUSED
from worker.classifier import Classifier
from worker.classifier.model_file import content_hash

RECIPE = Path(__file__).parents[2] / "trainer/recipes/household-smollm2.yaml"
ROWS_A_LABEL = 7
"""One of them for validation and one for the test."""

WriteAdapter = Callable[[Path], None]


def shipped(output: Path) -> None:
    shutil.copy(MODEL_DIRECTORY / build.ADAPTER_FILE, output)


def untaught(output: Path) -> None:
    """An adapter that changes nothing: its second factors are zero."""
    adapter = build.read_adapter(MODEL_DIRECTORY / build.ADAPTER_FILE)
    writer = gguf.GGUFWriter(output, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
    for name, (a, b) in adapter.updates.items():
        writer.add_tensor(f"{name}.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{name}.lora_b", np.zeros_like(b, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Workshop:
    """A recipe of its own with few rows, and `run` with a stand-in for training that writes a given adapter."""

    def __init__(self, directory: Path) -> None:
        self.model = directory / "small"
        by_label = defaultdict(list)
        for row in json.loads(DATA.read_text(encoding="utf-8")):
            by_label[row["output"]].append(row)
        rows = [row for some in by_label.values() for row in random.Random(3).sample(some, ROWS_A_LABEL)]
        data = directory / "data.json"
        data.write_text(json.dumps(rows))
        self.recipe = yaml.safe_load(RECIPE.read_text()) | {"data": str(data), "train_only": [], "output": str(self.model)}
        self.recipe_file = directory / "recipe.yaml"

    def run(self, adapter: WriteAdapter, **gate: float) -> Result:
        self.recipe_file.write_text(yaml.safe_dump(self.recipe | {"gate": gate}))

        def stand_in_for_training(*arguments: Any) -> sft.TrainingLog:
            adapter(arguments[5])
            validation, code_ids = arguments[3:5]
            knows_nothing = np.full((len(validation), len(code_ids)), -np.log(len(code_ids)))
            return sft.TrainingLog([], [], {}, "last", 0, 0.0, 0.0, {}, "none", knows_nothing)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sft, "train_adapter", stand_in_for_training)
            return self.command("run", str(self.recipe_file))

    def command(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, catch_exceptions=False)


ANY_NETWORK = {"least_agreement": 0.0, "most_difference": 1.0}
"""The stand-in for training cannot answer like the adapter it writes."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """With a first model that was published."""
    directory = tmp_path_factory.mktemp("workshop")
    made = Workshop(directory)
    done = made.run(shipped, **ANY_NETWORK)
    assert done.exit_code == 0, done.output
    assert "there is no published model to compare with" in done.output
    yield made
    shutil.rmtree(directory)  # several copies of a model


def test_the_first_model_is_published_with_what_belongs_to_it(workshop: Workshop) -> None:
    model = build.model_file_of(workshop.model)
    entry = registry.versions(workshop.model)[0]
    assert entry.version == publish.version_in_place(workshop.model)
    assert entry.replaced is None
    assert entry.gguf_sha256 == content_hash(model)
    assert entry.accuracy is not None
    assert entry.accuracy > 0.8
    classifier = Classifier.open(model)
    codes = classifier.card.labels.codes
    classifier.close()
    assert (workshop.model / "labels.gbnf").read_text() == "root ::= " + " | ".join(f'"{code}"' for code in codes) + "\n"
    assert (workshop.model / "Modelfile").read_text() == (
        'FROM ../small.gguf\nTEMPLATE """<|im_start|>{{ .Prompt }} Topic"""\nPARAMETER temperature 0\nPARAMETER num_predict 1\n'
    )
    assert not (workshop.model / publish.CANDIDATE).exists()


def test_a_worse_model_is_refused_may_be_published_by_hand_and_can_be_taken_back(workshop: Workshop) -> None:
    model = build.model_file_of(workshop.model)
    first, before = registry.versions(workshop.model)[0], content_hash(model)

    done = workshop.run(untaught)
    assert done.exit_code == REFUSED, done.output
    assert "it is worse by the paired test at 0.05" in done.output
    assert "the trained network answers unlike the GGUF" in done.output
    assert f"python -m trainer publish {workshop.model}" in done.output
    assert content_hash(model) == before
    assert publish.version_in_place(workshop.model) == first.version
    assert [each.version for each in registry.versions(workshop.model)] == [first.version]
    refused = Classifier.open(publish.candidate_file(workshop.model))
    version = refused.card.version
    refused.close()

    by_hand = workshop.command("publish", str(workshop.model))
    assert by_hand.exit_code == 0, by_hand.output
    assert f"version {version} in the place of {first.version}" in by_hand.output
    second = registry.versions(workshop.model)[1]
    assert second.gate is not None
    assert not second.gate.passed
    assert content_hash(model) == second.gguf_sha256 != before
    assert version in (workshop.model / "card.md").read_text()
    assert json.loads((workshop.model / build.RECORD_FILE).read_text())["version"] == version

    listed = json.loads(workshop.command("versions", str(workshop.model), "--json").stdout)
    assert listed["current"] == version
    assert [each["version"] for each in listed["versions"]] == [first.version, version]

    back = workshop.command("rollback", str(workshop.model))
    assert back.exit_code == 0, back.output
    assert content_hash(model) == before, "the same file again"
    assert version not in (workshop.model / "card.md").read_text()
    assert publish.version_in_place(workshop.model) == first.version


def test_a_model_as_good_takes_the_place_and_build_makes_the_same_file(workshop: Workshop) -> None:
    done = workshop.run(shipped, **ANY_NETWORK)
    assert done.exit_code == 0, done.output
    assert "0 lost, 0 won, p = 1" in done.output
    model = build.model_file_of(workshop.model)
    before = content_hash(model)
    model.unlink()
    assert workshop.command("build", str(workshop.model)).exit_code == 0
    assert content_hash(model) == before

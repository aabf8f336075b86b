"""The comparison with other classifiers, on few queries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import DATA, assert_clear_failure, command
from trainer import peers
from trainer.dataset import Example, load_examples
from worker.classifier import Classifier
from worker.classifier.formats import in_format
from worker.classifier.model_file import content_hash

BLOCK_WEIGHTS = 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)
"""SmolLM2-135M: queries and outputs, keys and values, the feed-forward network, in thirty layers."""


def test_peers_are_trained_and_measured_on_the_same_queries(model_file: Path, household: Classifier) -> None:
    examples = load_examples(DATA)
    train, test = examples[:2000], examples[2000:2024]
    steps: list[str] = []
    found, peak = peers.compare(model_file, train, test, 1, steps.append)
    by_name = {peer.name: peer for peer in found}
    ours = f"Pointsman's engine, {household.weight_format}"
    assert by_name[ours].to_engine == 1.0
    assert 0.4 < (by_name["TF-IDF + linear SVM"].accuracy or 0) <= 1
    assert all(peer.messages_per_s > 0 for peer in found)
    assert peak.share == {name: peak.engine_gflops / gflops for name, gflops in peak.gflops.items()}
    assert min(peak.gflops.values()) > 0
    per_message = peak.engine_gflops * 1e9 / by_name[ours].messages_per_s
    tokens = sum(len(household.encode(example.text).ids) for example in test) / len(test)
    assert 0.5 < per_message / (2 * BLOCK_WEIGHTS * tokens) < 1.1, "two operations for each weight and token, but for what is shared"
    assert any(step.startswith("round 1 of 1") for step in steps)


def test_the_same_weights_in_torch_give_the_same_labels(model_file: Path, household: Classifier, texts: list[str]) -> None:
    predict = peers.same_weights_in_torch(model_file, household)
    given = predict(texts[:32])
    expected = [decision.label for decision in household.classify(texts[:32])]
    assert sum(a == b for a, b in zip(given, expected, strict=True)) >= 31


def test_the_engine_is_compared_in_the_format_that_it_would_be_served_in(model_file: Path, tmp_path: Path) -> None:
    examples = load_examples(DATA)
    served = in_format(model_file, "F16", tmp_path, content_hash(model_file))
    found, _ = peers.compare(model_file, examples[:200], examples[200:208], 1, lambda _: None, served)
    assert "Pointsman's engine, F16" in [peer.name for peer in found]
    refused = command("peers", model_file, "--data", DATA, "--format", "F17", module="trainer")
    assert_clear_failure(refused, "there is no format F17: use F32")


def test_peers_need_something_to_learn_from(model_file: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"input": "My pool pump is humming", "output": "pool"}) + "\n")
    assert_clear_failure(command("peers", model_file, "--data", few, module="trainer"), "give --train FILE")


@pytest.mark.parametrize("labels", [["pool", "swimming"]])
def test_a_model_that_knows_other_labels_gets_no_accuracy(model_file: Path, labels: list[str]) -> None:
    examples = [Example(f"query {number} about {label}", label) for number in range(20) for label in labels]
    found, _ = peers.compare(model_file, examples, examples[:8], 1, lambda _: None)
    accuracy = {peer.name: peer.accuracy for peer in found}
    assert [value for name, value in accuracy.items() if name.startswith("Pointsman's engine")] == [None]
    assert accuracy["TF-IDF + linear SVM"] == 1.0

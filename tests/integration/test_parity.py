"""One model in torch, in its GGUF and in a quantised form answers alike; another model does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.support import DATA, assert_clear_failure, command
from trainer import build, dataset, parity, sft
from trainer.network import from_gguf, log_probabilities
from trainer.parts import Parts
from trainer.recipe import Gate, Training, load_recipe
from trainer.terminal import REFUSED
from worker.classifier import Classifier

RECIPE = load_recipe(Path(__file__).parents[2] / "trainer/recipes/household-smollm2.yaml")


def test_the_household_model_answers_alike_in_torch(model_file: Path, household: Classifier, texts: list[str]) -> None:
    queries = [household.encode(text) for text in texts[:32]]
    network = from_gguf(model_file).eval()
    given = log_probabilities(network, [[*household.prefix_ids, *query.ids] for query in queries], [code for (code,) in household.code_ids])
    served = household.log_probabilities(queries)
    assert parity.complaint(parity.compare("torch", given, served), Gate()) is None
    assert parity.complaint(parity.compare("another model", np.roll(given, 1, axis=1), served), Gate()) is not None


def test_what_a_few_steps_of_training_lead_to_answers_alike_as_a_gguf(tmp_path: Path) -> None:
    from trainer import pipeline
    from worker.classifier.model_file import load

    recipe = RECIPE.model_copy(update={"training": Training(epochs=1, batch_size=8, learning_rate=5e-3, lora_dropout=0.0)})
    base = recipe.base.path()
    examples = dataset.load_examples(DATA)[:32]
    vocabulary = load(base, vocab_only=True)
    codes, answer_ids = pipeline._answers(recipe, vocabulary, None)
    tokens = pipeline._tokens(recipe, vocabulary, answer_ids, examples)
    vocabulary.close()
    adapter = tmp_path / build.ADAPTER_FILE
    log = sft.train_adapter(recipe, base, tokens[:16], tokens[16:], answer_ids, adapter, lambda *_: None)
    assert log.steps == 2

    served, nothing = {}, Parts(recipe, {"train": [], "validation": [], "test": []}, [])
    for name, update in (("trained", build.read_adapter(adapter)), ("base", None)):
        model = tmp_path / f"{name}.gguf"
        build.build(base, update, pipeline._metadata(recipe, codes, nothing, base, log), model)
        classifier = Classifier.open(model)
        served[name] = classifier.log_probabilities([classifier.encode(example.text) for example in examples[16:]])
        classifier.close()
    found = parity.compare("the trained network", log.validation_log_probabilities, served["trained"])
    assert found.mean_difference < Gate().most_difference, found
    untrained = parity.compare("the trained network", log.validation_log_probabilities, served["base"])
    assert untrained.mean_difference > 2 * found.mean_difference, "two steps change more than rounding does"


def test_other_formats_are_compared_on_a_split(model_file: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"input": e.text, "output": e.label}) + "\n" for e in dataset.load_examples(DATA)[:60]))
    where = ("parity", model_file, "--data", few, "--split", "all")
    done = command(*where, "--format", "Q8_0", "--json", module="trainer")
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["n"] == 60
    assert report["complaints"] == []
    (row,) = report["formats"]
    assert row["form"] == "Q8_0"
    assert 0 < row["mean_difference"] <= row["largest_difference"]
    refused = command(*where, "--format", "Q4_0", "--json", module="trainer")
    assert refused.returncode == REFUSED
    assert "Q4_0 answers unlike the GGUF" in json.loads(refused.stdout)["complaints"][0]
    assert_clear_failure(command(*where, "--format", "Q9", module="trainer"), "there is no format Q9", exit_code=1)

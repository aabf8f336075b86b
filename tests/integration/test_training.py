"""Whole runs of a tiny base on real data: what is chosen, a run that is killed and goes on, and training that goes on from a model."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from tests.integration import tiny
from tests.support import DATA, ROOT, Queue, command, environment, wait_for
from trainer import answers, build, dataset, learnt, pretrained, publish, registry, sft, thresholds
from trainer.cli import app
from trainer.network import hardware_precision
from trainer.pipeline import TRAINED_FILE
from trainer.terminal import REFUSED
from trainer.watch import Watch
from worker.classifier import Classifier
from worker.classifier.model_file import content_hash

LABELS = ("car", "cooking", "fence", "pool")
TRAINING = {
    "epochs": 3, "batch_size": 8, "learning_rate": 0.01, "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0, "token_dropout": 0.1,
    "evaluations_per_epoch": 2, "patience": 0,
}  # fmt: skip
UNREACHABLE = {"gate": {"least_accuracy": 1.0}}


class Workshop:
    """A recipe for the tiny base."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        base = tiny.write_package(directory)
        rows = [row for row in json.loads(DATA.read_text(encoding="utf-8")) if row["output"] in LABELS]
        data = directory / "data.json"
        data.write_text(json.dumps(random.Random(1).sample(rows, 300)))
        self.recipe: dict[str, Any] = {
            "name": "tiny", "base": base, "data": str(data), "prompt": {"prefix": "<|im_start|>", "suffix": " Topic"},
            "split": {"seed": 1}, "training": TRAINING, "out_of_scope": "pool",
        }  # fmt: skip

    def arguments(self, output: str, *more: str, **changes: Any) -> list[str]:
        """Of `run`, with a recipe file for this output."""
        recipe = self.directory / f"{output}.yaml"
        recipe.write_text(yaml.safe_dump(self.recipe | {"output": str(self.directory / output)} | changes))
        return ["run", str(recipe), *more]

    def run(self, output: str, *more: str, **changes: Any) -> Result:
        return CliRunner().invoke(app, self.arguments(output, *more, **changes), catch_exceptions=False)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made.directory)
        yield made


@pytest.fixture(scope="module")
def trained(workshop: Workshop) -> Path:
    """The directory of a run that nothing disturbed, and that the gate refused, so that all of it is still there."""
    done = workshop.run("whole", **UNREACHABLE)
    assert done.exit_code == REFUSED, done.output
    return workshop.directory / "whole" / publish.CANDIDATE


def test_the_weights_with_the_least_loss_on_validation_are_taken(trained: Path) -> None:
    training = build.read_metadata(trained)["training"]
    weights, losses = training["weights"], dict(training["eval_losses"])
    assert len(losses) == len(training["eval_accuracies"]) == 6
    assert training["steps"] == max(losses)
    assert weights["candidates"]["best"]["loss"] == pytest.approx(min(losses.values()), abs=1e-4)
    assert weights["candidates"]["last"]["step"] == training["steps"]
    assert weights["candidates"][weights["taken"]]["loss"] == min(each["loss"] for each in weights["candidates"].values())
    assert set(weights["candidates"]) == {"last", "best", "averaged"}


def test_training_that_gets_no_better_ends_before_its_last_epoch(workshop: Workshop) -> None:
    done = workshop.run("stalled", training=TRAINING | {"learning_rate": 1e-12, "patience": 1}, **UNREACHABLE)
    assert done.exit_code == REFUSED, done.output
    training = build.read_metadata(workshop.directory / "stalled" / publish.CANDIDATE)["training"]
    steps = [step for step, _ in training["eval_losses"]]
    assert len(steps) == 2, "of the six evaluations that three epochs have, one to compare with and one that was no better"
    assert training["steps"] == steps[-1]


def test_a_run_begins_anew_where_what_it_depends_on_has_changed(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    def run(**changes: Any) -> str:
        return CliRunner().invoke(app, workshop.arguments("changed", **changes)).output

    monkeypatch.setattr(sft, "train_adapter", cut_off)
    run()
    left = workshop.directory / "changed" / publish.CANDIDATE / "left by training"
    left.touch()
    assert "begins    anew" not in run()
    assert left.exists(), "it goes on with what is there"
    other = workshop.directory / "other.json"
    rows = json.loads((workshop.directory / "data.json").read_text())
    other.write_text(json.dumps([row | {"input": row["input"] + " please"} for row in rows]))
    said = run(data=str(other), training=TRAINING | {"weight_decay": 0.5})
    assert "begins    anew: the training settings, the data, labels or prompt changed since" in said
    assert not left.exists()


def test_batches_hold_queries_of_like_lengths_in_an_order_of_their_epoch() -> None:
    lengths = random.Random(1).choices(range(4, 60), k=400)
    epochs = [[*sft._ByLength(8, lengths, 7, lambda epoch=epoch: epoch)] for epoch in (0, 0, 1)]  # type: ignore[misc]
    assert epochs[0] == epochs[1] != epochs[2]
    assert sorted(epochs[0]) == list(range(400))

    def computed(order: list[int]) -> int:
        return sum(8 * max(lengths[row] for row in order[start : start + 8]) for start in range(0, 400, 8))

    assert computed(epochs[0]) < 0.75 * computed(list(range(400)))


def test_the_gradient_of_a_batch_in_pieces_is_that_of_the_whole(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, torch.Tensor]] = []

    def keep_the_first(_: Watch, _args: Any, _state: Any, _control: Any, model: Any = None, **_kwargs: Any) -> None:
        found.append({name: weights.grad.clone() for name, weights in model.named_parameters() if weights.grad is not None})
        raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "on_pre_optimizer_step", keep_the_first)
    monkeypatch.setattr(pretrained, "hardware_precision", lambda: torch.float32)  # bfloat16 rounds sums of another order otherwise
    for tokens in (48, 100_000):
        monkeypatch.setattr(sft, "TOKENS_AT_ONCE", tokens)
        CliRunner().invoke(app, workshop.arguments(f"pieces-{tokens}", training=TRAINING | {"token_dropout": 0.0}))
    pieces, whole = found
    assert any(gradient.abs().max() > 0 for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_corrections_that_were_harvested_are_trained_on(workshop: Workshop, trained: Path, queue: Queue, redis_url: str) -> None:
    corrections = workshop.directory / "corrections.json"
    queue.redis.xadd(f"{queue.namespace}:corrections", {"id": "1", "text": "a heron stands in the shallow end again", "label": "pool"})
    where = ("--redis-url", redis_url, "--namespace", queue.namespace, "--output", corrections)
    assert command("harvest", *where, module="trainer").returncode == 0
    settings = TRAINING | {"epochs": 1, "evaluations_per_epoch": 1}
    assert workshop.run("after", train_only=[str(corrections)], training=settings, **UNREACHABLE).exit_code == REFUSED
    before, after = (build.read_metadata(each)["training"] for each in (trained, workshop.directory / "after" / publish.CANDIDATE))
    assert after["data_rows"]["train"] == before["data_rows"]["train"] + 1
    assert after["data_sha256"]["test"] == before["data_sha256"]["test"], "both are measured on the same"
    assert after["files"]["train_only"] == ["corrections.json"]
    harvested = dataset.load_examples(corrections)
    assert learnt.unlearnt(harvested, "all", after) is None
    assert learnt.unlearnt(harvested, "all", before) == [0]


def test_a_run_says_what_it_took_of_what_it_was_made_and_leaves_a_report(workshop: Workshop, trained: Path) -> None:
    training = build.read_metadata(trained)["training"]
    assert 0.2 < training["peak_memory_gb"] < 8
    assert training["minutes"] > 0
    assert training["precision"] == str(hardware_precision()).removeprefix("torch.")
    assert training["base_sha256"] == content_hash(workshop.directory / tiny.PACKAGE / tiny.FILE)
    assert set(training["data_sha256"]) == set(training["data_rows"]) == {"train", "validation", "test"}
    assert {"torch", "transformers", "trl", "peft", "llama-cpp-python", "python"} <= set(training["versions"])
    assert training["recipe"]["training"]["seed"] == 0
    assert training["recipe"]["split"]["seed"] == 1
    assert f"{training['peak_memory_gb']} GB" in (trained / "card.md").read_text()
    assert training["weights"]["taken"] in (trained / "report.html").read_text()
    assert json.loads((trained / "report.json").read_text())["version"] == training["version"]


def test_a_killed_run_goes_on_where_it_was_and_leads_to_the_same_adapter(workshop: Workshop, trained: Path) -> None:
    arguments = workshop.arguments("killed", **UNREACHABLE)
    directory = workshop.directory / "killed" / publish.CANDIDATE
    env = environment() | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(workshop.directory)))}
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *arguments], env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: any(path.name.isdigit() for path in (directory / "checkpoints").iterdir()), "a checkpoint", timeout_s=500)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (directory / TRAINED_FILE).exists(), "killed in mid-training"

    done = workshop.run("killed", **UNREACHABLE)
    assert done.exit_code == REFUSED, done.output
    found = re.search(r"resumed   at step (\d+)", done.output)
    assert found is not None, done.output
    assert 0 < int(found[1]) < build.read_metadata(directory)["training"]["steps"]
    assert (directory / build.ADAPTER_FILE).read_bytes() == (trained / build.ADAPTER_FILE).read_bytes()
    for same in ("eval_losses", "eval_accuracies", "weights"):
        assert build.read_metadata(directory)["training"][same] == build.read_metadata(trained)["training"][same], same


def test_what_a_run_has_finished_is_not_done_again(workshop: Workshop, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_be_called(*_: Any) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(sft, "train_adapter", must_not_be_called)
    monkeypatch.setattr(answers, "_answers", must_not_be_called)
    done = workshop.run("whole", "--force", gate={"least_accuracy": 1.0, "least_agreement": 0.5})
    assert done.exit_code == 0, done.output
    assert "trained   already" in done.output
    model = workshop.directory / "whole"
    assert not trained.exists(), "what was published is cleaned"
    assert {"report.html", "card.md", "report.json", build.ADAPTER_FILE, build.METADATA_FILE} <= {path.name for path in model.iterdir()}


@pytest.fixture
def published(workshop: Workshop) -> Path:
    model = workshop.directory / "whole"
    if not (model / build.METADATA_FILE).exists():
        assert workshop.run("whole", "--force").exit_code == 0
    return model


def test_calibrating_for_more_queries_out_of_scope_changes_answers_and_says_so(workshop: Workshop, published: Path) -> None:
    assert build.read_metadata(published)["format"] == 2
    queries = workshop.directory / "queries.json"
    rows = json.loads((workshop.directory / "data.json").read_text())
    queries.write_text(json.dumps([row | {"input": row["input"] + " please"} for row in rows]))
    before = build.read_metadata(published)["calibration"]["offsets"]["pool"]
    share = ["calibrate", str(published), "--data", str(queries), "--out-of-scope-share", "0.9"]
    done = CliRunner().invoke(app, [*share, "--force"])
    assert done.exit_code == 0, done.output
    metadata = build.read_metadata(published)
    assert metadata["calibration"]["offsets"]["pool"] > before + 1
    assert "are answered otherwise" in done.output
    assert set(metadata["evaluation"]) == {"validation"}, "what was measured on the test part holds no more"
    assert "the queries it was calibrated on" in CliRunner().invoke(app, ["report", str(published)]).output + (
        published / "report.html"
    ).read_text(encoding="utf-8")
    queries.write_text(json.dumps([row for row in json.loads(queries.read_text()) if row["output"] != "pool"]))
    refused = CliRunner().invoke(app, ["calibrate", str(published), "--data", str(queries), "--confidence", "0.9"])
    assert "wants queries in scope and out of it" in str(refused.exception)


def test_calibrating_that_makes_answers_worse_is_refused_unless_it_is_forced(
    workshop: Workshop, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is right about nearly all of these queries, until an offset has it never say `pool`."""
    texts = [f"hello, {row['input']}" for row in json.loads((workshop.directory / "data.json").read_text())]
    classifier = Classifier.open(build.model_file_of(published))
    labels = [decision.label for decision in classifier.classify(texts)]
    assert labels.count("pool") > 15
    others = [name for name in classifier.card.labels.names if name != "pool"]
    classifier.close()
    queries = workshop.directory / "more.json"
    rows = [{"text": text, "label": others[0] if row < 3 else label} for row, (text, label) in enumerate(zip(texts, labels, strict=True))]
    queries.write_text(json.dumps(rows))
    chosen = {"temperature": 1.0, "offsets": {"pool": -50.0}, "threshold": 0.5, "thresholds": {}}
    monkeypatch.setattr(thresholds, "calibrate", lambda *_: chosen)
    arguments = ["calibrate", str(published), "--data", str(queries)]
    before = registry.versions(published)
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == REFUSED, refused.output
    assert "would fall by more than 0.01" in refused.output
    assert registry.versions(published) == before
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    (forced,) = [each for each in registry.versions(published) if each not in before]
    assert forced.gate is not None
    assert not forced.gate.passed
    assert "falls by more than 0.01" in forced.gate.reasons[0]
    assert CliRunner().invoke(app, ["rollback", str(published)]).exit_code == 0


def test_training_that_goes_on_from_a_model_begins_with_its_loss(workshop: Workshop, published: Path) -> None:
    model = published
    before = build.read_metadata(model)["training"]
    done = workshop.run("onward", "--from", str(model), continuing={"examples": 64})
    assert done.exit_code == 0, done.output
    after = build.read_metadata(workshop.directory / "onward")["training"]
    assert after["continues"] == before["version"]
    assert after["data_rows"]["train"] == 64
    assert after["recipe"]["training"]["learning_rate"] == 2e-4
    step, loss = after["eval_losses"][0]
    assert step == 0
    assert loss == pytest.approx(before["weights"]["candidates"][before["weights"]["taken"]]["loss"], abs=2e-3)
    data = dataset.load_examples(workshop.directory / "data.json")
    learnt_before = [learnt.are_among([example], before["texts"]["train"])[0] for example in data]
    assert 64 < sum(learnt_before) < len(data)
    assert learnt.are_among(data, after["texts"]["train"]) == learnt_before, "it has learnt what that one had"

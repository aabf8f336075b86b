"""A published model's temperature, offset and thresholds chosen anew, where its queries have changed: the same adapter, no training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer import build, dataset, evaluate, learnt, out_of_scope, publish, registry, thresholds
from trainer.base import Base
from trainer.dataset import DataError, Example
from trainer.files import write_json
from trainer.pipeline import choose_probes
from trainer.recipe import Gate, Review
from trainer.registry import Judgement, PublishError, Version
from worker.classifier import Classifier
from worker.classifier.calibration import Calibration
from worker.classifier.model_file import format_of

NOT_BY_TEMPERATURE = ("n", "accuracy", "macro_f1", "per_label", "confusions")
"""What an evaluation says of the labels alone, which only an offset changes; the rest was under the old temperature and thresholds."""


def recalibrate(
    directory: Path, examples: Sequence[Example], source: str, review: Review, say: Callable[[str], None], *, force: bool = False
) -> Version | None:
    """Publish the model in `directory` as a new version, calibrated on these examples; None if more of them would be answered wrongly.

    Args:
        source: what the examples are from, for the registry.
        force: publish it although the accuracy on them falls by more than the model's gate allows.

    Raises:
        PublishError: an unpublished candidate is in the way, or publishing fails.
        DataError, BaseError, BuildError, RecipeError, ModelFileError: the data does not fit, or the model cannot be used or built.
    """
    candidate = directory / publish.CANDIDATE
    if candidate.exists():
        raise PublishError(f"{candidate} holds what a run left: publish it (python -m trainer publish {directory}), or remove it")
    metadata = build.read_metadata(directory)
    names = [label["name"] for label in metadata["labels"]["labels"]]
    outsider = metadata["labels"]["out_of_scope"]
    if metadata["calibration"].get("offsets") and len({example.label == outsider for example in examples}) < 2:
        raise DataError(f"the model has an offset of {outsider}, which wants queries in scope and out of it: give both")
    out_of_scope.check(examples, outsider, review.out_of_scope_share)
    classifier = publish.open_model(directory)
    scores, before = classifier.log_probabilities([classifier.encode(example.text) for example in examples]), classifier.card.calibration
    classifier.close()
    truth = [names.index(example.label) for example in examples]
    calibration = thresholds.calibrate(scores, truth, names, outsider, review)
    if before.offsets and "offsets" not in calibration:
        raise DataError(f"a fourth of these queries, by which the offset of {outsider} would be fitted, is all of one kind: give more")
    reason = f"calibrated anew on {len(examples)} queries of {source}"
    say(f"calibrate on {len(examples)} queries of {source}: {thresholds.in_words(calibration)}")
    before = Calibration(before.temperature, offsets=before.offsets)
    after = Calibration(calibration["temperature"], offsets=calibration.get("offsets", {}))
    was, now = (each.probabilities(scores, names).argmax(axis=1) for each in (before, after))
    changed = int((was != now).sum())
    counted = out_of_scope.counts(np.array([example.label == outsider for example in examples]), review.out_of_scope_share)
    accuracy = [float(np.average(answers == truth, weights=counted)) for answers in (was, now)]
    if changed:
        weighed = "" if review.out_of_scope_share is None else ", weighed by that share,"
        reason += f"; {changed} of them are answered otherwise, accuracy on all{weighed} {accuracy[0]:.4f} before and {accuracy[1]:.4f} now"
        say(f"          {reason}")
    drop, limit = accuracy[0] - accuracy[1], Gate.model_validate(metadata["training"]["recipe"].get("gate", {})).accuracy_drop
    if drop > limit:
        if not force:
            say(f"refused   the accuracy on these queries would fall by more than {limit}: give more, or --force to publish it")
            return None
        reason += f", which falls by more than {limit}"
    # By a temperature alone the likeliest label stays the likeliest; with offsets only equal calibrations answer all alike.
    same_answers = after == before if after.offsets or before.offsets else True
    if not same_answers:
        say(f"          what was measured on the test part holds no more: python -m trainer report {directory} --data FILE --split test")

    candidate.mkdir()
    try:
        shutil.copy2(directory / build.ADAPTER_FILE, candidate / build.ADAPTER_FILE)
        metadata |= {"calibration": calibration, "format": format_of(calibration)}
        _write(directory, candidate, metadata, examples, review, same_answers=same_answers)
        return publish.publish(directory, Judgement(passed=drop <= limit, reasons=(reason,)))
    finally:
        shutil.rmtree(candidate, ignore_errors=True)


def _write(
    directory: Path, work: Path, metadata: dict[str, Any], examples: Sequence[Example], review: Review, *, same_answers: bool
) -> None:
    """Metadata and GGUF of the candidate, with what the newly calibrated model answers to the examples."""
    training = metadata["training"]
    training["recipe"] = training["recipe"] | {"review": review.model_dump(mode="json")}
    training["calibrated"] = {"time": registry.now(), "rows": len(examples), "sha256": dataset.fingerprint(examples)}
    if "texts" in training:
        training["calibrated"]["of_validation"] = sum(learnt.are_among(examples, training["texts"]["validation"]))
    training["version"] = build.content_version(work / build.ADAPTER_FILE, metadata)
    probes = [Example(probe["text"], probe["label"]) for probe in metadata["probes"]["probes"]]
    metadata["probes"] = metadata["probes"] | {"probes": []}
    base, adapter = Base.path_recorded_in(training), build.read_adapter(work / build.ADAPTER_FILE)
    candidate = publish.candidate_file(directory)
    build.build(base, adapter, metadata, candidate)
    classifier = Classifier.open(candidate)
    decisions, of_probes = evaluate.decide(classifier, examples), evaluate.decide(classifier, probes)
    test = metadata["evaluation"].get("test", {}) if same_answers else {}
    kept = {name: value for name, value in test.items() if name in NOT_BY_TEMPERATURE}
    figures = evaluate.evaluate(classifier.card, examples, decisions)
    metadata["evaluation"] = {"validation": figures.as_dict()} | ({"test": kept} if kept else {})
    classifier.close()
    names = [label["name"] for label in metadata["labels"]["labels"]]
    metadata["probes"]["probes"] = choose_probes(names, [*examples, *probes], [*decisions, *of_probes])
    build.build(base, adapter, metadata, candidate)
    write_json(work / build.METADATA_FILE, metadata)

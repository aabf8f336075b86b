"""From a recipe to a model file: split -> train -> build -> calibrate -> evaluate -> build with what was found -> gate -> publish."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import build, dataset, evaluate, gate, parity, processes, publish
from trainer.dataset import Example
from trainer.files import write_json
from trainer.recipe import Recipe, RecipeError, with_labels_of
from trainer.registry import Judgement
from worker.classifier import Classifier
from worker.classifier.calibration import Floats, fit_temperature
from worker.classifier.labels import choose_codes
from worker.classifier.model_file import FORMAT, LoadedModel, load
from worker.classifier.prompt import encode_query

PROBE_TOLERANCE = 0.1
"""How far a probe's probability may differ: other CPUs and weight formats round differently."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a recipe led to."""

    metadata: dict[str, Any]
    """As it was written into the model file."""
    verdict: gate.Verdict
    published: bool
    """If not, the model lies where `publish.candidate_file` says."""


@dataclass(frozen=True, slots=True)
class Published:
    """The model that a new one would replace, and what it answers to the test examples."""

    labels: Sequence[str]
    answers: list[str]


def run(recipe: Recipe, say: Say, training_progress: Callable[[int, int, float | None], None], *, force: bool = False) -> Outcome | None:
    """Carry out a recipe. Of several processes all but the first only train, and return None.

    Args:
        force: publish whatever the gate says.

    Raises:
        RecipeError, BaseError, DataError, BuildError, ModelFileError, PublishError: what is wrong and what to do.
    """
    from trainer import sft  # torch takes seconds to import, and only training needs it

    started = time.monotonic()
    recipe, parts = _parts(recipe, say)
    say("data      " + ", ".join(f"{len(parts[part])} {part}" for part in dataset.PARTS) + f"; {len(recipe.labels)} labels")
    published = _published(recipe, parts["test"], force, say) if processes.is_first() else None

    base = recipe.base.path()
    vocabulary = load(base, vocab_only=True)
    codes = choose_codes(list(recipe.labels), lambda text: vocabulary.tokenize(text, parse_special=False), recipe.codes)
    code_ids = [vocabulary.tokenize(code, parse_special=False)[0] for code in codes]
    tokens = {part: _tokens(recipe, vocabulary, code_ids, parts[part]) for part in ("train", "validation")}
    vocabulary.close()

    work = recipe.output / publish.CANDIDATE
    if processes.is_first():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    adapter_path = work / build.ADAPTER_FILE
    log = sft.train_adapter(recipe, base, tokens["train"], tokens["validation"], code_ids, adapter_path, training_progress)
    if not processes.is_first():
        return None
    say(f"trained   {log.steps} steps, adapter {adapter_path.stat().st_size / 1e6:.1f} MB")

    metadata = _metadata(recipe, codes, parts, log)
    metadata = _measure(recipe, base, metadata, parts, work, say)
    metadata["training"]["minutes"] = round((time.monotonic() - started) / 60, 1)
    write_json(work / build.METADATA_FILE, metadata)
    candidate = publish.candidate_file(recipe.output)
    build.build(base, build.read_adapter(adapter_path), metadata, candidate)

    trained = log.validation_log_probabilities
    unlike = _unlike_the_network(recipe, candidate, parts["validation"], tokens["validation"], trained, say)
    verdict = _judge(recipe, candidate, published, parts["test"])
    if unlike is not None:
        verdict = replace(verdict, passed=False, reasons=(unlike, *verdict.reasons))
    say("gate      " + ("passed" if verdict.passed else "refused") + "".join(f"\n          {reason}" for reason in verdict.reasons))
    if verdict.passed or force:
        entry = publish.publish(recipe.output, Judgement(passed=verdict.passed, reasons=verdict.reasons))
        before = f" in the place of {entry.replaced}" if entry.replaced else ""
        say(f"published {build.model_file_of(recipe.output)}, version {entry.version}{before}")
    return Outcome(metadata, verdict, verdict.passed or force)


def _parts(recipe: Recipe, say: Say) -> tuple[Recipe, dict[dataset.Part, list[Example]]]:
    """All examples of the recipe's files by part, and the recipe with the labels that they have."""
    examples = dataset.load_examples(recipe.data)
    recipe = with_labels_of(recipe, (example.label for example in examples))
    dataset.check_labels(examples, recipe.labels)
    parts = dataset.split(examples, **recipe.split.model_dump())
    files: dict[dataset.Part, Path | None] = {"validation": recipe.validation, "test": recipe.test}
    for part, path in files.items():
        if path is not None:
            parts[part] = dataset.load_examples(path)
            dataset.check_labels(parts[part], recipe.labels)
    for path in recipe.train_only:
        parts["train"] += _train_only(recipe, path, parts, say)
    return recipe, parts


def _train_only(recipe: Recipe, path: Path, parts: dict[dataset.Part, list[Example]], say: Say) -> list[Example]:
    """Further examples for training; none that is nearly in the validation or test part."""
    found = dataset.load_examples(path)
    dataset.check_labels(found, recipe.labels)
    kept = dataset.without_copies(found, parts["validation"] + parts["test"])
    if len(kept) < len(found):
        say(f"data      {len(found) - len(kept)} examples of {path} left out: near-duplicates of held-out ones")
    return kept


def _published(recipe: Recipe, test: Sequence[Example], force: bool, say: Say) -> Published | None:
    """Asked before training, which takes long: a model that cannot be compared with is better known before."""
    path = build.model_file_of(recipe.output)
    if not path.is_file() and publish.version_in_place(recipe.output) is None:
        return None
    if not test:
        if force:
            return None
        raise RecipeError(f"without a test split no model can be compared with {path}: set split.test or test, or give --force")
    if not path.is_file():
        publish.build_model(recipe.output)
    classifier = Classifier.open(path)
    answers = [decision.label for decision in evaluate.decide(classifier, test)]
    card = classifier.card
    classifier.close()
    right = sum(a == e.label for a, e in zip(answers, test, strict=True))
    say(f"replaces  {path}, version {card.version}, test accuracy {right / len(test):.4f}")
    measured_on = card.training.get("data_sha256")
    if isinstance(measured_on, dict) and measured_on.get("test") != dataset.fingerprint(test):
        say("          its own test split was another: it may have been trained on some of these examples")
    return Published(card.labels.names, answers)


def _unlike_the_network(
    recipe: Recipe, candidate: Path, validation: Sequence[Example], tokens: Sequence[Any], trained: Floats, say: Say
) -> str | None:
    """What is wrong with the GGUF as the form of what was trained; None if nothing."""
    classifier = Classifier.open(candidate, max_query_tokens=recipe.training.max_query_tokens)
    queries = [classifier.encode(example.text) for example in validation]
    served = classifier.log_probabilities(queries)
    prefix = classifier.prefix_ids
    classifier.close()
    other = sum([*prefix, *query.ids] != example.prompt_ids for query, example in zip(queries, tokens, strict=True))
    if other:
        return f"{other} queries of the validation split have other token ids in the GGUF than they had in training"
    found = parity.compare("the trained network", trained, served)
    say(f"parity    network and GGUF: {found.same_label:.1%} same label, probabilities {found.mean_difference:.4f} apart on average")
    return parity.complaint(found, recipe.gate)


def _judge(recipe: Recipe, candidate: Path, published: Published | None, test: Sequence[Example]) -> gate.Verdict:
    """By the very file that would be published, which checks itself here too."""
    classifier = Classifier.open(candidate)
    answers = [decision.label for decision in evaluate.decide(classifier, test)]
    classifier.close()
    if published is None:
        return gate.first(answers, test, recipe.gate)
    return gate.compare(published.answers, answers, test, published.labels, list(recipe.labels), recipe.gate)


def _tokens(recipe: Recipe, vocabulary: LoadedModel, code_ids: Sequence[int], examples: Sequence[Example]) -> list[Any]:
    from trainer.sft import TokenExample

    prefix = vocabulary.tokenize(recipe.prompt.prefix, parse_special=True, add_special=True)
    suffix = vocabulary.tokenize(recipe.prompt.suffix, parse_special=True)
    answer = dict(zip(recipe.labels, code_ids, strict=True))

    def plain(text: str) -> list[int]:
        return vocabulary.tokenize(text, parse_special=False)

    limit = recipe.training.max_query_tokens
    return [TokenExample(prefix + encode_query(example.text, suffix, plain, limit).ids, answer[example.label]) for example in examples]


def _metadata(recipe: Recipe, codes: Sequence[str], parts: dict[dataset.Part, list[Example]], log: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "labels": {
            "labels": [
                {"name": name, "description": description, "code": code}
                for (name, description), code in zip(recipe.labels.items(), codes, strict=True)
            ],
            "out_of_scope": recipe.out_of_scope,
        },
        "prompt": recipe.prompt.model_dump(),
        "calibration": {"temperature": 1.0, "threshold": 0.0, "thresholds": {}},
        "evaluation": {},
        "probes": {"tolerance": PROBE_TOLERANCE, "probes": []},
        "training": {
            "name": recipe.name,
            "version": "unreleased",
            **recipe.base.record(),
            "recipe": recipe.model_dump(mode="json", include={"training", "split", "review"}),
            "data_sha256": {part: dataset.fingerprint(parts[part]) for part in dataset.PARTS},
            "data_rows": {part: len(parts[part]) for part in dataset.PARTS},
            "steps": log.steps,
            "losses": log.losses,
            "eval_losses": log.eval_losses,
            "versions": log.versions | {"python": platform.python_version()},
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def _measure(
    recipe: Recipe, base: Path, metadata: dict[str, Any], parts: dict[dataset.Part, list[Example]], work: Path, say: Say
) -> dict[str, Any]:
    """Calibrate on validation, evaluate on validation and test, choose the probes."""
    draft = work / ".draft.gguf"
    adapter = build.read_adapter(work / build.ADAPTER_FILE)
    validation = parts["validation"]
    names = list(recipe.labels)
    try:
        build.build(base, adapter, metadata, draft)
        classifier = Classifier.open(draft)
        queries = [classifier.encode(example.text) for example in validation]
        scores = classifier.log_probabilities(queries)
        temperature = fit_temperature(scores, [names.index(example.label) for example in validation])
        classifier.close()

        calibration = {"temperature": round(temperature, 4), "threshold": 0.0, "thresholds": {}}
        metadata = metadata | {"calibration": calibration}
        build.build(base, adapter, metadata, draft)
        classifier = Classifier.open(draft)
        decisions = evaluate.decide(classifier, validation)
        truth = [example.label for example in validation]
        threshold = evaluate.choose_threshold(decisions, truth, recipe.out_of_scope, recipe.review.precision)
        calibration["threshold"] = round(threshold, 4)
        classifier.close()
        say(f"calibrate temperature {temperature:.3f}, threshold {threshold:.3f} on validation")

        metadata["training"]["version"] = build.content_version(work / build.ADAPTER_FILE, metadata)
        build.build(base, adapter, metadata, draft)
        classifier = Classifier.open(draft)
        for part in (part for part in ("validation", "test") if parts[part]):
            figures = evaluate.evaluate(classifier, parts[part], evaluate.decide(classifier, parts[part]))
            metadata["evaluation"][part] = figures.as_dict()
            say(f"evaluate  {part}: accuracy {figures.accuracy:.4f}, macro-F1 {figures.macro_f1:.4f}, ECE {figures.ece:.4f}")
        classifier.close()
    finally:
        draft.unlink(missing_ok=True)

    probes = []
    for name in names:
        sure = [(d, e) for d, e in zip(decisions, validation, strict=True) if d.label == e.label == name]
        if sure:
            decision, example = max(sure, key=lambda pair: pair[0].confidence)
            probability = round(decision.confidence, 4)
            probes.append({"text": example.text, "label": name, "probability": probability})
    metadata["probes"]["probes"] = probes
    return metadata

"""From a recipe to a model file: split -> curate -> train -> build -> calibrate -> evaluate -> build again -> gate -> publish."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer import build, dataset, evaluate, gate, judging, learnt, processes, publish, thresholds, warm_start, work
from trainer import parts as examples_of
from trainer.answers import Answers, ask
from trainer.codes import choose_codes
from trainer.dataset import Example
from trainer.files import write_json
from trainer.parts import Parts
from trainer.recipe import Recipe, RecipeError
from trainer.registry import Judgement
from trainer.terminal import Progress, peak_memory_gb
from trainer.warm_start import Start
from worker.classifier import Decision
from worker.classifier.model_file import METADATA_FORMATS, LoadedModel, ModelCard, content_hash, format_of, load, parse_card
from worker.classifier.prompt import encode_query

PROBE_TOLERANCE = 0.1
"""How far a probe's probability may differ: other CPUs and weight formats round differently."""

PACKAGES = ("pointsman", "llama-cpp-python", "gguf")
"""Whose versions are recorded besides those of the libraries that train."""
TRAINED_FILE = "trained.npz"
HELD_OUT: tuple[dataset.Part, ...] = ("validation", "test")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a recipe led to."""

    metadata: dict[str, Any]
    """As it was written into the model file."""
    verdict: gate.Verdict
    published: bool
    """If not, the model lies where `publish.candidate_file` says."""


def run(recipe: Recipe, say: Say, progress: Progress, *, force: bool = False, fresh: bool = False) -> Outcome | None:
    """Carry out a recipe, from where an earlier run of the same was cut off.

    Of several processes all but the first only train, and return None; they begin anew in any case.

    Args:
        progress: called with what is being done, how much of it is, and of how much (None: unknown).
        force: publish whatever the gate says.
        fresh: begin anew.

    Raises:
        RecipeError, BaseError, DataError, BuildError, ModelFileError, PublishError: what is wrong and what to do.
    """
    started = time.monotonic()
    start = warm_start.read(recipe) if recipe.start_from else None
    progress("splitting", 0, None)
    found = examples_of.of(recipe, say, start)
    recipe, parts = found.recipe, found.examples
    say("data      " + ", ".join(f"{len(parts[part])} {part}" for part in dataset.PARTS) + f"; {len(recipe.labels)} labels")
    base = recipe.base.path()
    recipe.output.mkdir(parents=True, exist_ok=True)
    with work.alone(recipe.output) if processes.is_first() else nullcontext():
        return _run(recipe, base, found, start, started, say, progress, force=force, fresh=fresh or processes.count() > 1)


def _run(
    recipe: Recipe,
    base: Path,
    data: Parts,
    start: Start | None,
    started: float,
    say: Say,
    progress: Progress,
    *,
    force: bool,
    fresh: bool,
) -> Outcome | None:
    parts = data.examples
    vocabulary = load(base, vocab_only=True)
    codes, answer_ids = _answers(recipe, vocabulary, start)
    tokens = {
        "train": _tokens(recipe, vocabulary, answer_ids, [*parts["train"], *data.again]),
        "validation": _tokens(recipe, vocabulary, answer_ids, parts["validation"]),
    }
    vocabulary.close()
    published = judging.published(recipe, parts["test"], force, say, progress) if processes.is_first() else None

    directory = recipe.output / publish.CANDIDATE
    before = time.monotonic() - started
    log = _train(recipe, base, tokens, answer_ids, directory, start, say, progress, fresh=fresh)
    if not processes.is_first():
        return None
    trained = time.monotonic()
    metadata = _metadata(recipe, codes, data, base, log)
    if start is not None:
        metadata["training"] = _continued(metadata["training"], start)
    held_out: dict[str, list[Example]] = {part: parts[part] for part in HELD_OUT if parts[part]}
    answers = ask(base, directory, metadata, held_out, progress)
    metadata = _measure(recipe, metadata, held_out, answers, directory, say)
    metadata["training"]["minutes"] = round(log.minutes + (before + time.monotonic() - trained) / 60, 1)
    metadata["training"]["peak_memory_gb"] = round(max(log.peak_memory_gb, peak_memory_gb()), 2)
    say(f"took      {metadata['training']['minutes']} minutes, {metadata['training']['peak_memory_gb']} GB of memory at most")
    write_json(directory / build.METADATA_FILE, metadata)
    candidate = publish.candidate_file(recipe.output)
    build.build(base, build.read_adapter(directory / build.ADAPTER_FILE), metadata, candidate, lambda *done: progress("building", *done))

    card, prompts = _card(metadata), [example.prompt_ids for example in tokens["validation"]]
    unlike = judging.unlike_the_network(recipe, card, answers["validation"], prompts, log.validation_log_probabilities, say)
    verdict = judging.judge(recipe, card, answers.get("test"), published, parts["test"])
    if unlike is not None:
        verdict = replace(verdict, passed=False, reasons=(unlike, *verdict.reasons))
    say("gate      " + ("passed" if verdict.passed else "refused") + "".join(f"\n          {reason}" for reason in verdict.reasons))
    if verdict.passed or force:
        progress("publishing", 0, None)
        entry = publish.publish(recipe.output, Judgement(passed=verdict.passed, reasons=verdict.reasons))
        in_place_of = f" in the place of {entry.replaced}" if entry.replaced else ""
        say(f"published {build.model_file_of(recipe.output)}, version {entry.version}{in_place_of}")
        directory = recipe.output
    for path in _report(recipe, directory, metadata, parts["test"], progress):
        say(f"wrote     {path}")
    return Outcome(metadata, verdict, verdict.passed or force)


def _train(
    recipe: Recipe,
    base: Path,
    tokens: dict[str, list[Any]],
    answer_ids: Sequence[Sequence[int]],
    directory: Path,
    start: Start | None,
    say: Say,
    progress: Progress,
    *,
    fresh: bool,
) -> Any:
    """Train, go on with what was begun, or take what was trained already: whatever the directory holds of the same inputs."""
    progress("loading torch", 0, None)
    from trainer import sft  # torch takes seconds to import, and only training needs it

    adapter, done = directory / build.ADAPTER_FILE, directory / TRAINED_FILE
    train = partial(
        sft.train_adapter,
        recipe,
        base,
        tokens["train"],
        tokens["validation"],
        answer_ids,
        adapter,
        progress,
        say,
        start.adapter if start else None,
    )
    if not processes.is_first():
        return train()
    inputs = {
        "the training settings": work.fingerprint([recipe.answers, recipe.schedule().model_dump(mode="json")]),
        "the data, labels or prompt": work.fingerprint(
            [answer_ids, *([each.prompt_ids, each.answer_ids] for part in tokens.values() for each in part)]
        ),
        "the base": content_hash(base),
        "the model it goes on from": start.version if start else "",
        "the software": work.fingerprint(sft.software()),
    }
    if changed := work.prepare(directory, inputs, fresh=fresh):
        say(f"begins    anew: {', '.join(changed)} changed since what lay in {directory}")
    found = work.recall(done)
    if found is not None and adapter.is_file():
        log = sft.TrainingLog.of(found[0], found[1]["answers"])
        say(f"trained   already, {log.steps} steps; --fresh trains anew")
        return log
    log = train()
    work.remember(done, log.facts(), {"answers": log.validation_log_probabilities})
    say(f"trained   {log.steps} steps, adapter {adapter.stat().st_size / 1e6:.1f} MB")
    return log


def _card(metadata: Mapping[str, Any]) -> ModelCard:
    return parse_card({f"pointsman.{key}": json.dumps(value) for key, value in metadata.items()}, "the new model")


def _report(recipe: Recipe, directory: Path, metadata: Mapping[str, Any], test: Sequence[Example], progress: Progress) -> Iterator[Path]:
    progress("writing the report", 0, None)
    from trainer import figures, report  # matplotlib takes a second

    record: dict[str, Any] = {}
    if test:
        source, split = (recipe.test, "all") if recipe.test else (recipe.data, "test")
        record = figures.record_for(test, source, split, metadata["training"]["version"], {})
        yield figures.write_record(directory, record)
    yield from report.write(directory, metadata, record, recipe.output)


def _answers(recipe: Recipe, vocabulary: LoadedModel, start: Start | None) -> tuple[Sequence[str], list[list[int]]]:
    """What the model answers for each label, and its token ids.

    Raises:
        RecipeError: a code cannot be used.
    """

    def tokenize(text: str) -> list[int]:
        return vocabulary.tokenize(text, parse_special=False)

    names = list(recipe.labels)
    given = {name: code for name, code in (start.codes if start else {}).items() if name in recipe.labels} | recipe.codes
    if recipe.answers == "names":
        codes: Sequence[str] = [f" {name}" for name in names]
    else:
        try:
            codes = choose_codes(names, tokenize, given)
        except ValueError as error:
            raise RecipeError(f"codes{' of the recipe and of the model it goes on from' if start else ''}: {error}") from error
    return codes, [tokenize(code) for code in codes]


def _tokens(recipe: Recipe, vocabulary: LoadedModel, answer_ids: Sequence[list[int]], examples: Sequence[Example]) -> list[Any]:
    from trainer.watch import TokenExample

    prefix = vocabulary.tokenize(recipe.prompt.prefix, parse_special=True, add_special=True)
    suffix = vocabulary.tokenize(recipe.prompt.suffix, parse_special=True)
    answer = dict(zip(recipe.labels, answer_ids, strict=True))

    def plain(text: str) -> list[int]:
        return vocabulary.tokenize(text, parse_special=False)

    limit = recipe.training.max_query_tokens
    return [
        TokenExample(prefix + encode_query(example.text, suffix, plain, limit).ids, answer[example.label], (len(prefix), len(suffix)))
        for example in examples
    ]


def _metadata(recipe: Recipe, codes: Sequence[str], data: Parts, base: Path, log: Any) -> dict[str, Any]:
    parts = data.examples
    return {
        "format": METADATA_FORMATS[0],
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
            "base_sha256": content_hash(base),
            "recipe": recipe.model_dump(mode="json", include={"split", "review", "gate", "answers", "repeat"})
            | {"training": recipe.schedule().model_dump()},
            "files": recipe.files(),
            "data_sha256": {part: dataset.fingerprint(parts[part]) for part in dataset.PARTS},
            "data_rows": {part: len(parts[part]) for part in dataset.PARTS},
            "texts": {part: learnt.text_hashes(parts[part]) for part in learnt.RECORDED},
            "steps": log.steps,
            "losses": log.losses,
            "eval_losses": [(each.step, round(each.loss, 4)) for each in log.evaluations],
            "eval_accuracies": [(each.step, round(each.accuracy, 4)) for each in log.evaluations],
            "weights": {"taken": log.taken, "candidates": {name: asdict(each) for name, each in log.candidates.items()}},
            "precision": log.precision,
            "versions": log.versions | {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def _continued(training: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """The metadata of a training that went on from a model: it has learnt what that one had, and does not tell where that one does not."""
    texts, before = training["texts"], start.training.get("texts")
    told = {} if before is None else {"texts": {part: learnt.joined(before[part], texts[part]) for part in learnt.RECORDED}}
    return {name: value for name, value in training.items() if name != "texts"} | {"continues": start.version} | told


def _measure(
    recipe: Recipe,
    metadata: dict[str, Any],
    held_out: Mapping[str, Sequence[Example]],
    answers: Mapping[str, Answers],
    directory: Path,
    say: Say,
) -> dict[str, Any]:
    """Calibrate on validation, evaluate on validation and test, choose the probes."""
    names, validation = list(recipe.labels), held_out["validation"]
    truth = [names.index(example.label) for example in validation]
    calibration = thresholds.calibrate(answers["validation"].scores, truth, names, recipe.out_of_scope, recipe.review)
    metadata = metadata | {"calibration": calibration, "format": format_of(calibration)}
    say("calibrate on validation: " + thresholds.in_words(calibration))

    metadata["training"]["version"] = build.content_version(directory / build.ADAPTER_FILE, metadata)
    card = _card(metadata)
    decided = {part: answers[part].decisions(card) for part in held_out}
    for part, decisions in decided.items():
        figures = evaluate.evaluate(card, held_out[part], decisions)
        metadata["evaluation"][part] = figures.as_dict()
        say(f"evaluate  {part}: accuracy {figures.accuracy:.4f}, macro-F1 {figures.macro_f1:.4f}, ECE {figures.ece:.4f}")

    metadata["probes"]["probes"] = choose_probes(names, validation, decided["validation"])
    return metadata


def choose_probes(names: Sequence[str], examples: Sequence[Example], decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """The surest right answer of each label: what a worker asks the model when it loads it."""
    probes = []
    for name in names:
        sure = [(d, e) for d, e in zip(decisions, examples, strict=True) if d.label == e.label == name]
        if sure:
            decision, example = max(sure, key=lambda pair: pair[0].confidence)
            probes.append({"text": example.text, "label": name, "probability": round(decision.confidence, 4)})
    return probes

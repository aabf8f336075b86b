"""What a report shows beside what training recorded: measured once, kept in report.json, shown as often as one likes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from trainer import baseline as asking
from trainer import build, dataset, evaluate, yardsticks
from trainer.dataset import DataError, Example
from trainer.files import write_json
from worker.classifier import Classifier, EngineOptions
from worker.classifier.cores import available_cores, cpu_name
from worker.classifier.formats import FORMATS, forget, in_format
from worker.classifier.labels import agreement
from worker.classifier.model_file import KEYS, ModelFileError, content_hash, load, parse_card

_PLAIN = EngineOptions(hold_prefixes=False)
"""Prefixes are held by what came before, which would favour the longest at work."""

_TURN = 16
"""Queries that one format classifies before it is the other's turn."""

Step = Callable[[str], None]


def read_metadata(model: Path) -> dict[str, Any]:
    """The value of each `pointsman.*` key, from a model's directory or its GGUF.

    Raises:
        BuildError, ModelFileError: there is none.
    """
    if model.is_dir():
        return build.read_metadata(model)
    loaded = load(model, vocab_only=True)
    loaded.close()
    parse_card(loaded.metadata, str(model))
    return {key: json.loads(loaded.metadata[f"pointsman.{key}"]) for key in KEYS}


def read_record(directory: Path, version: str) -> dict[str, Any]:
    """What was measured before, if it was this version of the model; else nothing.

    Raises:
        DataError: the file is there but is no record.
    """
    path = directory / build.RECORD_FILE
    if not path.is_file():
        return {}
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a record of a report ({error}): remove it to measure anew") from error
    return record if record.get("version") == version else {}


def record_for(examples: Sequence[Example], data: Path, split: str, version: str, record: dict[str, Any]) -> dict[str, Any]:
    """`record` if it was measured on these very examples; else a new one for them."""
    queries = {"file": data.name, "split": split, "n": len(examples), "sha256": dataset.fingerprint(examples)}
    return record if record.get("data") == queries else {"version": version, "data": queries}


def write_record(directory: Path, record: dict[str, Any]) -> Path:
    path = directory / build.RECORD_FILE
    write_json(path, record)
    return path


def measure(
    model: Path,
    version: str,
    examples: Sequence[Example],
    step: Step,
    *,
    taught: Sequence[Example] = (),
    baseline: tuple[Path, int] | None = None,
    formats: int = 0,
) -> Iterator[dict[str, Any]]:
    """Measure a GGUF on these examples; each part of the record comes as soon as it is known.

    Args:
        version: what the GGUF must be.
        taught: what the classifiers without a language model learn from; they are left out if there is nothing.
        baseline: the untuned base, and about how many of the examples to ask it.
        formats: with how many of the examples to compare weight formats.

    Raises:
        DataError: the GGUF is another version.
        ModelFileError: it cannot be used.
    """
    classifier = Classifier.open(model)
    card = classifier.card
    try:
        if card.version != version:
            raise DataError(f"{model} is version {card.version}, its directory says {version}: run `python -m trainer build` first")
        decisions = evaluate.decide(classifier, examples, lambda done: step(f"classifying, {done} of {len(examples)}"))
        figures = evaluate.evaluate(classifier.card, examples, decisions).as_dict()
    finally:
        classifier.close()
    yield {"time": datetime.now(UTC).isoformat(timespec="seconds"), "evaluation": figures}
    if taught:
        step(f"training the yardsticks on {len(taught)} examples")
        yield {"yardsticks": _yardsticks(taught, examples)}
    if formats:
        yield {"formats": _weight_formats(model, _spread(examples, formats), step)}
    if baseline:
        base, number = baseline
        asked = _spread(examples, number)
        yield {"baseline": asking.baseline(card, base, asked, lambda done: step(f"asking the untuned base, {done} of {2 * len(asked)}"))}


def _spread(examples: Sequence[Example], number: int) -> list[Example]:
    """That many of the examples, evenly spread: a split comes sorted by label."""
    number = min(number, len(examples))
    return [examples[index * len(examples) // number] for index in range(number)]


def _yardsticks(taught: Sequence[Example], examples: Sequence[Example]) -> dict[str, Any]:
    texts, truth = [example.text for example in examples], [example.label for example in examples]
    majority = yardsticks.majority(taught)
    found: dict[str, Any] = {"taught": len(taught), "majority": {"label": majority([""])[0]}, "tfidf_svm": {}}
    for name, predict in (("majority", majority), ("tfidf_svm", yardsticks.tfidf_svm(taught))):
        given = predict(texts)
        found[name] |= {"accuracy": round(agreement(given, truth), 4), "macro_f1": round(evaluate.macro_f1(truth, given), 4)}
    return found


def _weight_formats(model: Path, examples: Sequence[Example], step: Step) -> dict[str, Any]:
    """Each format against the file as it is, in turns, so that both see the same noise of the machine."""
    master_hash = content_hash(model)
    original = Classifier.open(model, options=_PLAIN)
    rows, own = [], {"seconds": 0.0, "tokens": 0}
    try:
        given = [decision.label for decision in evaluate.decide(original, examples)]
        with tempfile.TemporaryDirectory() as directory:
            for name in FORMATS:
                if name != original.weight_format:
                    step(f"measuring weight formats: {name}")
                    try:
                        path = in_format(model, name, Path(directory), master_hash)
                        rows.append(_one_format(name, path, original, given, examples, own))
                        forget(path)
                    except ModelFileError:  # llama.cpp cannot make every format of every shape
                        rows.append({"format": name})
    finally:
        original.close()
    as_it_is = {
        "format": original.weight_format,
        "megabytes": round(model.stat().st_size / 1e6),
        "accuracy": round(agreement(given, [example.label for example in examples]), 4),
        "agreement": 1.0,
        "tokens_per_s": round(own["tokens"] / own["seconds"]),
        "to_original": 1.0,
    }
    return {"n": len(examples), "cpu": cpu_name(), "cores": available_cores(), "rows": [as_it_is, *rows]}


def _one_format(
    name: str, path: Path, original: Classifier, given: Sequence[str], examples: Sequence[Example], own: dict[str, float]
) -> dict[str, Any]:
    candidate = Classifier.open(path, options=_PLAIN, check=False)
    seconds, ratios, tokens = 0.0, [], 0
    labels: list[str] = []
    try:
        for start in range(0, len(examples), _TURN):
            texts = [example.text for example in examples[start : start + _TURN]]
            started = time.perf_counter()
            original.classify(texts)
            turned = time.perf_counter()
            decisions = candidate.classify(texts)
            took = time.perf_counter() - turned
            own["seconds"] += turned - started
            seconds += took
            ratios.append((turned - started) / took)
            tokens += sum(decision.tokens for decision in decisions)
            labels += [decision.label for decision in decisions]
    finally:
        candidate.close()
    own["tokens"] += tokens
    return {
        "format": name,
        "megabytes": round(path.stat().st_size / 1e6),
        "accuracy": round(agreement(labels, [example.label for example in examples]), 4),
        "agreement": round(agreement(labels, given), 4),
        "tokens_per_s": round(tokens / seconds),
        "to_original": round(median(ratios), 2),
    }

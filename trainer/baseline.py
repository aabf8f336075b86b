"""The untuned base under the same labels, prompted with their names: what fine-tuning is worth.

It is asked in its own chat template; a thinking model is not let think.

Two ways of asking. Free: the model writes up to 24 tokens, greedily, and the answer counts if it is a label
and nothing else. Constrained: the worker's own engine chooses among the label names, exactly.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import llama_cpp

from trainer.build import build
from trainer.chat import chat_prompt, template_of
from trainer.dataset import Example
from trainer.evaluate import decide, macro_f1
from worker.classifier import Classifier, ModelCard
from worker.classifier.labels import agreement
from worker.classifier.model_file import METADATA_FORMATS, load
from worker.classifier.prompt import Prompt

Kind = Literal["label", "preamble", "invented"]
ANSWER_TOKENS = 24
LONGEST_QUERY = 512
"""Tokens of a query that the free model sees."""
NO_LABEL = "(no label)"


def baseline(card: ModelCard, base: Path, examples: Sequence[Example], progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Ask the base both ways about every example; figures for each, with the failures counted by kind.

    Args:
        progress: called with the number of questions asked so far, of two for each example.
    """
    prompt = chat_prompt(template_of(base), task(card))
    return {
        "n": len(examples),
        "base": card.base,
        "free": _free(card, prompt, base, examples, progress),
        "constrained": _constrained(card, prompt, base, examples, lambda done: progress(len(examples) + done)),
    }


def task(card: ModelCard) -> str:
    """What a person would ask of the model: the task, and every label with its description."""
    listed = "\n".join(f"- {label.name}: {label.description}" for label in card.labels.labels)
    return f"You sort messages into categories. Answer with the name of one category and nothing else.\nCategories:\n{listed}"


def judge(answer: str, names: Sequence[str]) -> tuple[str | None, Kind]:
    """The label that a free answer gives, and what kind of answer it is.

    Exactly a label counts (case and final punctuation aside); a label among other words is a preamble or
    explanation, its first label taken as meant; anything else is an invented label.
    """
    clean = answer.strip().strip(".\"'*` ").lower()
    for name in names:
        if clean == name.lower():
            return name, "label"
    found = [(match.start(), name) for name in names if (match := re.search(rf"\b{re.escape(name.lower())}\b", answer.lower()))]
    return (min(found)[1], "preamble") if found else (None, "invented")


def _free(card: ModelCard, prompt: Prompt, base: Path, examples: Sequence[Example], progress: Callable[[int], None]) -> dict[str, Any]:
    vocabulary = load(base, vocab_only=True)
    prefix = vocabulary.tokenize(prompt.prefix, parse_special=True, add_special=True)
    suffix = vocabulary.tokenize(prompt.suffix, parse_special=True)
    vocabulary.close()
    model = llama_cpp.Llama(str(base), n_ctx=len(prefix) + LONGEST_QUERY + len(suffix) + ANSWER_TOKENS, verbose=False)
    given, kinds, used = [], Counter[Kind](), Counter[str]()
    for number, example in enumerate(examples, start=1):
        query = model.tokenize(example.text.encode(), add_bos=False, special=False)[:LONGEST_QUERY]
        answer = model.create_completion(prefix + query + suffix, max_tokens=ANSWER_TOKENS, temperature=0.0)
        label, kind = judge(answer["choices"][0]["text"], card.labels.names)
        kinds[kind] += 1
        used[label or "(invented)"] += 1
        given.append(label if label and kind == "label" else NO_LABEL)
        progress(number)
    model.close()
    return _figures(examples, given, kinds, used)


def _constrained(
    card: ModelCard, prompt: Prompt, base: Path, examples: Sequence[Example], progress: Callable[[int], None]
) -> dict[str, Any]:
    metadata = {
        "format": METADATA_FORMATS[0],
        "labels": {
            "labels": [{"name": label.name, "description": label.description, "code": label.name} for label in card.labels.labels],
            "out_of_scope": card.labels.out_of_scope,
        },
        "prompt": asdict(prompt),
        "calibration": {"temperature": 1.0, "threshold": 0.0, "thresholds": {}},
        "evaluation": {},
        "probes": {"tolerance": 0.1, "probes": []},
        "training": {"name": f"{card.name} untuned", "version": "untuned", "base": card.base},
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "untuned.gguf"
        build(base, None, metadata, path)
        classifier = Classifier.open(path)
        given = [decision.label for decision in decide(classifier, examples, progress)]
        classifier.close()
    return _figures(examples, given, Counter[Kind]({"label": len(examples)}), Counter(given))


def _figures(examples: Sequence[Example], given: Sequence[str], kinds: Counter[Kind], used: Counter[str]) -> dict[str, Any]:
    truth, n = [example.label for example in examples], len(examples)
    share_right = agreement(given, truth)
    label, count = used.most_common(1)[0]
    return {
        "right": round(share_right * n),
        "accuracy": round(share_right, 4),
        "macro_f1": round(macro_f1(truth, given), 4),
        "preamble": kinds["preamble"],
        "invented": kinds["invented"],
        "most_used": {"label": label, "share": round(count / n, 4)},
    }

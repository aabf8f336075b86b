"""What a new model is held against before it is published: the network that was trained, and the model that it would replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer import build, evaluate, gate, learnt, parity, publish
from trainer.answers import Answers, prompt_hash
from trainer.base import BaseError
from trainer.dataset import Example
from trainer.recipe import Recipe, RecipeError
from trainer.terminal import Progress
from worker.classifier.calibration import Floats
from worker.classifier.labels import agreement
from worker.classifier.model_file import ModelCard, ModelFileError


@dataclass(frozen=True, slots=True)
class Published:
    """The model that a new one would replace."""

    labels: Sequence[str]
    test: Sequence[Example]
    """What both are compared on: the examples of the test part that this one was not trained on, as far as it tells."""
    answers: Sequence[str]
    """What it says to them."""


def published(recipe: Recipe, test: Sequence[Example], force: bool, say: Callable[[str], None], progress: Progress) -> Published | None:
    """The model in place and its answers to the test part; None if there is none, or it cannot be compared with and that is forced.

    It is asked before training, which takes long: a model that cannot be compared with is better known before.

    Raises:
        RecipeError: there is a published model, and nothing to compare it on, or it cannot be opened.
    """
    path = build.model_file_of(recipe.output)
    if not path.is_file() and not (recipe.output / build.METADATA_FILE).is_file():
        return None
    if not test:
        if force:
            return None
        raise RecipeError(f"without a test split no model can be compared with {path}: set split.test or test, or give --force")
    try:
        classifier = publish.open_model(recipe.output, lambda *done: progress("building the present model", *done))
    except (BaseError, build.BuildError, ModelFileError) as error:
        if force:
            say(f"replaces  the model in {recipe.output} unseen, since it cannot be opened: {error}")
            return None
        raise RecipeError(
            f"the model in {recipe.output}, which a new one is compared with, cannot be opened ({error}): "
            "mend that, replace it unseen with --force, or give another --output"
        ) from error
    decided = evaluate.decide(classifier, test, lambda done: progress("asking the present model", done, len(test)))
    answers = [decision.label for decision in decided]
    card = classifier.card
    classifier.close()
    accuracy = agreement(answers, [example.label for example in test])
    say(f"replaces  {path}, version {card.version}, test accuracy {accuracy:.4f}")
    kept = learnt.unlearnt(test, "test", card.training)
    if kept is None:
        say("          its own test split was another: it may have been trained on some of these examples")
        kept = list(range(len(test)))
    elif len(kept) < len(test):
        say(f"          the two are compared on the {len(kept)} of {len(test)} test examples that it has not learnt")
    return Published(card.labels.names, [test[row] for row in kept], [answers[row] for row in kept])


def unlike_the_network(
    recipe: Recipe, card: ModelCard, served: Answers, prompts: Sequence[Sequence[int]], trained: Floats, say: Callable[[str], None]
) -> str | None:
    """What is wrong with the GGUF as the form of what was trained; None if nothing.

    Queries that training cut shorter than the worker does are other queries to it, so they are passed over.

    Args:
        served: what the GGUF answers to the validation part.
        prompts: token ids of its queries in training.
        trained: the network's log-probabilities of them, shape (queries, labels).
    """
    alike = served.prompts == np.array([prompt_hash(ids) for ids in prompts], dtype=np.uint64)
    whole = served.lengths < recipe.training.max_query_tokens
    if other := int((whole & ~alike).sum()):
        return f"{other} queries of the validation split have other token ids in the GGUF than they had in training"
    if not alike.any():
        return (
            f"network and GGUF cannot be compared: all queries of the validation split are longer than training.max_query_tokens "
            f"({recipe.training.max_query_tokens}), so the model has learnt from beginnings and ends; raise it"
        )
    found = parity.compare("the trained network", trained[alike], served.scores[alike], card)
    say(f"parity    network and GGUF: {found.same_label:.1%} same label, probabilities {found.mean_difference:.4f} apart on average")
    return parity.complaint(found, recipe.gate)


def judge(recipe: Recipe, card: ModelCard, answers: Answers | None, present: Published | None, test: Sequence[Example]) -> gate.Verdict:
    """Whether the new model may be published.

    Args:
        answers: the new model's to the test part; None if there is none.
    """
    given = [decision.label for decision in answers.decisions(card)] if answers else []
    alone = gate.first(given, test, recipe.gate)
    if present is None:
        return alone
    by_example, limits = dict(zip(test, given, strict=True)), recipe.gate.model_copy(update={"least_accuracy": None})
    new = [by_example[each] for each in present.test]
    compared = gate.compare(present.answers, new, present.test, present.labels, card.labels.names, limits)
    if alone.passed:
        return replace(compared, accuracy=alone.accuracy)
    return replace(alone, reasons=(*alone.reasons, *compared.reasons), p_worse=compared.p_worse)

"""Small made-up values that several unit tests share."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence

from trainer.dataset import Example
from worker.classifier import Decision, ModelCard
from worker.classifier.calibration import Calibration
from worker.classifier.labels import Label, LabelSet
from worker.classifier.prompt import Prompt


def a_card(*names: str) -> ModelCard:
    """A model that asks for 0.5, for `water heater` 0.8."""
    chosen = names or ("pool", "water heater", "out_of_scope")
    labels = tuple(Label(name, "", chr(ord("A") + number)) for number, name in enumerate(chosen))
    return ModelCard(
        labels=LabelSet(labels, "out_of_scope" if "out_of_scope" in chosen else None),
        prompt=Prompt("", "\n"),
        calibration=Calibration(1.0, 0.5, {"water heater": 0.8}),
        probes=(),
        probe_tolerance=0.1,
        evaluation={},
        training={},
        name="made-up",
        version="abc123",
        base="nothing",
    )


def a_decision(label: str = "pool", confidence: float = 0.9, *, tokens: int = 5, truncated: bool = False) -> Decision:
    return Decision(label, confidence, {label: confidence}, tokens, truncated)


def made_up_examples(count: int, seed: int = 0) -> list[Example]:
    """Texts that are nothing like each other, of three labels."""
    dice = random.Random(seed)
    return [Example("".join(dice.choices(string.ascii_lowercase, k=20)), dice.choice(["a", "b", "c"])) for _ in range(count)]


class StandIn:
    """A model that decides as it is told. Like a real one it must not be used once it is closed."""

    weight_format = "none"

    def __init__(self, decide: Callable[[Sequence[str]], list[Decision]], card: ModelCard | None = None) -> None:
        self.card = card or a_card()
        self.closed = False
        self._decide = decide

    def classify(self, texts: Sequence[str]) -> list[Decision]:
        assert not self.closed, "used after it was closed"
        return self._decide(texts)

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True

"""A worker whose model is a stand-in that decides at once, or at a set pace: to measure everything but the model.

python -m worker.bench.stand_in MODEL SECONDS_PER_MESSAGE; settings come from the environment as always.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from worker.app import serve
from worker.classifier import Decision, ModelCard
from worker.classifier.model_file import load, parse_card
from worker.logs import configure
from worker.settings import Settings, load_settings


class StandIn:
    """Answers each text with the next label; sleeps `pace_s` a text, as if it computed."""

    weight_format = "none"

    def __init__(self, card: ModelCard, pace_s: float) -> None:
        self.card = card
        self._pace_s = pace_s
        names = card.labels.names
        self._decisions = [Decision(name, 1.0, {name: 1.0}, 1, truncated=False) for name in names]
        self._count = 0

    def classify(self, texts: Sequence[str]) -> list[Decision]:
        if self._pace_s:
            time.sleep(self._pace_s * len(texts))
        self._count += len(texts)
        return [self._decisions[number % len(self._decisions)] for number in range(self._count - len(texts), self._count)]

    def close(self) -> None:
        pass


def main(model: Path, pace_s: float) -> None:
    settings = load_settings(model=model)
    configure(settings.log_level, settings.log_format)

    def open_stand_in(settings: Settings) -> StandIn:
        loaded = load(settings.model, vocab_only=True)
        card = parse_card(loaded.metadata, str(settings.model))
        loaded.close()
        return StandIn(card, pace_s)

    uvloop.run(serve(settings, open_stand_in))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))

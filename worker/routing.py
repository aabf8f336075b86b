"""Policy: a decision -> a destination stream. Pure.

Two things send a query to review: the model's own out-of-scope label, and a confidence below the label's
threshold. Both were measured (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worker.classifier import Decision, ModelCard
from worker.classifier.labels import slug

Outcome = Literal["routed", "review", "dead"]


@dataclass(frozen=True, slots=True)
class Streams:
    """The names of all streams. In Redis Cluster the namespace is a hash tag, such as `{pointsman}`."""

    namespace: str = "pointsman"

    @property
    def queries(self) -> str:
        return f"{self.namespace}:queries"

    @property
    def review(self) -> str:
        return f"{self.namespace}:review"

    @property
    def dead(self) -> str:
        return f"{self.namespace}:dead"

    @property
    def seen(self) -> str:
        """Not a stream: the sorted set of message ids published of late, where repeated messages are dropped."""
        return f"{self.namespace}:seen"

    def topic(self, label: str) -> str:
        """The stream of one label."""
        return f"{self.namespace}:topic:{slug(label)}"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a query goes, and which kind of place that is."""

    stream: str
    outcome: Outcome


def route(decision: Decision, card: ModelCard, streams: Streams) -> Destination:
    """The label's topic; review where the query is out of scope or the model is unsure."""
    unsure = not card.calibration.sure(decision.label, decision.confidence)
    if unsure or decision.label == card.labels.out_of_scope:
        return Destination(streams.review, "review")
    return Destination(streams.topic(decision.label), "routed")

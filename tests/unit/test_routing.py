from __future__ import annotations

import pytest

from tests.unit.parts import a_card, a_decision
from worker.routing import Destination, Streams, route

STREAMS = Streams("ns")


@pytest.mark.parametrize(
    ("label", "confidence", "destination"),
    [
        ("pool", 0.9, Destination("ns:topic:pool", "routed")),
        ("pool", 0.5, Destination("ns:topic:pool", "routed")),
        ("pool", 0.4999, Destination("ns:review", "review")),
        ("water heater", 0.75, Destination("ns:review", "review")),
        ("water heater", 0.8, Destination("ns:topic:water-heater", "routed")),
        ("out_of_scope", 1.0, Destination("ns:review", "review")),
        ("pool", float("nan"), Destination("ns:review", "review")),
    ],
)
def test_a_query_goes_to_its_topic_unless_out_of_scope_or_unsure(label: str, confidence: float, destination: Destination) -> None:
    assert route(a_decision(label, confidence), a_card(), STREAMS) == destination


@pytest.mark.parametrize(
    ("label", "stream"),
    [("Water Heater", "water-heater"), ("a/b: c", "a-b-c"), ("out_of_scope", "out_of_scope"), (" Küche! ", "küche")],
)
def test_a_topic_is_named_by_the_words_of_its_label(label: str, stream: str) -> None:
    assert Streams("ns").topic(label) == f"ns:topic:{stream}"


def test_all_streams_carry_the_namespace_and_its_hash_tag() -> None:
    streams = Streams("{pm}")
    assert (streams.queries, streams.review, streams.dead, streams.topic("x")) == (
        "{pm}:queries", "{pm}:review", "{pm}:dead", "{pm}:topic:x",
    )  # fmt: skip


def test_each_label_has_a_stream_of_its_own() -> None:
    assert len({STREAMS.topic(name) for name in a_card().labels.names}) == 3

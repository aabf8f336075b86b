"""How answers of an untuned model are judged; tests/integration/test_baseline.py asks it for real."""

from __future__ import annotations

import pytest

from trainer.baseline import judge

NAMES = ("pool", "pool heater", "garden fence")


@pytest.mark.parametrize(
    ("answer", "label", "kind"),
    [
        ("pool", "pool", "label"),
        (" Pool heater.\n", "pool heater", "label"),
        ('"garden fence"', "garden fence", "label"),
        ("The category is: garden fence", "garden fence", "preamble"),
        ("pool, since pumps hum", "pool", "preamble"),
        ("garden fence or pool", "garden fence", "preamble"),
        ("swimming", None, "invented"),
        ("pools", None, "invented"),
        ("", None, "invented"),
    ],
)
def test_only_a_label_and_nothing_else_counts_as_an_answer(answer: str, label: str | None, kind: str) -> None:
    assert judge(answer, NAMES) == (label, kind)

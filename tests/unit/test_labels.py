from __future__ import annotations

import pytest

from worker.classifier.labels import Label, LabelSet, agreement


def label_set(*pairs: tuple[str, str], out_of_scope: str | None = None) -> LabelSet:
    return LabelSet(tuple(Label(name, "", code) for name, code in pairs), out_of_scope)


def test_names_and_codes_keep_the_order_of_the_labels() -> None:
    labels = label_set(("pool", "B"), ("car", "A"))
    assert (labels.names, labels.codes, len(labels)) == (("pool", "car"), ("B", "A"), 2)


@pytest.mark.parametrize(
    ("pairs", "out_of_scope", "complaint"),
    [
        ([("pool", "A")], None, "at least two"),
        ([("", "A"), ("car", "B")], None, "name is empty"),
        ([("pool", ""), ("car", "B")], None, "code is empty"),
        ([("pool", "A"), ("pool", "B")], None, "names used twice: pool"),
        ([("pool", "A"), ("car", "A")], None, "codes used twice: A"),
        ([("water heater", "A"), ("Water-Heater", "B")], None, "'water heater' and 'Water-Heater' would both be published to the topic"),
        ([("pool", "A"), ("car", "B")], "other", "'other' is not in the label set"),
    ],
)
def test_a_label_set_that_cannot_work_is_refused(pairs: list[tuple[str, str]], out_of_scope: str | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        label_set(*pairs, out_of_scope=out_of_scope)


def test_agreement_is_the_share_of_equal_labels() -> None:
    assert agreement(["pool", "car", "pool"], ["pool", "pool", "pool"]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no queries"):
        agreement([], [])
    with pytest.raises(ValueError, match="shorter"):
        agreement(["pool", "car"], ["pool"])

from __future__ import annotations

import pytest

from worker.classifier.labels import Label, LabelSet, choose_codes


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
        ([("pool", "A"), ("car", "B")], "other", "'other' is not in the label set"),
    ],
)
def test_a_label_set_that_cannot_work_is_refused(pairs: list[tuple[str, str]], out_of_scope: str | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        label_set(*pairs, out_of_scope=out_of_scope)


def test_codes_are_the_first_candidates_that_are_one_token() -> None:
    def without_b(text: str) -> list[int]:
        return [1, 2] if "B" in text else [1]

    assert choose_codes(["x", "y", "z"], without_b) == ("A", "C", "D")


def test_codes_of_two_letters_follow_once_the_single_letters_are_used_up() -> None:
    codes = choose_codes([str(number) for number in range(28)], lambda _: [1])
    assert codes[25:] == ("Z", "AA", "AB")
    assert len(set(codes)) == 28


def test_a_vocabulary_with_too_few_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1 single-token codes, 2 labels"):
        choose_codes(["x", "y"], lambda text: [1] if text == "A" else [1, 2])

from __future__ import annotations

import pytest

from worker.classifier.labels import Label, LabelSet, agreement, choose_codes


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


def one_token(text: str) -> list[int]:
    return [int.from_bytes(text.encode())]


def test_codes_are_the_first_candidates_that_are_one_token() -> None:
    def without_b(text: str) -> list[int]:
        return [1, 2] if "B" in text else one_token(text)

    assert choose_codes(["x", "y", "z"], without_b) == ("A", "C", "D")


def test_codes_of_two_letters_follow_once_the_single_letters_are_used_up() -> None:
    codes = choose_codes([str(number) for number in range(28)], one_token)
    assert codes[25:] == ("Z", "AA", "AB")
    assert len(set(codes)) == 28


def test_a_vocabulary_with_too_few_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1 single-token codes, 2 labels"):
        choose_codes(["x", "y"], lambda text: [1] if text == "A" else [1, 2])


def test_a_vocabulary_without_capitals_has_codes_too_and_no_token_stands_for_two_labels() -> None:
    """One tokenizer folds case, so that 'A' and 'a' are one token; the other knows no capitals. Both know few letters alone."""

    def folding(text: str) -> list[int]:
        return one_token(text.lower()) if text.lower() in {"a", "e", "er", "on", "the"} else [0, 0]

    def without_capitals(text: str) -> list[int]:
        return one_token(text) if text in {"a", "e", "er", "on", "the"} else [0, 0]

    assert choose_codes(list("12345"), folding) == ("A", "E", "ER", "ON", "THE")
    assert choose_codes(list("12345"), without_capitals) == ("a", "e", "er", "on", "the")
    with pytest.raises(ValueError, match="has 5 single-token codes, 6 labels"):
        choose_codes(list("123456"), folding)


def test_agreement_is_the_share_of_equal_labels() -> None:
    assert agreement(["pool", "car", "pool"], ["pool", "pool", "pool"]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no queries"):
        agreement([], [])
    with pytest.raises(ValueError, match="shorter"):
        agreement(["pool", "car"], ["pool"])

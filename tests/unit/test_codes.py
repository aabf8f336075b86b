from __future__ import annotations

import pytest

from trainer.codes import choose_codes


def one_token(text: str) -> list[int]:
    return [int.from_bytes(text.encode())]


def test_labels_without_words_get_the_first_letters_that_are_one_token() -> None:
    def without_b(text: str) -> list[int]:
        return [1, 2] if "B" in text else one_token(text)

    assert choose_codes(["1", "2", "3"], without_b) == ("A", "C", "D")


def test_codes_of_two_letters_follow_once_the_single_letters_are_used_up() -> None:
    codes = choose_codes([str(number) for number in range(28)], one_token)
    assert codes[25:] == ("Z", "AA", "AB")
    assert len(set(codes)) == 28


def test_a_vocabulary_with_too_few_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1 single-token codes, 2 labels"):
        choose_codes(["1", "2"], lambda text: [1] if text == "A" else [1, 2])


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


WORDS = {" card", " arrival", " delivery", " top", " up", " failed", " my"}


def words(text: str) -> list[int]:
    """A vocabulary of these words and single letters."""
    return one_token(text) if text in WORDS or len(text) == 1 else [0, 0]


def test_a_label_is_answered_with_the_word_of_its_name_that_fewest_others_have() -> None:
    names = ["card_arrival", "Card delivery", "upFailed", "my card"]
    assert choose_codes(names, words) == (" arrival", " delivery", " failed", " card")


def test_as_many_labels_as_possible_get_a_word_and_the_others_letters() -> None:
    """A greedy choice would give " up" or " top" to the first of them."""
    codes = choose_codes(["top up failed", "up", "top", "top up"], words)
    assert codes[0] == " failed"
    assert set(codes[1:]) == {" up", " top", "A"}


def test_a_code_that_a_person_chose_is_not_chosen_again() -> None:
    assert choose_codes(["card", "card arrival"], words, {"card arrival": " card"}) == ("A", " card")

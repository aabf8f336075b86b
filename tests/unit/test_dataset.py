from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import made_up_examples
from trainer.dataset import (
    PARTS,
    DataError,
    Example,
    check_labels,
    fingerprint,
    load_examples,
    load_rows,
    part_of,
    split,
    without_copies,
)
from trainer.near_duplicates import frames, near_duplicate_clusters, near_duplicates, words

ROW = {"instruction": "i", "input": "my pool", "output": "pool"}


def file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.json", json.dumps([ROW])),
        ("d.json", "\ufeff" + json.dumps([ROW])),
        ("d.jsonl", json.dumps(ROW) + "\n\n"),
        ("d.jsonl", json.dumps(ROW) + "\r\n"),
        ("d.json", json.dumps([{"text": "my pool", "label": "pool"}])),
        ("d.jsonl", json.dumps({"text": "my pool", "label": "pool", "input": "of a form"}) + "\n"),
        ("d.csv", "text,label\nmy pool,pool\n"),
        ("D.CSV", "text,label\nmy pool,pool\n"),
        ("d.csv", 'label,text\r\npool,"my pool"\r\n'),
    ],
)
def test_each_kind_of_file_gives_the_same_examples(tmp_path: Path, name: str, content: str) -> None:
    assert load_examples(file(tmp_path, name, content)) == [Example("my pool", "pool")]


def test_spaces_around_a_label_are_none_of_it(tmp_path: Path) -> None:
    assert load_examples(file(tmp_path, "d.csv", "text,label\nhello, card \nbye,card,\n")) == [
        Example("hello", "card"),
        Example("bye", "card"),
    ]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\u000b", "\u001c"])
def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path, separator: str) -> None:
    text = f"my{separator}pool"
    row = json.dumps(ROW | {"input": text}, ensure_ascii=False)
    assert load_examples(file(tmp_path, "d.jsonl", row)) == [Example(text, "pool")]
    assert load_examples(file(tmp_path, "d.csv", f"text,label\n{text},pool\n")) == [Example(text, "pool")]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("d.json", "[]", "holds no rows"),
        ("d.json", "", "holds no rows"),
        ("d.json", "[{", "is not a JSON array"),
        ("d.jsonl", json.dumps(ROW) + "\n{", "line 2, is not JSON"),
        ("d.json", b"[\xff]", "is not UTF-8 text"),
        ("d.json", json.dumps([ROW, 5]), "row 2: not an object but int"),
        ("d.json", json.dumps([{"input": "x"}]), "row 1: output missing"),
        ("d.json", json.dumps([ROW | {"input": " ", "output": 3}]), "row 1: input, output missing"),
        ("d.json", json.dumps([ROW, ROW | {"input": "half \ud83c"}]), "row 2: input missing, empty or not text"),
        ("d.csv", "text,label\nonly\n", "row 2: label missing"),
        ("d.csv", "text,label\nmy card, it is gone,card\n", "row 2: more fields than the header has"),
        ("d.csv", "text;label\nhello;card\n", "its header is 'text;label'; the columns text and label"),
        ("d.csv", "", "its header is ''"),
        ("d.csv", "text,label\n" + "x" * 200_000 + ",pool\n", "is not CSV"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, name: str, content: str | bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_examples(file(tmp_path, name, content))


def test_many_bad_rows_are_counted_and_ten_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_examples(file(tmp_path, "d.json", json.dumps([1] * 12)))
    assert "12 bad row(s)" in str(caught.value)
    assert "row 10:" in str(caught.value)
    assert "row 11:" not in str(caught.value)
    assert "and 2 more" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_examples(tmp_path / "none.json")


def test_labels_that_are_not_known_are_named_with_their_rows(tmp_path: Path) -> None:
    path = file(tmp_path, "d.csv", "text,label\nx,pool\ny,cat\nz,cat\nw,dog\n" + "v,cat\n" * 5)
    rows = load_rows(path)
    with pytest.raises(DataError) as caught:
        check_labels(rows, ["pool"], path, "the recipe")
    said = str(caught.value).splitlines()
    assert said[0] == f"{path} has labels that the recipe does not know:"
    assert [line.strip() for line in said[1:]] == ["'cat' (7 rows): rows 3, 4, 6, 7, 8, ...", "'dog' (1 rows): row 5"]
    assert check_labels(rows, ["pool", "cat", "dog", "unused"], path, "the recipe") == [row.example for row in rows]
    with pytest.raises(DataError, match="that the model does not know"):
        part_of(path, "all", {}, ["pool"])


def test_the_fingerprint_changes_with_text_label_and_order() -> None:
    a, b = Example("x", "pool"), Example("y", "car")
    variants = [[a, b], [b, a], [a], [Example("x", "car"), b], [Example("xy", "pool"), Example("", "car")]]
    assert len({fingerprint(rows) for rows in variants}) == len(variants)
    assert fingerprint([a, b]) == fingerprint([Example("x", "pool"), Example("y", "car")])


def test_words_ignore_case_punctuation_and_apostrophes() -> None:
    assert words("Don't -- stop, WON’T 2 x!") == ["dont", "stop", "wont", "2", "x"]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("My pool pump is humming", "my pool pump is humming!!", True),
        ("My pool pump is humming", "my pool pump was humming", True),
        ("My pool pump is humming", "the fence post is rotten", False),
    ],
)
def test_near_duplicates_are_texts_that_share_most_of_their_letters(left: str, right: str, same: bool) -> None:
    assert near_duplicates(["something else entirely", left, right]) == ([(1, 2)] if same else [])


def test_chains_of_near_duplicates_form_one_cluster() -> None:
    texts = ["the pool pump is humming loudly", "unrelated", "the pool pump is humming", "a pool pump is humming"]
    assert sorted(map(sorted, near_duplicate_clusters(texts))) == [[0, 2, 3], [1]]


@given(st.lists(st.text(max_size=12), max_size=12))
def test_clusters_hold_every_text_once(texts: list[str]) -> None:
    assert sorted(index for cluster in near_duplicate_clusters(texts) for index in cluster) == list(range(len(texts)))


def test_a_thousand_equal_texts_are_one_cluster_and_no_million_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counting(texts: Sequence[str]) -> list[tuple[int, int]]:
        compared.append(len(texts))
        return near_duplicates(texts)

    monkeypatch.setattr("trainer.near_duplicates.near_duplicates", counting)
    texts = ["hello", "the pool is green"] + ["Hello!"] * 1000
    assert sorted(map(len, near_duplicate_clusters(texts))) == [1, 1001]
    assert compared == [2]


def test_a_part_that_a_model_does_not_take_from_its_data_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "d.csv", "text,label\n" + "".join(f"{number * 'ab'} {number},pool\n" for number in range(1, 40)))
    training = {"recipe": {"split": {"seed": 1, "validation": 0.5, "test": 0}}}
    assert part_of(path, "validation", training)
    with pytest.raises(DataError, match=r"takes no test part from its data .* --split all"):
        part_of(path, "test", training)


def test_a_split_holds_every_example_once_and_keeps_the_shares_of_each_label() -> None:
    examples = made_up_examples(600)
    parts = split(examples, seed=1, validation=0.15, test=0.2)
    assert sorted(e.text for part in PARTS for e in parts[part]) == sorted(e.text for e in examples)
    for label in "abc":
        total = sum(e.label == label for e in examples)
        for part, share in zip(PARTS[1:], (0.15, 0.2), strict=True):
            assert abs(sum(e.label == label for e in parts[part]) - total * share) <= 1


def test_near_duplicates_stay_together_even_with_different_labels() -> None:
    twins = [Example(e.text + suffix, label) for e in made_up_examples(60) for suffix, label in (("", e.label), ("!", "b"))]
    parts = split(twins, seed=3, validation=0.3, test=0.3)
    place = {e.text: part for part in PARTS for e in parts[part]}
    assert [text for text in place if not text.endswith("!") and place[text] != place[text + "!"]] == []
    assert all(parts.values())


@given(st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_rows(dice: random.Random) -> None:
    examples = made_up_examples(40) + [Example(e.text + "?", "a") for e in made_up_examples(10)]
    shuffled = examples[:]
    dice.shuffle(shuffled)
    left, right = (split(rows, seed=5, validation=0.2, test=0.2) for rows in (examples, shuffled))
    assert {part: set(left[part]) for part in PARTS} == {part: set(right[part]) for part in PARTS}


def test_another_seed_gives_another_split() -> None:
    examples = made_up_examples(100)
    assert split(examples, seed=1, validation=0.2, test=0.2)["test"] != split(examples, seed=2, validation=0.2, test=0.2)["test"]


def test_texts_with_the_same_little_words_share_a_frame() -> None:
    found = frames(["Why does my pump hum at night?", "why does my old fence creak at dawn", "Fix fence"])
    assert found == {"why does my _ at _": [0, 1]}


def plain_near_duplicates(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    """What the definition says, pair by pair."""

    def trigrams(text: str) -> set[str]:
        line = f"  {' '.join(words(text))}  "
        return {line[i : i + 3] for i in range(len(line) - 2)}

    sets = [trigrams(text) for text in texts]
    return [
        (left, right)
        for right in range(len(sets))
        for left in range(right)
        if len(sets[left] & sets[right]) >= threshold * len(sets[left] | sets[right])
    ]


@given(st.lists(st.text(alphabet="abc é", max_size=12), max_size=12), st.sampled_from([0.3, 0.6, 1.0]))
def test_near_duplicates_are_those_of_the_definition(texts: list[str], threshold: float) -> None:
    assert near_duplicates(texts, threshold) == plain_near_duplicates(texts, threshold)


def test_near_duplicates_are_found_beyond_one_block_of_rows() -> None:
    texts = [example.text for example in made_up_examples(700)]
    texts[650] = texts[3] + "s"
    assert near_duplicates(texts) == [(3, 650)]


def test_examples_that_copy_held_out_ones_are_left_out_and_copies_among_themselves_stay() -> None:
    held_out = [Example("Who fixed the pool pump last year?", "pool")]
    more = [Example("who fixed the pool pump last year", "pool"), Example("My gate sticks", "fence"), Example("my gate sticks!", "fence")]
    assert without_copies(more, of=held_out) == more[1:]
    assert without_copies(more, of=[]) == more

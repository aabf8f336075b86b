from __future__ import annotations

from trainer.dataset import Example
from trainer.parts import fair_share


def file(name: str, length: int) -> list[Example]:
    return [Example(f"{name} {number}", name) for number in range(length)]


def counts(taken: list[Example]) -> dict[str, int]:
    return {name: sum(example.label == name for example in taken) for name in ("data", "more", "corrections")}


def test_small_files_are_taken_whole_and_larger_ones_share_what_room_is_left() -> None:
    taken = fair_share([file("data", 500), file("more", 900), file("corrections", 20)], 220, "seed")
    assert counts(taken) == {"data": 100, "more": 100, "corrections": 20}
    assert len(set(taken)) == 220


def test_all_are_taken_if_there_is_room() -> None:
    assert counts(fair_share([file("data", 5), file("more", 9)], 100, "seed")) == {"data": 5, "more": 9, "corrections": 0}


def test_each_model_to_go_on_from_draws_others() -> None:
    files = [file("data", 500)]
    assert fair_share(files, 50, "0:abc") == fair_share(files, 50, "0:abc") != fair_share(files, 50, "0:def")

"""The benchmark's comparison with llama-server, against a stand-in for it (stand_in_llama_server.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.bench.llama_server import llama_server
from worker.classifier import Classifier
from worker.errors import Fatal

STAND_IN = Path(__file__).with_name("stand_in_llama_server.py")


def test_all_texts_are_sent_and_answered(household: Classifier, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER", " pool")
    with llama_server(STAND_IN, model_file, household.card, 8) as send:
        assert send(["My pool pump is humming"] * 40) == 40


def test_an_answer_outside_the_labels_is_no_result(household: Classifier, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER", "Sure, here is")
    with llama_server(STAND_IN, model_file, household.card, 8) as send, pytest.raises(Fatal, match="none of the labels"):
        send(["My pool pump is humming"])


def test_a_server_that_does_not_start_is_reported_with_its_words(
    household: Classifier, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSWER", "nothing")
    with pytest.raises(Fatal, match="no such model"), llama_server(STAND_IN, model_file, household.card, 8):
        pass


def test_a_binary_that_is_not_there_is_named(household: Classifier, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="--llama-server wants"), llama_server(tmp_path / "none", model_file, household.card, 8):
        pass

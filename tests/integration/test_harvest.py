"""Corrections on a real Redis become data; without --show-text no text is printed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support import MODEL_DIRECTORY, Queue, assert_clear_failure, command
from trainer.dataset import Example, load_examples


@pytest.fixture
def corrections(queue: Queue) -> str:
    return f"{queue.namespace}:corrections"


def correct(queue: Queue, stream: str, **fields: str) -> str:
    return cast("bytes", queue.redis.xadd(stream, cast("Any", fields))).decode()


def harvest(queue: Queue, redis_url: str, output: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    where = ("--redis-url", redis_url, "--namespace", queue.namespace, "--output", output, "--model", MODEL_DIRECTORY)
    return command("harvest", *where, *options, module="trainer")


def report(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr.decode()
    return dict(json.loads(done.stdout))


def test_corrections_become_data_once(queue: Queue, corrections: str, redis_url: str, tmp_path: Path) -> None:
    output = tmp_path / "corrections.json"
    correct(queue, corrections, id="1", text="My pump hums", label="pool")
    correct(queue, corrections, id="2", text="The gate sticks", label="car")
    bad = correct(queue, corrections, id="3", text="The bell is dead", label="bell ringing")
    last = correct(queue, corrections, id="2", text="The gate sticks", label="fence")

    first = report(harvest(queue, redis_url, output, "--json"))
    assert {name: first[name] for name in ("new", "changed", "known", "trimmed", "rows")} == {
        "new": 2, "changed": 1, "known": 0, "trimmed": 0, "rows": 2,
    }  # fmt: skip
    assert first["unusable"] == [{"stream_id": bad, "id": "3", "reason": "label is none of the model's 19"}]
    assert load_examples(output) == [Example("My pump hums", "pool"), Example("The gate sticks", "fence")]
    written = output.read_bytes()
    assert json.loads(written)[1]["stream_id"] == last

    again = report(harvest(queue, redis_url, output, "--json", "--trim"))
    assert (again["new"], again["changed"], again["known"], again["trimmed"]) == (0, 0, 3, 3)
    assert output.read_bytes() == written
    assert [entry_id for entry_id, _ in queue.read(corrections)] == [bad], "what cannot be learnt from stays"

    correct(queue, corrections, id="1", text="My pump hums", label="fountain")
    assert report(harvest(queue, redis_url, output, "--json"))["changed"] == 1
    assert load_examples(output)[0] == Example("My pump hums", "fountain")


def test_more_than_a_page_is_harvested_and_trimmed(queue: Queue, corrections: str, redis_url: str, tmp_path: Path) -> None:
    pipe = queue.redis.pipeline(transaction=False)
    for number in range(1203):
        pipe.xadd(corrections, {"id": str(number), "text": f"The pool is green again, number {number}", "label": "pool"})
    pipe.execute()
    found = report(harvest(queue, redis_url, tmp_path / "corrections.json", "--json", "--trim"))
    assert (found["new"], found["trimmed"], found["rows"]) == (1203, 1203, 1203)
    assert queue.read(corrections) == []


def test_texts_are_printed_only_when_asked_for(queue: Queue, corrections: str, redis_url: str, tmp_path: Path) -> None:
    correct(queue, corrections, id="3", text="My pump hums at night", label="My pump hums at night")
    correct(queue, corrections, id="4", text="The gate squeaks", label="fence")
    silent = harvest(queue, redis_url, tmp_path / "a.json")
    assert silent.returncode == 0, silent.stderr.decode()
    assert b"'3'  label is none of the model's 19" in silent.stdout
    assert b"pump" not in silent.stdout + silent.stderr
    assert b"squeaks" not in silent.stdout + silent.stderr
    assert b"pump" in harvest(queue, redis_url, tmp_path / "a.json", "--show-text").stdout


def test_nothing_to_harvest_makes_no_file(queue: Queue, redis_url: str, tmp_path: Path) -> None:
    assert report(harvest(queue, redis_url, tmp_path / "a.json", "--json"))["rows"] == 0
    assert not (tmp_path / "a.json").exists()


def test_a_file_that_cannot_be_written_leaves_the_stream_as_it_was(queue: Queue, corrections: str, redis_url: str, tmp_path: Path) -> None:
    correct(queue, corrections, id="4", text="The gate squeaks", label="fence")
    done = harvest(queue, redis_url, tmp_path / "no such directory" / "a.json", "--trim")
    assert_clear_failure(done, "cannot write", exit_code=1)
    assert len(queue.read(corrections)) == 1


def test_a_redis_that_does_not_answer_is_named(queue: Queue, tmp_path: Path) -> None:
    assert_clear_failure(harvest(queue, "redis://127.0.0.1:1", tmp_path / "a.json"), "cannot reach Redis at 127.0.0.1:1", exit_code=1)
    assert_clear_failure(harvest(queue, "http://x", tmp_path / "a.json"), "not a Redis URL", exit_code=1)


def test_a_key_of_another_kind_is_named(queue: Queue, corrections: str, redis_url: str, tmp_path: Path) -> None:
    queue.redis.set(corrections, "hello")
    assert_clear_failure(harvest(queue, redis_url, tmp_path / "a.json"), "WRONGTYPE", exit_code=1)

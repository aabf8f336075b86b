"""What a person or a script sees of `python -m worker`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import StartWorker
from tests.support import MODEL, PATIENCE_S, ROOT, Queue, RedisServer, assert_clear_failure, command, environment, wait_for
from worker.embedded_redis import embedded_redis, free_port
from worker.errors import Fatal


def rows(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    """The JSON lines that a command printed, having exited 0 with nothing on standard error."""
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_old_dead_letters_are_purged_and_young_ones_stay(queue: Queue, redis_url: str) -> None:
    where: dict[str, Any] = {"redis_url": redis_url, "namespace": queue.namespace}
    queue.redis.xadd(queue.streams.dead, {"pointsman.reason": "poison"}, id="1000-1")
    queue.redis.xadd(queue.streams.dead, {"pointsman.reason": "empty_text"}, id="2000-1")
    young: Any = queue.redis.xadd(queue.streams.dead, {"pointsman.reason": "poison"})
    assert rows(command("dead", "purge", "--older-than", "1d", "--reason", "poison", "--json", **where)) == [{"purged": 1}]
    done = command("dead", "purge", "--older-than", "12h", **where)
    assert (done.returncode, done.stderr.decode().strip()) == (0, "purged 1")
    assert [entry_id for entry_id, _ in queue.read(queue.streams.dead)] == [young.decode()]
    for age in ("soon", "5", "-1d", ""):
        assert_clear_failure(command("dead", "purge", "--older-than", age, **where), "is not an age")


def test_classify_prints_a_decision_for_each_argument(model_file: Path) -> None:
    found = rows(command("classify", "--json", "how do i bake bread", "gate latch broken", model=model_file))
    assert [row["text"] for row in found] == ["how do i bake bread", "gate latch broken"]
    assert [row["label"] for row in found] == ["cooking", "fence"]
    assert set(found[0]) == {"text", "label", "confidence", "probabilities", "tokens", "truncated"}
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_classify_reads_lines_of_standard_input(model_file: Path) -> None:
    stdin = "how do i bake bread\r\n\n  \nça coule 🏊\n".encode() + b"caf\xe9\nno newline at the end"
    found = rows(command("classify", "--json", stdin=stdin, model=model_file))
    assert [row["text"] for row in found] == ["how do i bake bread", "ça coule 🏊", "caf\ufffd", "no newline at the end"]
    assert command("classify", stdin=b"", model=model_file).stdout == b""


def test_classify_for_people_names_label_and_confidence(model_file: Path) -> None:
    done = command("classify", "how do i [bold]bake[/bold] bread", model=model_file)
    assert done.returncode == 0
    label, confidence, text = done.stdout.decode().split(maxsplit=2)
    assert (label, confidence[-1], text.strip()) == ("cooking", "%", "how do i [bold]bake[/bold] bread")


def test_send_prints_the_ids_of_what_it_put_on_the_stream(queue: Queue, redis_url: str) -> None:
    where: dict[str, Any] = {"redis_url": redis_url, "namespace": queue.namespace}
    plain = command("send", "one", "two", **where)
    assert plain.returncode == 0
    by_stdin = rows(command("send", "--json", stdin=b"three\nfour\n", **where))
    sent = queue.read(queue.streams.queries)
    assert [fields for _, fields in sent] == [{b"text": text} for text in (b"one", b"two", b"three", b"four")]
    assert plain.stdout.decode().split() == [entry_id for entry_id, _ in sent[:2]]
    assert by_stdin == [{"id": entry_id, "stream": queue.streams.queries} for entry_id, _ in sent[2:]]


def test_tail_shows_what_was_and_follows_what_comes(queue: Queue, redis_url: str) -> None:
    own: dict[Any, Any] = {"pointsman.id": "1-0", "pointsman.label": "pool", "pointsman.confidence": "0.9876"}
    queue.redis.xadd(queue.streams.topic("pool"), {"text": "old", **own})
    where: dict[str, Any] = {"redis_url": redis_url, "namespace": queue.namespace}
    found = rows(command("tail", "--from-start", "--count", "1", "--json", **where))
    assert [(row["stream"], row["fields"]["text"]) for row in found] == [(queue.streams.topic("pool"), "old")]
    line = [sys.executable, "-m", "worker", "tail", "--count", "3"]
    earlier = {client["id"] for client in _clients(queue)}
    with subprocess.Popen(line, cwd=ROOT, env=environment(**where), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        wait_for(lambda: any(one["cmd"] == "xread" and one["id"] not in earlier for one in _clients(queue)), "tail to listen")
        queue.redis.xadd(queue.streams.topic("fence"), {"text": "[red]new topic[/red]", **own})
        queue.redis.xadd(queue.streams.review, {"text": "unsure", **own})
        queue.redis.xadd(queue.streams.dead, {"text": b"\xff", "pointsman.reason": "invalid_utf8"})
        stdout, stderr = following.communicate(timeout=PATIENCE_S)
    assert (following.returncode, stderr) == (0, b"")
    shown = sorted(line.split(maxsplit=2) for line in stdout.decode().splitlines())
    assert shown == [["dead", "invalid_utf8", "\ufffd"], ["fence", "98.8%", "[red]new topic[/red]"], ["review", "98.8%", "unsure"]]


def _clients(queue: Queue) -> list[dict[str, Any]]:
    clients: Any = queue.redis.client_list()
    return list(clients)


def test_dead_letters_are_listed_and_replayed(start_worker: StartWorker, queue: Queue, redis_url: str) -> None:
    where: dict[str, Any] = {"redis_url": redis_url, "namespace": queue.namespace}
    assert rows(command("dead", "list", "--json", **where)) == []
    start_worker()
    originals: list[dict[Any, Any]] = [{"text": "", "id": "1"}, {"body": "secret"}, {"text": b"\xff"}]
    queue.assert_each_once(queue.add_all(originals))
    listed = rows(command("dead", "list", "--json", **where))
    assert [row["reason"] for row in listed] == ["empty_text", "missing_text", "invalid_utf8"]
    assert all(set(row) == {"id", "reason", "detail", "deliveries", "age_s"} for row in listed), "texts are shown on request only"
    (one,) = rows(command("dead", "list", "--json", "--show-text", "--reason", "invalid_utf8", **where))
    assert one["text"] == "\ufffd"
    assert len(rows(command("dead", "list", "--json", "--limit", "2", **where))) == 2
    table = command("dead", "list", **where)
    assert table.returncode == 0
    assert "missing_text" in table.stdout.decode()

    (replayed,) = rows(command("dead", "replay", "--json", "--id", listed[0]["id"], **where))
    sent = dict(queue.read(queue.streams.queries))
    assert sent[replayed["new_id"]] == {b"text": b"", b"id": b"1"}
    wait_for(lambda: len(queue.read(queue.streams.dead)) == 3, "the replayed entry to die again")
    (by_reason,) = rows(command("dead", "replay", "--json", "--reason", "missing_text", **where))
    assert by_reason["id"] == listed[1]["id"]
    wait_for(lambda: len(queue.read(queue.streams.dead)) == 3, "that one to die again, too")
    every = command("dead", "replay", "--all", **where)
    assert (every.returncode, every.stderr) == (0, b"replayed 3 of 3\n")
    queue.assert_each_once({entry_id for entry_id, _ in queue.read(queue.streams.queries)} - _ids_that_died_before(queue))


def _ids_that_died_before(queue: Queue) -> set[str]:
    """A replayed entry has a new id; under its old one it is nowhere any more."""
    wait_for(lambda: len(queue.read(queue.streams.dead)) == 3, "all three to be dead again")
    return {entry_id for entry_id, _ in queue.read(queue.streams.queries)} - queue.arrived().keys()


def test_replay_wants_to_know_which_and_refuses_an_unknown_id(queue: Queue, redis_url: str) -> None:
    where: dict[str, Any] = {"redis_url": redis_url, "namespace": queue.namespace}
    assert_clear_failure(command("dead", "replay", **where), "--id ID, --reason REASON or --all")
    assert_clear_failure(command("dead", "replay", "--id", "1-1", **where), "there is no dead letter 1-1")
    assert_clear_failure(command("dead", "replay", "--id", "nonsense", **where), "Invalid stream ID")


def test_doctor_finds_nothing_wrong_and_leaves_no_key(queue: Queue, redis_url: str, model_file: Path) -> None:
    done = command("doctor", "--json", redis_url=redis_url, namespace=queue.namespace, model=model_file)
    (found,) = rows(done)
    assert {finding["what"] for finding in found["findings"]} == {"model", "speed", "computing", "redis", "permissions", "queue"}
    assert all(finding["ok"] for finding in found["findings"])
    values = {row["variable"]: row["value"] for row in found["settings"]}
    assert values["POINTSMAN_NAMESPACE"] == queue.namespace
    assert values["POINTSMAN_REDIS_URL"] == "**********"
    assert queue.keys() == set()


def test_doctor_names_everything_that_is_wrong(tmp_path: Path) -> None:
    done = command("doctor", redis_url=f"redis://127.0.0.1:{free_port()}", model=tmp_path / "none.gguf")
    assert done.returncode == 1
    failed = [line for line in done.stdout.decode().splitlines() if line.startswith("FAIL")]
    assert [line.split()[1] for line in failed] == ["model", "redis"]
    assert b"Traceback" not in done.stderr


TALKS_TO_REDIS = (
    ("run", "--http-port", "0"),
    ("send", "hello"),
    ("tail",),
    ("top", "--once"),
    ("dead", "list"),
    ("dead", "replay", "--all"),
)


@pytest.mark.parametrize("arguments", TALKS_TO_REDIS, ids=" ".join)
def test_an_unreachable_redis_is_one_clear_line(arguments: tuple[str, ...], model_file: Path) -> None:
    where = f"127.0.0.1:{free_port()}"
    done = command(*arguments, redis_url=f"redis://:hush@{where}", model=model_file)
    stderr = assert_clear_failure(done, f"cannot reach Redis at {where}", exit_code=1)
    assert "hush" not in stderr


@pytest.fixture
def locked_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path, "--requirepass", "right").start()
    yield server
    server.kill()


def test_a_wrong_or_missing_password_is_one_clear_line(locked_redis: RedisServer, model_file: Path) -> None:
    wrong, right = (locked_redis.url.replace("//", f"//:{word}@") for word in ("wrong", "right"))
    for url in (wrong, locked_redis.url):
        for arguments in (("run", "--http-port", "0"), ("send", "hello")):
            stderr = assert_clear_failure(command(*arguments, redis_url=url, model=model_file), "refuses the login", exit_code=1)
            assert "wrong" not in stderr.replace("wrong password", "").replace("WRONGPASS", "")
    assert command("send", "hello", redis_url=right).returncode == 0


def test_a_port_in_use_is_one_clear_line(redis_url: str, queue: Queue, model_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("run", redis_url=redis_url, namespace=queue.namespace, model=model_file, http_port=port)
    assert_clear_failure(done, f"cannot listen on 127.0.0.1:{port}", "POINTSMAN_HTTP_PORT", exit_code=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"redis_ulr": "redis://x"}, ("POINTSMAN_REDIS_ULR is not a setting", "did you mean POINTSMAN_REDIS_URL?")),
        ({"claim_after_s": 1}, ("claim_after_s (1)", "is shorter than")),
        ({"batch_size": 0, "retention": "maybe", "nonsense": 1}, ("BATCH_SIZE", "RETENTION", "POINTSMAN_NONSENSE is not a setting")),
        ({"redis_url": "http://example.org"}, ("not a Redis URL",)),
    ],
    ids=["unknown", "claim_after too short", "several at once", "malformed URL"],
)
def test_bad_settings_are_all_named_at_once(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    assert_clear_failure(command("send", "hello", **settings), *words, exit_code=2)


def test_run_with_embedded_redis_says_how_to_reach_it_and_takes_it_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        line = [sys.executable, "-m", "worker", "run"]
        env = environment(model=MODEL, embedded_redis=tmp_path / "data", http_port=0)
        process = subprocess.Popen(line, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stderr=stderr)
    try:
        url = wait_for(lambda: re.findall(r"POINTSMAN_REDIS_URL=(\S+)\s", log.read_text()), "the worker to say where it is")[0]
        sent = rows(command("send", "--json", "how do i bake bread", redis_url=url))
        (seen,) = rows(command("tail", "--from-start", "--count", "1", "--json", redis_url=url))
        assert seen["fields"]["pointsman.id"] == sent[0]["id"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert_clear_failure(command("send", "hello", redis_url=url), "cannot reach Redis")


def test_the_demo_routes_each_query_once_and_leaves_no_process_behind(model_file: Path, texts: list[str], tmp_path: Path) -> None:
    queries = tmp_path / "queries"
    labelled = [json.dumps({"text": text, "label": "pool"}) for text in texts[:10]]
    queries.write_text("\n".join([*labelled, *(text.replace("\n", " ") for text in texts[10:30])]), encoding="utf-8")
    mark = f"TEST_MARK={uuid4().hex}"
    name, _, value = mark.partition("=")
    env = environment() | {name: value}
    line = [sys.executable, "-m", "worker", "demo", "--model", str(model_file), "--queries", str(queries)]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, timeout=2 * PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert "30 of 30, 0 lost, 0 doubled, 0 pending" in done.stdout.decode()
    wait_for(lambda: not _processes_with(mark), "the demo's processes to be gone")


def _processes_with(mark: str) -> list[str]:
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes().split(b"\0"):
                found.append(environ.parent.name)
        except OSError:
            continue
    return [pid for pid in found if pid != str(os.getpid())]


def test_the_demo_refuses_a_file_without_queries(tmp_path: Path, model_file: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.write_text("\n")
    broken.write_text('{"text": "a"}\n{"label": "b"}\n')
    for path, words in ((tmp_path / "none", "no file of queries"), (empty, "holds no queries"), (broken, "line 2")):
        assert_clear_failure(command("demo", "--queries", path, "--model", model_file), words, exit_code=1)


def test_a_dead_letter_that_cannot_be_sent_again_keeps_no_other_from_it(queue: Queue, redis_url: str) -> None:
    where: dict[str, Any] = {"redis_url": redis_url, "namespace": queue.namespace}
    letters: list[dict[Any, Any]] = [
        {"pointsman.reason": "missing_text", "pointsman.id": "1-1"},
        {f"field{number}": "x" for number in range(5000)},
        {"text": "hello", "pointsman.reason": "poison"},
    ]
    for letter in letters:
        queue.redis.xadd(queue.streams.dead, letter)
    done = command("dead", "replay", "--all", **where)
    stderr = done.stderr.decode()
    assert done.returncode == 1
    assert "stays: it had no field of its own" in stderr
    assert "stays: it has 5000 fields" in stderr
    assert "replayed 1 of 3" in stderr
    assert "error:" not in stderr
    assert [fields for _, fields in queue.read(queue.streams.queries)] == [{b"text": b"hello"}]


def test_a_group_that_redis_does_not_make_ends_the_worker_with_one_line(queue: Queue, redis_url: str, model_file: Path) -> None:
    queue.redis.set(queue.streams.queries, "no stream")
    done = command("run", redis_url=redis_url, namespace=queue.namespace, model=model_file, http_port=0)
    assert_clear_failure(done, f"does not make the group routers of {queue.streams.queries}: WRONGTYPE", exit_code=1)


def test_a_second_embedded_redis_with_the_same_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.embedded_redis._PATIENCE_S", 0.2)
    with embedded_redis(tmp_path), pytest.raises(Fatal, match="another embedded Redis has its data in"), embedded_redis(tmp_path):
        pass
    with embedded_redis(tmp_path):
        pass

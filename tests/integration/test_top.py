"""`worker top` over two real workers under load, as a script reads it and as a person sees it on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.support import (
    GROUP,
    PATIENCE_S,
    ROOT,
    Queue,
    RedisServer,
    WorkerProcess,
    assert_clear_failure,
    command,
    environment,
    wait_for,
)

SECRET = "my name is Rumpelstiltskin"
EVERY_S = 0.02


@dataclass(frozen=True)
class Busy:
    """Two workers at work."""

    queue: Queue
    workers: tuple[WorkerProcess, ...]
    where: dict[str, Any]

    @property
    def metrics(self) -> list[str]:
        return [word for worker in self.workers for word in ("--metrics", worker.url)]


@pytest.fixture(scope="module")
def busy(redis_url: str, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    logs = tmp_path_factory.mktemp("top")
    ended = threading.Event()
    with Redis.from_url(redis_url) as redis:
        queue = Queue(redis)
        where: dict[str, Any] = {"redis_url": redis_url, "namespace": queue.namespace}
        workers = tuple(WorkerProcess(logs / name, **where, pace_s=0.002, consumer=f"worker-{name}") for name in ("one", "two"))

        def send() -> None:
            while not ended.wait(EVERY_S):
                queue.add(SECRET)

        queue.add("")
        producer = threading.Thread(target=send)
        producer.start()
        try:
            for worker in workers:
                worker.wait_until_ready()
            wait_for(lambda: len(queue.consumers()) == 2 and queue.read(queue.streams.dead), "both workers and a dead letter")
            yield Busy(queue, workers, where)
        finally:
            ended.set()
            producer.join()
            for worker in workers:
                worker.kill()
            queue.delete()


def between(rows: list[tuple[str, Any]], frame: dict[str, Any]) -> int:
    """Of entries, how many were added in the time that a frame's rates are of."""
    ends_ms = frame["at_ms"]
    return sum(ends_ms - 1000 * frame["over_s"] < int(entry_id.partition("-")[0]) <= ends_ms for entry_id, _ in rows)


def test_a_frame_for_machines_says_what_goes_in_and_out(busy: Busy) -> None:
    done = command("top", "--once", "--json", "--interval", "3", *busy.metrics, **busy.where)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    (frame,) = [json.loads(line) for line in done.stdout.decode().splitlines()]
    queue = busy.queue
    sent = between(queue.read(queue.streams.queries), frame)
    published = sum(between(queue.read(stream), frame) for stream in queue.keys() - {queue.streams.queries})
    assert sent > 20, "the producer was too slow to measure anything"
    # The counts and the clock of a frame are of one moment, so little is left to chance.
    assert frame["in_per_s"] * frame["over_s"] == pytest.approx(sent, abs=2)
    assert frame["out_per_s"] * frame["over_s"] == pytest.approx(published, abs=2)
    assert sum(output["per_s"] for output in frame["outputs"]) == pytest.approx(frame["out_per_s"])
    assert (frame["dead"], frame["dead_reasons"]) == (1, {"empty_text": 1})
    one, two = frame["workers"]
    assert (one["consumer"], two["consumer"]) == ("worker-one", "worker-two")
    assert one["per_s"] + two["per_s"] == pytest.approx(frame["out_per_s"], rel=0.5)
    assert (one["not_ready"], two["not_ready"], frame["unreachable"]) == ([], [], [])
    assert frame["models"] == [one["model"]] == [two["model"]]
    assert 0 < frame["latency_p50_s"] <= frame["latency_p99_s"] < PATIENCE_S
    assert SECRET.encode() not in done.stdout


def test_a_frame_for_people_shows_both_workers_without_colour_and_without_texts(busy: Busy) -> None:
    done = command("top", "--once", "--interval", "0.5", *busy.metrics, **busy.where)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    text = done.stdout.decode()
    for word in (busy.queue.streams.queries, "worker-one", "worker-two", "ready", "empty_text 1", "household", "review"):
        assert word in text
    assert "\x1b" not in text
    assert SECRET not in text


def test_redis_alone_tells_the_most_of_it(busy: Busy) -> None:
    done = command("top", "--once", "--json", "--interval", "0.5", http_port=1, **busy.where)
    (frame,) = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [worker["consumer"] for worker in frame["workers"]] == ["worker-one", "worker-two"]
    assert frame["in_per_s"] > 0
    assert frame["out_per_s"] > 0
    assert 0 <= frame["newest_latency_s"] < PATIENCE_S
    assert len(frame["models"]) == 1
    assert (frame["latency_p50_s"], frame["workers"][0]["per_s"], frame["unreachable"]) == (None, None, [])


def test_the_workers_own_address_is_tried_unasked(busy: Busy) -> None:
    done = command("top", "--once", "--json", "--interval", "0.2", http_port=busy.workers[1].port, **busy.where)
    states = {worker["consumer"]: worker["not_ready"] for worker in json.loads(done.stdout)["workers"]}
    assert states == {"worker-one": None, "worker-two": []}


def test_an_address_that_does_not_answer_is_named(busy: Busy) -> None:
    done = command("top", "--once", "--json", "--interval", "0.2", "--metrics", "127.0.0.1:1", *busy.metrics[:2], **busy.where)
    frame = json.loads(done.stdout)
    assert frame["unreachable"] == ["http://127.0.0.1:1: Connection refused"]
    assert [worker["not_ready"] for worker in frame["workers"]] == [[], None]


def test_without_stream_group_or_worker_it_says_so(queue: Queue, redis_url: str) -> None:
    where: dict[str, Any] = {"redis_url": redis_url, "namespace": queue.namespace, "http_port": 1}

    def text() -> str:
        done = command("top", "--once", "--interval", "0.2", **where)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
        return done.stdout.decode()

    assert f"there is no stream {queue.streams.queries}" in text()
    queue.add_all([SECRET] * 3)
    assert f"there is no group {GROUP}" in text()
    queue.redis.xgroup_create(queue.streams.queries, GROUP, id="0")
    assert "no worker is in the group" in text()


def test_a_lag_that_redis_cannot_tell_after_xdel_is_null(queue: Queue, redis_url: str) -> None:
    ids = queue.add_all([SECRET] * 5)
    queue.redis.xgroup_create(queue.streams.queries, GROUP, id="0")
    queue.redis.xreadgroup(GROUP, "me", {queue.streams.queries: ">"}, count=1)
    queue.redis.xdel(queue.streams.queries, ids[2])
    done = command("top", "--once", "--json", "--interval", "0.2", redis_url=redis_url, namespace=queue.namespace, http_port=1)
    frame = json.loads(done.stdout)
    assert (frame["lag"], frame["pending"], frame["workers"][0]["consumer"]) == (None, 1, "me")
    assert frame["oldest_pending_s"] > 0


def test_without_a_terminal_it_says_what_to_do(redis_url: str) -> None:
    assert_clear_failure(command("top", redis_url=redis_url), "--once prints one frame", exit_code=1)


class Terminal:
    """A command on a terminal of its own, and what that shows."""

    def __init__(self, *arguments: str, columns: int, rows: int, **settings: Any) -> None:
        self._fd, self.keyboard = pty.openpty()
        fcntl.ioctl(self.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.keyboard)
        env = environment(**settings) | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}
        self.output = ""
        self.pid = os.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.login_tty(self.keyboard)
            os.execve(sys.executable, [sys.executable, "-m", "worker", "top", *arguments], env)

    def lines(self) -> list[str]:
        """Of the newest frame; each begins where the cursor is put home."""
        frames = self._read().split("\x1b[H")
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frames[-1]).split("\n")]

    def wait_for(self, seen: Callable[[list[str]], bool], what: str) -> list[str]:
        return wait_for(lambda: lines if seen(lines := self.lines()) else [], what)

    def press(self, key: bytes) -> None:
        os.write(self._fd, key)

    def wait_until_ended(self) -> int:
        """Returns the exit code."""
        found: list[int] = []

        def ended() -> bool:
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            found.append(status)
            return pid == self.pid

        wait_for(ended, "the command to end")
        self._read()
        self.pid = 0
        return os.waitstatus_to_exitcode(found[-1])

    def close(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)
        os.close(self.keyboard)

    def _read(self) -> str:
        while select.select([self._fd], [], [], 0)[0]:
            self.output += os.read(self._fd, 65536).decode(errors="replace")
        return self.output


OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def terminal() -> Iterator[OpenTerminal]:
    opened: list[Terminal] = []

    def start(*arguments: str, columns: int = 80, rows: int = 24, **settings: Any) -> Terminal:
        opened.append(Terminal(*arguments, columns=columns, rows=rows, **settings))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def assert_left_as_it_was(terminal: Terminal) -> None:
    assert termios.tcgetattr(terminal.keyboard) == terminal.before
    assert terminal.output.rstrip().endswith("\x1b[?1049l"), "the screen before it is there again"


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (140, 40), (30, 24)])
def test_on_a_terminal_the_frame_fills_it_and_q_ends(terminal: OpenTerminal, busy: Busy, columns: int, rows: int) -> None:
    screen = terminal("--interval", "0.5", *busy.metrics, columns=columns, rows=rows, **busy.where)
    lines = screen.wait_for(lambda lines: len(lines) == rows and lines[4][:1].isdigit(), "a frame with rates")
    assert "q ends" in lines[0]
    assert max(map(len, lines)) <= columns
    assert [line[:10] for line in lines if line.startswith("worker-")] == ["worker-one", "worker-two"]
    assert ("household" in "".join(line for line in lines if line.startswith("worker-"))) == (columns == 140)
    assert "\x1b[32m" in screen.output, "a terminal has colours"
    screen.press(b"q")
    assert screen.wait_until_ended() == 0
    assert_left_as_it_was(screen)
    assert SECRET not in screen.output


def test_a_terminal_that_changes_its_size_is_filled_at_once(terminal: OpenTerminal, busy: Busy) -> None:
    screen = terminal("--interval", "60", **busy.where, http_port=1)
    screen.wait_for(lambda lines: len(lines) == 24 and "worker-two" in "".join(lines), "a frame")
    fcntl.ioctl(screen.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    os.kill(screen.pid, signal.SIGWINCH)
    screen.wait_for(lambda lines: len(lines) == 30, "a frame of another size")
    screen.press(b"\x03")
    assert screen.wait_until_ended() == 0
    assert_left_as_it_was(screen)


def test_redis_may_go_and_come_back_while_it_is_watched(terminal: OpenTerminal, own_redis: RedisServer, own_queue: Queue) -> None:
    own_queue.redis.xgroup_create(own_queue.streams.queries, GROUP, id="0", mkstream=True)
    screen = terminal("--interval", "0.2", redis_url=own_redis.url, namespace=own_queue.namespace, http_port=1, redis_timeout_s=1)
    screen.wait_for(lambda lines: "no worker is in the group" in "".join(lines), "a frame")
    own_redis.kill()
    lines = screen.wait_for(lambda lines: "no news from Redis" in lines[0], "it to say that Redis is gone")
    assert own_queue.streams.queries in "".join(lines), "the last frame stays"
    own_redis.start()
    screen.wait_for(lambda lines: "q ends" in lines[0], "it to go on")
    os.kill(screen.pid, signal.SIGTERM)
    assert screen.wait_until_ended() == 0
    assert_left_as_it_was(screen)


def test_a_redis_that_hangs_does_not_keep_it_from_ending(terminal: OpenTerminal, own_redis: RedisServer, own_queue: Queue) -> None:
    screen = terminal("--interval", "0.2", redis_url=own_redis.url, namespace=own_queue.namespace, http_port=1, redis_timeout_s=60)
    screen.wait_for(lambda lines: "there is no stream" in "".join(lines), "a frame")
    own_redis.signal(signal.SIGSTOP)
    time.sleep(0.5)
    screen.press(b"q")
    assert screen.wait_until_ended() == 0

"""The workers of a run that is done badly by, and the producer that feeds them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from redis import Redis
from redis.exceptions import RedisError

from tests.support import PATIENCE_S, WorkerProcess

SENT_AT_ONCE = 500
SPARED_S = 2.0
"""After a sleep: a worker that is killed at once shows nothing of what it does with entries that others have published."""
_SEND = """
local known = tonumber(redis.call("GET", KEYS[2]) or "0")
for at = 2, #ARGV do
  local number = tonumber(ARGV[1]) + at - 2
  if number >= known then
    redis.call("XADD", KEYS[1], "*", "number", number, "text", ARGV[at])
    redis.call("SET", KEYS[2], number + 1)
  end
end
"""


class Producer(threading.Thread):
    """Sends numbers from 0 up and keeps so many waiting that workers never run dry.

    Numbers and the count of those sent change in one script, so what it had no answer to it simply sends again:
    nothing that this run counts as lost or doubled is the producer's.
    """

    def __init__(self, redis_url: str, queries: str, texts: Sequence[str], total: int, window: int) -> None:
        super().__init__(name="producer", daemon=True)
        self._redis_url, self._queries, self._texts = redis_url, queries, texts
        self._window = window
        self.count_key = f"sent:{queries}"
        """Outside the namespace of the workers."""
        self.total, self.sent = total, 0
        self.published = 0
        """Told by whoever watches the output streams."""
        self.ended = threading.Event()

    def run(self) -> None:
        with Redis.from_url(self._redis_url) as redis:
            while self.sent < self.total and not self.ended.is_set():
                count = min(SENT_AT_ONCE, self.total - self.sent, self._window - (self.sent - self.published))
                if count <= 0:
                    time.sleep(0.01)
                    continue
                texts = [self._texts[number % len(self._texts)] for number in range(self.sent, self.sent + count)]
                try:
                    redis.eval(_SEND, 2, self._queries, self.count_key, str(self.sent), *texts)
                except (RedisError, OSError):
                    time.sleep(0.05)
                else:
                    self.sent += count


class Fleet:
    """So many workers at any time, counting those that are still starting and those that sleep."""

    def __init__(self, size: int, start: Callable[[str], WorkerProcess]) -> None:
        self._size, self._start, self._started = size, start, 0
        self._working: dict[str, WorkerProcess] = {}
        self._joined: set[str] = set()
        self._paused: dict[str, float] = {}
        self._spared: dict[str, float] = {}
        self._leaving: dict[str, tuple[WorkerProcess, float]] = {}
        self.failed: list[str] = []
        """Workers that ended although nobody asked them to, or not with exit code 0 when asked."""

    def hire(self) -> None:
        """Start as many as are missing."""
        while len(self._working) < self._size:
            name = f"worker-{self._started}"
            self._started += 1
            self._working[name] = self._start(name)

    def wait_until_ready(self) -> None:
        for worker in self._working.values():
            worker.wait_until_ready()

    @property
    def members(self) -> set[str]:
        return set(self._working)

    @property
    def ready(self) -> bool:
        """Everybody says so."""
        try:
            return all(worker.ready() for worker in self._working.values())
        except (OSError, AssertionError):
            return False

    def victims(self) -> list[str]:
        """Workers that have read something, are not asleep, and have been awake for a while."""
        now = time.monotonic()
        spared = {name for name, until in self._spared.items() if now < until}
        return sorted((self._working.keys() & self._joined) - self._paused.keys() - spared)

    def kill(self, name: str) -> None:
        self._working.pop(name).kill()

    def pause(self, name: str, seconds: float) -> None:
        self._working[name].signal(signal.SIGSTOP)
        self._paused[name] = time.monotonic() + seconds

    def dismiss(self, name: str) -> None:
        worker = self._working.pop(name)
        worker.process.terminate()
        self._leaving[name] = worker, time.monotonic() + PATIENCE_S

    def tend(self, consumers: Iterable[str]) -> None:
        """Note who has read by now, wake who has slept long enough, and put new workers in the place of those that are gone."""
        now = time.monotonic()
        self._joined |= self._working.keys() & set(consumers)
        for name in [name for name, until in self._paused.items() if now >= until]:
            self._wake(name)
        for name, (worker, until) in list(self._leaving.items()):
            if worker.process.poll() is None and now < until:
                continue
            del self._leaving[name]
            self._note_exit(name, worker)
        for name, worker in list(self._working.items()):
            if worker.process.poll() is not None:
                del self._working[name]
                self._paused.pop(name, None)
                if name in self._joined:  # one that finds no Redis at its start may end
                    self.failed.append(name)
        self.hire()

    @property
    def at_rest(self) -> bool:
        """Nobody sleeps or is about to leave."""
        return not self._paused and not self._leaving

    def stop(self) -> None:
        """SIGTERM to all, and wait."""
        for name in list(self._paused):
            self._wake(name)
        for name in list(self._working):
            self.dismiss(name)
        for name, (worker, until) in self._leaving.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, until - time.monotonic()))
            self._note_exit(name, worker)
        self._leaving.clear()

    def kill_all(self) -> None:
        for worker in [*self._working.values(), *(worker for worker, _ in self._leaving.values())]:
            worker.kill()

    def _wake(self, name: str) -> None:
        del self._paused[name]
        self._working[name].signal(signal.SIGCONT)
        self._spared[name] = time.monotonic() + SPARED_S

    def _note_exit(self, name: str, worker: WorkerProcess) -> None:
        if worker.process.poll() is None:
            worker.kill()
        if worker.process.returncode != 0:
            self.failed.append(name)

"""Fixtures for tests on a real Redis, a real GGUF and real worker processes. All lazy: unit tests start nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from redis import Redis

from tests.support import DATA, MODEL, Queue, RedisServer, WorkerProcess
from worker.classifier import Classifier
from worker.embedded_redis import embedded_redis
from worker.routing import Streams, route

# Examples have no time limit: how long one takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

StartWorker = Callable[..., WorkerProcess]
_used_redis = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (used := config.stash.get(_used_redis, None)) is not None:
        terminalreporter.write_line(f"Redis: {used}")


def docker_answers() -> bool:
    try:
        return shutil.which("docker") is not None and subprocess.run(["docker", "info"], capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Redis for all tests: a container where a Docker engine answers, else the embedded server."""
    if docker_answers():
        os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # read when testcontainers is imported; its image may be out of reach
        from testcontainers.community.redis import RedisContainer

        with RedisContainer("redis:7") as container:
            pytestconfig.stash[_used_redis] = "docker redis:7"
            yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}"
        return
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        pytestconfig.stash[_used_redis] = "embedded"
        yield url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def queue(redis: Redis) -> Iterator[Queue]:
    """A namespace of this test's own."""
    queue = Queue(redis)
    yield queue
    queue.delete()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own, to be treated badly."""
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory).start()
    yield server
    server.kill()


@pytest.fixture
def own_queue(own_redis: RedisServer) -> Iterator[Queue]:
    with Redis.from_url(own_redis.url) as client:
        yield Queue(client)


@pytest.fixture
def start_worker(redis_url: str, queue: Queue, tmp_path: Path) -> Iterator[StartWorker]:
    """Start worker processes on the test's namespace, or elsewhere by settings; none outlives the test."""
    started: list[WorkerProcess] = []

    def start(*, wait: bool = True, **settings: Any) -> WorkerProcess:
        where = {"redis_url": redis_url, "namespace": queue.namespace} | settings
        worker = WorkerProcess(tmp_path / f"worker-{len(started)}.log", **where)
        started.append(worker)
        return worker.wait_until_ready() if wait else worker

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()


@pytest.fixture(scope="session")
def model_file() -> Path:
    if not MODEL.is_file():
        pytest.fail(f"there is no {MODEL}: run `make model`")
    return MODEL


@pytest.fixture(scope="session")
def household(model_file: Path) -> Iterator[Classifier]:
    classifier = Classifier.open(model_file)
    yield classifier
    classifier.close()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """The household queries, in an order that mixes the labels."""
    rows = json.loads(DATA.read_text(encoding="utf-8"))
    shuffled = [row["input"] for row in rows]
    random.Random(1).shuffle(shuffled)
    return shuffled


@pytest.fixture(scope="session")
def sure(household: Classifier, texts: list[str]) -> dict[str, str]:
    """Queries of which the model is so sure that rounding cannot change their way: text -> the last part of their stream."""
    chosen: dict[str, str] = {}
    for text, decision in zip(texts[:120], household.classify(texts[:120]), strict=True):
        threshold = household.card.calibration.threshold_of(decision.label)
        if decision.confidence > 0.6 and abs(decision.confidence - threshold) > 0.04:
            chosen[text] = route(decision, household.card, Streams("x")).stream.removeprefix("x:")
    assert len(chosen) >= 40, "the model is too unsure to test routing with"
    return chosen

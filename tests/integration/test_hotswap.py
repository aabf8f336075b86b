"""A worker's model file is replaced while queries stream in: real Redis, real GGUFs, a real worker process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartWorker
from tests.integration.parts import base_file, metadata
from tests.support import MODEL_DIRECTORY, Queue, WorkerProcess, wait_for
from trainer.build import ADAPTER_FILE, build, read_adapter, read_metadata

WATCHFUL: dict[str, Any] = {"model_poll_s": 0.1, "batch_size": 8, "batch_timeout_s": 60, "claim_after_s": 120, "threads": 1}
"""Small batches, so that there are many to swap between; one thread a model, since threads that wait for each other on a
busy machine hardly get on; and nothing counts as stuck on a slow one."""
OLD = read_metadata(MODEL_DIRECTORY)["training"]["version"]


def publish(source: Path, model: Path) -> None:
    """As Kubernetes does it: the name becomes a link to another file, in one step."""
    link = model.with_name("next")
    link.symlink_to(source)
    os.replace(link, model)


def swaps(worker: WorkerProcess, outcome: str) -> float:
    return worker.metrics()[f'pointsman_model_swaps_total{{outcome="{outcome}"}}']


def shown_versions(worker: WorkerProcess) -> list[str]:
    return [name.partition('version="')[2].partition('"')[0] for name in worker.metrics() if name.startswith("pointsman_model_info{")]


class Load:
    """Queries that go on coming, as fast as they are routed: at most sixteen are not yet."""

    def __init__(self, queue: Queue, texts: Sequence[str]) -> None:
        self._queue, self._texts = queue, texts
        self.sent: list[str] = []
        """Ids, in the order of sending."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def _send(self) -> None:
        for number, text in enumerate(cycle(self._texts)):
            while number - self.routed() >= 16:
                if self._ended.wait(0.01):
                    return
            self.sent.append(self._queue.add(text))

    def routed(self) -> int:
        streams = self._queue.keys() - {self._queue.streams.queries}
        return sum(int(self._queue.redis.xlen(stream)) for stream in streams)

    def wait_for_more(self, count: int) -> None:
        wanted = self.routed() + count
        wait_for(lambda: self.routed() >= wanted, f"{count} more queries to be routed")


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The household model under another version. It has five times the probes, so that opening it takes a while anywhere."""
    described = read_metadata(MODEL_DIRECTORY)
    described["training"]["version"] = "retrained"
    described["probes"]["probes"] *= 5
    path = tmp_path_factory.mktemp("retrained") / "retrained.gguf"
    build(base_file(), read_adapter(MODEL_DIRECTORY / ADAPTER_FILE), described, path)
    return path


def test_under_load_a_new_model_takes_over_without_a_gap_and_garbage_does_not(
    start_worker: StartWorker, queue: Queue, texts: list[str], model_file: Path, retrained: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    publish(model_file, model)
    worker = start_worker(model=model, **WATCHFUL)
    load = Load(queue, texts)
    with load.going_on():
        load.wait_for_more(20)
        assert shown_versions(worker) == [OLD]
        publish(retrained, model)
        wait_for(lambda: "opening a new model file" in worker.log, "the new model to be opened")
        sent = len(load.sent)
        wait_for(lambda: worker.get("/healthz")[0] == 200 and swaps(worker, "swapped") == 1, "the new model to decide")
        load.wait_for_more(20)
        assert shown_versions(worker) == ["retrained"]
        garbage = tmp_path / "garbage"
        garbage.write_bytes(b"GGUF" + os.urandom(5000))
        os.replace(garbage, model)
        wait_for(lambda: worker.get("/healthz")[0] == 200 and swaps(worker, "refused") == 1, "the garbage to be refused")
        load.wait_for_more(20)
    queue.assert_each_once(load.sent)
    arrived = queue.arrived()
    versions = [arrived[entry_id][0][1][b"pointsman.model"].decode() for entry_id in load.sent]
    assert [version for version, _ in groupby(versions)] == [OLD, "retrained"]
    assert versions[sent:].count(OLD) > 0, "queries that came while the new model was opened did not wait for it"
    assert shown_versions(worker) == ["retrained"]
    assert (swaps(worker, "swapped"), swaps(worker, "refused")) == (1, 1)
    metrics = worker.metrics()
    assert metrics["pointsman_failed_total"] == metrics["pointsman_duplicates_total"] == metrics["pointsman_reclaimed_total"] == 0
    (line,) = [line for line in worker.log.splitlines() if "cannot be used" in line]
    assert str(model) in line
    assert "cannot be loaded, it is damaged" in line
    assert worker.stop() == 0


def test_a_model_with_other_labels_brings_its_own_topics(start_worker: StartWorker, queue: Queue, texts: list[str], tmp_path: Path) -> None:
    files = {}
    for version, labels in {"wheels": ("car", "bicycle"), "pets": ("dog", "cat", "old hen")}.items():
        described = metadata(labels, "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
        described["training"]["version"] = version
        files[version] = tmp_path / f"{version}.gguf"
        build(base_file(), None, described, files[version])
    model = tmp_path / "model.gguf"
    publish(files["wheels"], model)
    worker = start_worker(model=model, **WATCHFUL)
    assert queue.streams.topic("old hen") not in worker.get("/asyncapi")[1]
    first = queue.add_all(texts[:10])
    queue.wait_until_arrived(first)
    publish(files["pets"], model)
    wait_for(lambda: swaps(worker, "swapped") == 1, "the new model to decide")
    second = queue.add_all(texts[:10])
    queue.assert_each_once([*first, *second])
    arrived = queue.arrived()
    expected = ((first, b"wheels", {"car", "bicycle"}), (second, b"pets", {"dog", "cat", "old hen"}))
    for some, model_version, its_labels in expected:
        assert {arrived[entry_id][0][1][b"pointsman.model"] for entry_id in some} == {model_version}
        assert {arrived[entry_id][0][0] for entry_id in some} <= {queue.streams.topic(label) for label in its_labels}
    decided = {name.partition('label="')[2].partition('"')[0] for name in worker.metrics() if name.startswith("pointsman_messages_total{")}
    assert decided & {"car", "bicycle"}
    assert decided & {"dog", "cat", "old hen"}
    for page in ("/asyncapi", "/asyncapi.json"):
        assert all(queue.streams.topic(label) in worker.get(page)[1] for label in ("car", "dog", "cat", "old hen"))
    assert worker.get("/readyz")[0] == 200


def test_a_worker_told_not_to_look_keeps_its_model(
    start_worker: StartWorker, queue: Queue, texts: list[str], model_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    publish(model_file, model)
    worker = start_worker(model=model, **WATCHFUL | {"model_poll_s": 0})
    model.unlink()
    model.write_bytes(b"no model")
    queue.assert_each_once(queue.add_all(texts[:20]))
    assert (swaps(worker, "swapped"), swaps(worker, "refused")) == (0, 0)

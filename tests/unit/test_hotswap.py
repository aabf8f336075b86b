"""One model takes over from another, with a stand-in for the model (StandIn) whose file holds nothing but its version."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.parts import StandIn, a_card, a_decision
from tests.unit.test_pipeline import PATIENCE_S, Running, entries, until
from worker import hotswap
from worker.classifier import Decision, ModelFileError
from worker.hotswap import HotSwap, look
from worker.pipeline import Decides, Limits

LIMITS = Limits(
    batch_size=4, batch_tokens=1000, max_query_tokens=100, max_in_flight=64, max_text_bytes=100, max_deliveries=3, batch_timeout_s=10
)
Decide = Callable[[Sequence[str]], list[Decision]]


def about_the_pool(texts: Sequence[str]) -> list[Decision]:
    return [a_decision("pool") for _ in texts]


class Served:
    """A worker's inside: a pipeline, the model file that it was started with, and a watch over that file."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = directory / "model.gguf"
        self.opened: list[str] = []
        """What stood in the file whenever it was opened."""
        self.models: dict[str, StandIn] = {}
        self.decide: dict[str, Decide] = {}
        """By version, where a model is to decide otherwise than all."""
        self.on_open: Callable[[], None] = lambda: None
        self.looks = 0
        self.on_look: Callable[[], None] = lambda: None
        monkeypatch.setattr(hotswap, "look", self._look)

    def start(self) -> None:
        self.executor = ThreadPoolExecutor(1)
        self.publish("first")
        seen, model = look(self.file), self.open()
        self.running = Running(about_the_pool, LIMITS, self.executor)
        self.running.pipeline.model = model
        swap = HotSwap(self.file, seen, self.open, self._use, self.executor, self.running.metrics, 0.002)
        self.watching = asyncio.create_task(swap.watch())

    def publish(self, content: str) -> None:
        beside = self.file.with_name("beside")
        beside.write_text(content)
        beside.replace(self.file)

    def open(self) -> StandIn:
        content = self.file.read_text()
        self.opened.append(content)
        self.on_open()
        if content.startswith("bad"):
            raise ModelFileError(f"{self.file} is {content}")
        decide = self.decide.get(content, about_the_pool)
        self.models[content] = StandIn(decide, replace(a_card(), version=content))
        return self.models[content]

    async def look_again(self, times: int = 5) -> None:
        """Wait until the file was looked at so many times more."""
        wanted = self.looks + times
        await until(lambda: self.looks >= wanted)

    async def swapped(self, count: int = 1) -> None:
        await until(lambda: self.running.count("model_swaps_total", outcome="swapped") == count)

    async def refused(self, count: int = 1) -> None:
        await until(lambda: self.running.count("model_swaps_total", outcome="refused") == count)

    async def versions(self) -> list[str]:
        """Those in all that was delivered, in order, once nothing is left."""
        taken = await self.running.finish()
        return [one.fields[b"pointsman.model"].decode() for one in taken]

    def _look(self, path: Path) -> hotswap.Seen | None:
        self.looks += 1
        seen = look(path)
        self.on_look()
        return seen

    def _use(self, model: Decides) -> Decides:
        before, self.running.pipeline.model = self.running.pipeline.model, model
        return before


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    served = Served(tmp_path, monkeypatch)
    served.start()
    yield served
    for task in (served.watching, served.running.task):
        task.cancel()
    results = await asyncio.gather(served.watching, served.running.task, return_exceptions=True)
    served.executor.shutdown()
    assert isinstance(results[0], asyncio.CancelledError), f"the watch ended: {results[0]!r}"


async def test_the_batch_at_work_stays_the_old_models_and_the_next_is_the_new_ones(served: Served) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def slowly(texts: Sequence[str]) -> list[Decision]:
        at_work.set()
        assert go_on.wait(PATIENCE_S)
        return about_the_pool(texts)

    served.decide["second"] = slowly
    served.publish("second")
    await served.swapped()
    await served.running.pipeline.submit(entries(4))
    await asyncio.to_thread(at_work.wait, PATIENCE_S)
    await served.running.pipeline.submit(entries(4, first=5))
    served.publish("third")
    await served.swapped(2)
    assert not served.models["second"].closed, "it is still at its batch"
    go_on.set()
    assert await served.versions() == ["second"] * 4 + ["third"] * 4
    await until(lambda: served.models["second"].closed)
    assert [version for version, model in served.models.items() if not model.closed] == ["third"]


async def test_a_batch_that_was_given_to_the_old_model_and_waits_for_its_thread_stays_with_it(served: Served) -> None:
    def never(texts: Sequence[str]) -> list[Decision]:
        raise AssertionError("this batch is another model's")

    served.decide["second"] = never
    go_on = threading.Event()
    served.executor.submit(go_on.wait, PATIENCE_S)
    await served.running.pipeline.submit(entries(2))
    await until(lambda: served.running.pipeline.classifying_for_s > 0)
    served.publish("second")
    await served.swapped()
    go_on.set()
    assert await served.versions() == ["first"] * 2


async def test_a_batch_that_fails_while_the_model_changes_is_tried_again_by_the_new_one(served: Served) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def fail(texts: Sequence[str]) -> list[Decision]:
        at_work.set()
        assert go_on.wait(PATIENCE_S)
        raise RuntimeError("the model fell over")

    served.decide["second"] = fail
    served.publish("second")
    await served.swapped()
    await served.running.pipeline.submit(entries(3))
    await asyncio.to_thread(at_work.wait, PATIENCE_S)
    served.publish("third")
    await served.swapped(2)
    go_on.set()
    assert await served.versions() == ["third"] * 3


async def test_a_model_is_closed_by_the_thread_that_used_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    close = StandIn.close

    def watched(model: StandIn) -> None:
        threads.append(threading.get_ident())
        close(model)

    monkeypatch.setattr(StandIn, "close", watched)
    served.publish("second")
    await until(lambda: served.models["first"].closed)
    assert threads == [await asyncio.wrap_future(served.executor.submit(threading.get_ident))]


async def test_a_file_that_cannot_be_used_changes_nothing_and_is_tried_once(served: Served) -> None:
    with capture_logs() as logs:
        served.publish("bad")
        await served.refused()
        await served.look_again()
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert (line["path"], line["reason"]) == (str(served.file), f"{served.file} is bad")
    await served.running.pipeline.submit(entries(2))
    await until(lambda: len(served.running.delivery.taken) == 2)
    assert served.opened == ["first", "bad"]
    assert served.running.count("model_swaps_total", outcome="refused") == 1
    served.publish("second")
    await served.swapped()
    await served.running.pipeline.submit(entries(1, first=3))
    assert await served.versions() == ["first", "first", "second"]


async def test_after_a_refusal_the_file_that_is_at_work_is_not_opened_again(served: Served) -> None:
    kept = served.file.with_name("kept")
    kept.hardlink_to(served.file)
    served.publish("bad")
    await served.refused()
    kept.replace(served.file)
    await served.look_again()
    assert served.opened == ["first", "bad"]


async def test_a_fault_of_any_kind_while_opening_keeps_the_old_model(served: Served) -> None:
    def fall_over() -> None:
        raise MemoryError

    served.on_open = fall_over
    with capture_logs() as logs:
        served.publish("second")
        await served.refused()
    assert [line["reason"] for line in logs if line["log_level"] == "error"] == ["MemoryError()"]
    await served.running.pipeline.submit(entries(1))
    assert await served.versions() == ["first"]


async def test_a_file_that_is_still_being_written_is_left_alone(served: Served) -> None:
    parts = list("second")

    def write_on() -> None:
        if parts:
            with served.file.open("a") as file:
                file.write(parts.pop(0))

    served.file.unlink()
    served.on_look = write_on
    await served.swapped()
    assert served.opened == ["first", "second"]
    assert served.running.count("model_swaps_total", outcome="refused") == 0


async def test_a_file_that_is_written_in_place_is_warned_of_and_one_that_takes_its_place_is_not(served: Served) -> None:
    with capture_logs() as logs:
        served.publish("second")
        await served.swapped()
        assert [line for line in logs if line["log_level"] == "warning"] == []
        served.file.write_text("a third")
        await served.swapped(2)
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert "written in place" in line["event"]


@pytest.mark.parametrize("half_read", ["halfway", "bad, for it was read halfway"])
async def test_what_was_read_while_the_file_changed_is_neither_used_nor_refused(served: Served, half_read: str) -> None:
    def replace_it() -> None:
        served.on_open = lambda: None
        served.publish("second")

    served.on_open = replace_it
    served.publish(half_read)
    await served.swapped()
    assert served.opened == ["first", half_read, "second"]
    assert served.running.count("model_swaps_total", outcome="refused") == 0
    assert served.models.get(half_read) is None or served.models[half_read].closed
    await served.running.pipeline.submit(entries(1))
    assert await served.versions() == ["second"]


async def test_a_file_that_is_away_is_waited_for_and_then_opened_once(served: Served) -> None:
    served.file.unlink()
    await served.look_again()
    served.publish("second")
    await served.swapped()
    await served.look_again()
    assert served.opened == ["first", "second"]


async def test_a_symbolic_link_that_leads_elsewhere_is_a_new_file(served: Served) -> None:
    elsewhere = served.file.with_name("elsewhere")
    elsewhere.write_text("second")
    link = served.file.with_name("link")
    link.symlink_to(elsewhere)
    link.replace(served.file)
    await served.swapped()
    assert served.opened == ["first", "second"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no urgency of its own")
async def test_opening_gives_way_to_classifying(served: Served) -> None:
    def urgency() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    usual = await asyncio.wrap_future(served.executor.submit(urgency))
    nice: list[int] = []
    served.on_open = lambda: nice.append(urgency())
    served.publish("second")
    await served.swapped()
    assert nice == [min(19, usual + 10)]
    assert await asyncio.wrap_future(served.executor.submit(urgency)) == usual

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.parts import StandIn, a_card
from worker.app import _end, _open, _open_tracing
from worker.errors import Fatal
from worker.hotswap import look
from worker.routing import Streams
from worker.settings import Settings


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    await asyncio.wait_for(_end(tasks), 10)
    assert all(task.cancelled() for task in tasks)
    assert swallowed == 3


async def test_there_may_be_nothing_to_end() -> None:
    await asyncio.wait_for(_end([]), 1)


def test_a_model_file_that_is_replaced_while_it_is_opened_is_opened_again(tmp_path: Path) -> None:
    """Else the file that was verified is not the one that decides."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    closed: list[bytes] = []

    def open_model(settings: Settings) -> StandIn:
        content = path.read_bytes()
        if content == b"old":
            (tmp_path / "next").write_bytes(b"new one")
            (tmp_path / "next").replace(path)
        model = StandIn(lambda _: [], a_card("a", "b"))
        model.close = lambda: closed.append(content)  # type: ignore[method-assign]
        return model

    seen, _ = _open(Settings(model=path), open_model)
    assert seen == look(path)
    assert closed == [b"old"]


def test_a_worker_without_tracing_loads_no_exporter() -> None:
    """redis-py loads parts of OpenTelemetry by itself where it is installed."""
    code = "import sys, worker.app; sys.exit(any(name.startswith(('worker.tracing', 'opentelemetry.exporter')) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=240, check=False).returncode == 0


def test_tracing_that_is_not_installed_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "worker.tracing", None)  # as it is when its import fails
    with pytest.raises(Fatal, match=r"POINTSMAN_TRACING needs OpenTelemetry.*pip install -c constraints.txt '.\[tracing\]'"):
        _open_tracing(Settings(tracing=True), Streams())


def test_settings_of_opentelemetry_that_it_refuses_stop_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "-1")
    with pytest.raises(Fatal, match="OTEL_"):
        _open_tracing(Settings(tracing=True), Streams())

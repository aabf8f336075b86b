from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from worker.app import _end, _open_tracing
from worker.errors import Fatal
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

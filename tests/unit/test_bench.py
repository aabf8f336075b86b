"""How figures are taken and shown; what is measured is tested in integration."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest
from rich.console import Console

from worker.bench import engine, report, service
from worker.bench.engine import EngineFigures, spread, unlike_texts
from worker.bench.report import CEILINGS, GOALS, PACKAGES, Report, lines, save, table
from worker.bench.rounds import rates, ratio
from worker.bench.service import Flow, Latency, Memory
from worker.classifier import EngineOptions, tuning
from worker.errors import Fatal
from worker.settings import Settings
from worker.worker_process import open_local

FIGURES = EngineFigures(
    messages=100,
    tokens_per_message=20.0,
    prefill_tokens=512,
    prefill_tokens_per_s=1500.0,
    tokens_per_s=1800.0,
    messages_per_s=90.0,
    to_prefill=1.2,
    unlike_to_prefill=1.05,
    batches_to_prefill=1.12,
    ordinary_messages_per_s=15.0,
    to_ordinary=6.0,
    server_messages_per_s=30.0,
    to_server=3.0,
    computed_share=0.8,
    forward_pass_tokens=20,
)
REPORT = Report(
    machine={"cpu": "a CPU", "cores": 2, "model": "household 1 (base)", "format": "BF16", "engine": {"sequences": 64}, "backend": "CPU"}
    | dict.fromkeys(("python", *PACKAGES, "redis-server"), "1.2"),
    ratios=dict.fromkeys(GOALS, 100.0) | dict.fromkeys(CEILINGS, 1.0) | {"engine / create_completion": 6.0},
    engine=FIGURES,
    through_redis_per_s=88.0,
    stand_in=Flow(40_000.0, 10.0),
    bare_redis_per_s=80_000.0,
    latencies=[Latency(0.0, 40, 24.0, 30.0, 20.0), Latency(22.0, 200, 25.0, 60.0, 20.0), Latency(66.0, 600, 40.0, 140.0, 20.0)],
    scale_out={1: Flow(200.0, 50.0), 2: Flow(396.0, 20.0)},
    memory=Memory(200_000, 512.4, 512.9, 600.1),
)


def shown(width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(table(REPORT))
    for line in lines(REPORT):
        console.print(line)
    return console.export_text()


def test_contestants_take_turns_and_rates_are_work_per_second() -> None:
    turns: list[str] = []

    def work(name: str, seconds: float) -> float:
        turns.append(name)
        time.sleep(seconds)
        return 1.0

    found = rates({"slow": lambda: work("slow", 0.04), "fast": lambda: work("fast", 0.01)}, rounds=3)
    assert turns == ["slow", "fast"] * 3
    assert all(rate < 1 / 0.04 for rate in found["slow"])


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert ratio({"a": [10.0, 30.0, 1.0], "b": [5.0, 10.0, 10.0]}, "a", "b") == 2.0


def test_the_table_says_which_goals_are_missed() -> None:
    rows = {line.split("  ")[1].strip(): line for line in shown().splitlines() if ">=" in line or "<=" in line}
    assert "missed" in rows["engine / create_completion"]
    assert sum("missed" in row for row in rows.values()) == 1
    assert "ok" in rows["stand-in, messages/s"]
    assert len(rows) == len(GOALS) + len(CEILINGS) + 1


def test_the_figures_name_their_units_and_the_share_of_linear() -> None:
    text = shown()
    assert "90 messages/s, 1,800 tokens/s (20.0 tokens a message, 80% of them computed)" in text
    assert "llama-server      30.0 messages/s" in text
    assert "one at a time    p50 24 ms, p99 30 ms" in text
    assert "513 MB after 200,000 messages, 512 MB after a tenth of them, 600 MB at most" in text
    assert "Redis itself      100,000 messages/s of its one core, with batches of 256" in text
    assert "50,000 messages/s of its one core, with 2 workers, in small batches" in text
    assert "in batches        1.12 of prefill, as a worker gets them from the queue: 64 messages at most" in text
    assert "llama-cpp-python 1.2" in text
    assert "2 paced workers  396 messages/s, 0.99 of linear" in text


def test_figures_are_saved_for_machines_and_as_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = save(REPORT, tmp_path / "bench")
    assert [path.name for path in written] == ["bench.json", "latency.csv", "latency.png"]
    assert json.loads(written[0].read_text())["ratios"] == REPORT.ratios
    assert written[1].read_text().splitlines()[1:] == ["0.0,40,24.0,30.0", "22.0,200,25.0,60.0", "66.0,600,40.0,140.0"]
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_unlike_texts_share_no_words() -> None:
    first, second = unlike_texts(50, rounds=2)
    assert len({text.split()[0] for text in first + second}) > 90
    assert unlike_texts(50, rounds=2) == [first, second]


def test_a_few_texts_stand_for_all_whatever_their_order() -> None:
    by_length = ["x" * number for number in range(1, 101)]
    few = spread(by_length, 10)
    assert few == ["x" * number for number in range(6, 101, 10)]
    assert spread(by_length[:3], 10) == by_length[:3]


def test_this_machines_own_ports_are_reached_whatever_proxy_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        with pytest.raises(HTTPError) as caught:
            open_local(f"http://127.0.0.1:{server.server_port}/", timeout=10)
        answering.join()
    assert caught.value.code == 501, "the server answers, which knows no method"


class Growing:
    """A Redis whose one output stream has a message more each time it is asked, up to `stops_at`."""

    def __init__(self, stops_at: int) -> None:
        self.there, self.stops_at = 0, stops_at

    def pipeline(self, **_: object) -> Growing:
        return self

    def xlen(self, _: str) -> None:
        self.there = min(self.there + 1, self.stops_at)

    def execute(self) -> list[int]:
        return [self.there]


def test_a_slow_model_is_waited_for_as_long_as_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PATIENCE_S", 0.5)
    going, stuck = (SimpleNamespace(redis=Growing(stops_at), outputs=("o",)) for stops_at in (100, 3))
    began = time.monotonic()
    service._wait(going, 12)  # type: ignore[arg-type]
    assert time.monotonic() - began > 0.5, "longer than a worker may be silent"
    with pytest.raises(Fatal, match="3 of 12 messages were published, and none for"):
        service._wait(stuck, 12)  # type: ignore[arg-type]


@pytest.mark.parametrize("quick", [True, False])
def test_a_whole_run_takes_its_ratios_from_what_was_measured(quick: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The measuring is stood in for: 88 messages/s through Redis and 100 alone, 30,000/s with the stand-in and 60,000 by bare redis-py."""
    asked: list[str] = []

    def latency(_: object, _texts: object, per_s: float, _seconds: float, _decode: object) -> Latency:
        return Latency(per_s, 10, 26.0, 20.0 + per_s, 20.0)

    def measured(*_: object, server: Path | None, **__: object) -> EngineFigures:
        asked.append(str(server))
        return FIGURES

    @contextmanager
    def nothing(*_: object, **__: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(tuning, "choose", lambda path, *_, **__: (path, EngineOptions()))
    monkeypatch.setattr(report, "machine", lambda *_: dict(REPORT.machine) | {"labels": ["pool"]})
    monkeypatch.setattr(engine, "measure", measured)
    monkeypatch.setattr(engine, "prefill", nothing)
    monkeypatch.setattr(service, "make", lambda *_: None)
    monkeypatch.setattr(service, "clear", lambda *_: None)
    monkeypatch.setattr(service, "worker", nothing)
    monkeypatch.setattr(service, "redis_version", lambda _: "7.2")
    monkeypatch.setattr(service, "through_redis", lambda *_: (Flow(88.0, 50.0), 100.0))
    monkeypatch.setattr(service, "stand_in", lambda *_: (Flow(30_000.0, 10.0), 60_000.0))
    monkeypatch.setattr(service, "latency", latency)
    monkeypatch.setattr(service, "scale_out", lambda _, count, *__, **___: Flow(200.0 * count, 20.0))
    monkeypatch.setattr(service, "memory", lambda _, __, count: Memory(count, 500.0, 500.0, 600.0))
    settings = Settings(model=tmp_path / "model.gguf", cache_dir=tmp_path)
    made = report.bench(settings, ["q"], Console(quiet=True), quick=quick, redis_url="redis://nowhere", server=Path("llama-server"))
    assert asked == ["llama-server"]
    assert made.ratios["through Redis / engine"] == pytest.approx(0.88)
    assert made.ratios["stand-in / bare redis-py"] == 0.5
    assert made.ratios["engine / llama-server"] == FIGURES.to_server
    assert made.ratios["p50 alone / forward pass"] == pytest.approx(1.3)
    assert made.ratios["p99 at half load / forward pass"] == pytest.approx((20 + 44) / 20), "offered half of 88"
    assert (made.memory is None, made.scale_out == {}) == (quick, quick)

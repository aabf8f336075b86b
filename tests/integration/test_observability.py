"""Prometheus as a user runs it: Debian's, with the committed rules, on two workers of which one is killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import StartWorker
from tests.support import QUICK_CLAIM, ROOT, Queue, wait_for
from worker.embedded_redis import end_process, free_port

RULES = ROOT / "deploy" / "prometheus"
pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="needs prometheus and promtool: apt-get install prometheus"
)


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yaml")


@pytest.mark.parametrize("cases", ["rules.test.yaml", "rules-over-days.test.yaml"])
def test_the_rules_pass_their_unit_tests(cases: str) -> None:
    promtool("test", "rules", cases)


class Prometheus:
    """A running one, asked over HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[tuple[dict[str, str], float]]:
        found = self.get("query", query=expression)["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in found]

    def health_of_targets(self) -> list[str]:
        return sorted(target["health"] for target in self.get("targets")["activeTargets"])

    def firing(self) -> set[tuple[str, str]]:
        """Names of alerts and, where it is of one, the worker."""
        return {
            (alert["labels"]["alertname"], alert["labels"].get("instance", ""))
            for alert in self.get("alerts")["alerts"]
            if alert["state"] == "firing"
        }


@contextmanager
def prometheus(directory: Path, targets: list[str]) -> Iterator[Prometheus]:
    """The committed configuration and rules, but for the targets and the time: all goes on each second, and no alert waits (`for`)."""
    for file in RULES.glob("*.rules.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for group in content["groups"]:
            group.pop("interval", None)
            for rule in group["rules"]:
                rule.pop("for", None)
        (directory / file.name).write_text(yaml.safe_dump(content), encoding="utf-8")
    config = yaml.safe_load((RULES / "prometheus.yaml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    line = ["prometheus", f"--config.file={directory}/prometheus.yaml", f"--storage.tsdb.path={directory}/data"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*line, f"--web.listen-address=127.0.0.1:{port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: server.get("status/buildinfo"), "Prometheus to answer")
        yield server
    finally:
        end_process(process, patience_s=30)


def test_prometheus_sees_both_workers_records_what_they_route_and_tells_of_the_one_that_is_killed(
    start_worker: StartWorker, queue: Queue, tmp_path: Path
) -> None:
    workers = [start_worker(wait=False, pace_s=0.0, **QUICK_CLAIM) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()
    lost, kept = (f"127.0.0.1:{worker.port}" for worker in workers)
    directory = tmp_path / "prometheus"
    directory.mkdir()
    with prometheus(directory, [lost, kept]) as server:
        wait_for(lambda: server.health_of_targets() == ["up", "up"], "both workers to be seen")
        loaded = {rule["name"]: rule["health"] for group in server.get("rules")["groups"] for rule in group["rules"]}
        assert len(loaded) > 30
        ids = queue.add_all([f"query {number}" for number in range(40)])
        queue.wait_until_arrived(ids)
        wait_for(lambda: server.values("sum(pointsman_published_total) == 40"), "what was routed to be scraped")
        ids += queue.add_all([f"query {number}" for number in range(40, 80)])
        wait_for(lambda: server.values("job:pointsman_published:rate5m > 0"), "a rate to be recorded")
        wait_for(lambda: server.values("job_label:pointsman_latency_seconds:p99 > 0"), "latencies to be recorded by label")
        wait_for(lambda: len(server.values("job_outcome_label:pointsman_messages:rate5m")) > 10, "outcomes to be recorded by label")
        assert server.firing() == set()
        workers[0].kill()
        wait_for(lambda: ("PointsmanWorkerDown", lost) in server.firing(), "the alert of the killed worker")
        assert ("PointsmanNoWorker", "") not in server.firing()
        ids += queue.add_all([f"query {number}" for number in range(80, 120)])
        queue.assert_each_once(ids)
        assert workers[1].stop() == 0
        wait_for(lambda: ("PointsmanNoWorker", "") in server.firing(), "the alert that no worker is left")
        broken = [rule["name"] for group in server.get("rules")["groups"] for rule in group["rules"] if rule["health"] == "err"]
        assert broken == []

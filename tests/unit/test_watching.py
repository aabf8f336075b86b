"""Prometheus' rules and Grafana's dashboard name only what a worker shows, and every alert is explained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from worker.metrics import Metrics, all_series

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
RUNBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
ADDED_BY_PROMETHEUS = {"job", "instance"}
MODEL_LABELS = {"name", "version", "base", "format"}
"""Of `pointsman_model_info`, whose labels are what it tells."""
NOT_OURS = {"up": set(), "ALERTS": {"alertname", "alertstate"}} | {
    name: set() for name in ("process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds")
}
"""Series of Prometheus and of prometheus-client, with their labels."""


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / file).read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = {rule["record"]: rule["expr"] for rule in rules("recording.rules.yaml")}
ALERTS = {rule["alert"]: rule for rule in rules("alerting.rules.yaml")}
PANELS = [panel for panel in json.loads((ROOT / "deploy/grafana/pointsman.json").read_text())["panels"] if panel["type"] != "row"]
DRAWN = {f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}


def own_labels() -> dict[str, set[str]]:
    """By the name of each sample that a worker shows."""
    own = {sample: set(series.labels) for series in all_series() for sample in series.samples}
    buckets = {sample for sample in own if sample.endswith("_bucket")}
    return {sample: labels | ({"le"} if sample in buckets else set()) for sample, labels in own.items()} | {
        "pointsman_model_info": MODEL_LABELS
    }


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Every selector of an expression, however deep; Grafana's variable for a window is put in first."""
    found: list[promql_parser.VectorSelector] = []

    def note(node: object) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), note)
    return found


TYPED = dict(enumerate(re.findall(r"^promtool query instant \S+ '(.+)'$", RUNBOOK, re.MULTILINE)))
EXPRESSIONS = RECORDED | {name: rule["expr"] for name, rule in ALERTS.items()} | DRAWN | {f"runbook {n}": what for n, what in TYPED.items()}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_names_only_series_and_labels_that_there_are(name: str) -> None:
    known = own_labels() | NOT_OURS
    found = selectors(EXPRESSIONS[name])
    assert found, "an expression without any series"
    for selector in found:
        assert selector.name in known or selector.name in RECORDED, f"nobody shows {selector.name}"
        if selector.name in known:
            asked = {matcher.name for matcher in selector.matchers.matchers}
            assert asked <= known[selector.name] | ADDED_BY_PROMETHEUS | {"__name__"}, f"{selector.name} has no such label"


def test_the_promised_latency_is_a_bucket_of_the_histogram() -> None:
    metrics = Metrics()
    metrics.delivered(0.1, "pool")
    (promised,) = re.findall(r'le="([^"]+)"', RECORDED["job:pointsman_in_time:rate5m"])
    assert metrics.registry.get_sample_value("pointsman_latency_seconds_bucket", {"label": "pool", "le": promised}) == 1


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_is_how_bad_and_where_its_runbook_is(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    section = re.search(rf"^#### {name}\n(.+?)(?=^#)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section, f"docs/operations.md has no section {name}"
    assert "```console" in section[1], "a runbook shows commands to look with"


def test_the_runbook_has_no_section_without_an_alert() -> None:
    assert set(re.findall(r"^#### (Pointsman\w+)$", RUNBOOK, re.MULTILINE)) == set(ALERTS)


def test_every_alert_is_shown_to_fire() -> None:
    cases = "".join((RULES / file).read_text(encoding="utf-8") for file in ("rules.test.yaml", "rules-over-days.test.yaml"))
    assert set(re.findall(r'alertname="(Pointsman\w+)"', cases)) == set(ALERTS)


def test_every_series_of_the_worker_is_on_the_dashboard() -> None:
    drawn = " ".join(DRAWN.values())
    assert [series.name for series in all_series() if not any(sample in drawn for sample in series.samples)] == []


def test_the_dashboard_is_what_its_code_says() -> None:
    line = [sys.executable, "deploy/grafana/dashboard.py", "--check"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0, done.stderr


def test_latencies_are_drawn_with_exemplars() -> None:
    shown = {target["expr"] for panel in PANELS for target in panel["targets"] if target["exemplar"]}
    assert any("pointsman_latency_seconds_bucket" in expression for expression in shown)
    assert not any(":" in expression.partition("{")[0] for expression in shown), "a recorded series has none"

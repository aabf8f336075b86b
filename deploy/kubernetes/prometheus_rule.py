"""Write components/monitoring/prometheusrule.yaml: the rules of deploy/prometheus/*.rules.yaml as the Prometheus operator takes them.

python deploy/kubernetes/prometheus_rule.py
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).parent
TARGET = HERE / "components" / "monitoring" / "prometheusrule.yaml"
LABELS = {"app.kubernetes.io/name": "pointsman", "app.kubernetes.io/component": "worker", "app.kubernetes.io/part-of": "pointsman"}


def render() -> str:
    files = sorted(HERE.parent.glob("prometheus/*.rules.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "pointsman", "labels": LABELS},
        "spec": {"groups": groups},
    }
    head = "# Written by prometheus_rule.py from deploy/prometheus/*.rules.yaml: change those.\n"
    return head + yaml.safe_dump(rule, sort_keys=False, allow_unicode=True, width=140)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")

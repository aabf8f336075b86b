"""Write the Grafana dashboard from worker/metrics.py: a series that is not there cannot be drawn, and what it means is told in its words.

python deploy/grafana/dashboard.py          rewrite pointsman.json
python deploy/grafana/dashboard.py --check  exit 1 if pointsman.json is not what the code says
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableOption, VariableRefresh

from worker.metrics import all_series

FILE = Path(__file__).with_name("pointsman.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WORKERS = 'job=~"$job",instance=~"$instance"'
SERIES = {sample: series for series in all_series() for sample in series.samples}
Query = tuple[str, str]
"""An expression, and what its line is called."""


def select(sample: str) -> str:
    if sample not in SERIES:
        raise SystemExit(f"worker/metrics.py has no series {sample}")
    return f"{sample}{{{WORKERS}}}"


def per_second(sample: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({select(sample)}[$__rate_interval]))"


def mean(histogram: str, *by: str) -> str:
    return f"{per_second(histogram + '_sum', *by)} / {per_second(histogram + '_count', *by)}"


def quantile(share: float, histogram: str, *by: str) -> str:
    return f"histogram_quantile({share}, {per_second(histogram + '_bucket', 'le', *by)})"


def quantiles(histogram: str) -> list[Query]:
    return [(quantile(share, histogram), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99)]


def meaning(queries: tuple[Query, ...]) -> str:
    used = {SERIES[sample] for expression, _ in queries for sample in re.findall(r"pointsman_\w+", expression) if sample in SERIES}
    return "\n\n".join(f"`{series.name}`: {series.meaning}." for series in sorted(used, key=lambda series: series.name))


def targets(queries: tuple[Query, ...], *, exemplars: bool = False) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().ref_id(chr(ord("A") + number)).datasource(SOURCE).expr(expression).legend_format(legend).exemplar(exemplars)
        for number, (expression, legend) in enumerate(queries)
    ]


def graph(title: str, *queries: Query, unit: str = "short", stacked: bool = False, exemplars: bool = False) -> timeseries.Panel:
    """Lines over time. With `exemplars` single messages are dots that lead to their traces."""
    panel = timeseries.Panel().title(title).description(meaning(queries)).datasource(SOURCE).unit(unit).min(0).span(8).height(8)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    return panel.targets(targets(queries, exemplars=exemplars))


def figure(title: str, expression: str, unit: str = "short") -> stat.Panel:
    """One number, as it is now."""
    query = ((expression, ""),)
    return stat.Panel().title(title).description(meaning(query)).datasource(SOURCE).unit(unit).span(4).height(4).targets(targets(query))


ROWS: dict[str, list[timeseries.Panel | stat.Panel]] = {
    "Now": [
        figure("Workers up", f"sum(up{{{WORKERS}}})"),
        figure("Published", f"sum(rate({select('pointsman_published_total')}[$__rate_interval]))", "cps"),
        figure("Lag", f"max({select('pointsman_stream_lag')})"),
        figure("Latency p99", quantile(0.99, "pointsman_latency_seconds"), "s"),
        figure("Error budget left, 30 days", 'min(job:pointsman_error_budget:remaining30d{job=~"$job"})', "percentunit"),
        figure("Alerts", 'count(ALERTS{alertname=~"Pointsman.*",alertstate="firing"}) or vector(0)'),
    ],
    "Throughput": [
        graph("By outcome", (per_second("pointsman_messages_total", "outcome"), "{{outcome}}"), unit="cps", stacked=True),
        graph("By label", (per_second("pointsman_messages_total", "label"), "{{label}}"), unit="cps", stacked=True),
        graph("By worker", (per_second("pointsman_published_total", "instance"), "{{instance}}"), unit="cps", stacked=True),
    ],
    "Latency": [
        graph("XADD to publication", *quantiles("pointsman_latency_seconds"), unit="s", exemplars=True),
        graph("p95 by label", (quantile(0.95, "pointsman_latency_seconds", "label"), "{{label}}"), unit="s", exemplars=True),
        graph("p95 by stage", (quantile(0.95, "pointsman_stage_seconds", "stage"), "{{stage}}"), unit="s"),
    ],
    "Queue": [
        graph(
            "Waiting",
            (f"max({select('pointsman_stream_lag')})", "lag: not yet read"),
            (f"max({select('pointsman_pending')})", "pending: read, not acknowledged"),
            (f"sum({select('pointsman_held_back')})", "held back: Redis refuses"),
        ),
        graph("Dead letters by reason", (per_second("pointsman_dead_total", "reason"), "{{reason}}"), unit="cps", stacked=True),
        graph("Redis refuses, by reason", (per_second("pointsman_delivery_retries_total", "reason"), "{{reason}}"), unit="cps"),
        graph("Claimed from stuck or dead workers", (per_second("pointsman_reclaimed_total", "instance"), "{{instance}}"), unit="cps"),
        graph(
            "Not published, cut, failed",
            (f"sum(rate({select('pointsman_duplicates_total')}[$__rate_interval]))", "another worker had done it"),
            (f"sum(rate({select('pointsman_deduplicated_total')}[$__rate_interval]))", "sent twice"),
            (f"sum(rate({select('pointsman_failed_total')}[$__rate_interval]))", "failed"),
            (f"sum(rate({select('pointsman_truncated_total')}[$__rate_interval]))", "cut, too long"),
            unit="cps",
        ),
        graph("Checks of readiness", (f"min by (check) ({select('pointsman_ready')})", "{{check}}")),
    ],
    "Model": [
        graph("Confidence by label, mean", (mean("pointsman_confidence", "label"), "{{label}}"), unit="percentunit"),
        graph("Batch size", (mean("pointsman_batch_size"), "mean"), (quantile(0.95, "pointsman_batch_size"), "p95")),
        graph("Tokens", (per_second("pointsman_tokens_total", "instance"), "{{instance}}"), unit="cps", stacked=True),
        graph(
            "Workers by model",
            (f"count by (name, version, format) ({select('pointsman_model_info')})", "{{name}} {{version}} {{format}}"),
            stacked=True,
        ),
        graph(
            "New model files",
            (f"sum by (outcome) (increase({select('pointsman_model_swaps_total')}[$__rate_interval]))", "{{outcome}}"),
        ),
    ],
    "Processes": [
        graph(
            "Workers by what they read",
            (f"count by (stream, group) ({select('pointsman_worker_info')})", "{{stream}} {{group}}"),
            stacked=True,
        ),
        graph("Memory", (f"process_resident_memory_bytes{{{WORKERS}}}", "{{instance}}"), unit="bytes"),
        graph("CPU cores", (f"rate(process_cpu_seconds_total{{{WORKERS}}}[$__rate_interval])", "{{instance}}")),
        graph("Open files", (f"process_open_fds{{{WORKERS}}}", "{{instance}}")),
    ],
}


def choice(name: str, label: str, query: str, every_value: str) -> dashboard.QueryVariable:
    every = VariableOption(text="All", value="$__all", selected=True)
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.multi(True).include_all(True).all_value(every_value).current(every)


def make() -> str:
    board = (
        dashboard.Dashboard("Pointsman")
        .uid("pointsman")
        .tags(["pointsman"])
        .description("Made by deploy/grafana/dashboard.py.")
        .readonly()
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(choice("job", "Job", "label_values(pointsman_model_info, job)", "pointsman.*"))
        .with_variable(choice("instance", "Worker", 'label_values(pointsman_model_info{job=~"$job"}, instance)', ".*"))
    )
    ids = itertools.count(1)
    for title, panels in ROWS.items():
        board.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            board.with_panel(panel.id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def main() -> None:
    made = make()
    if "--check" in sys.argv[1:]:
        if not FILE.exists() or FILE.read_text(encoding="utf-8") != made:
            raise SystemExit(f"{FILE} is not what the code says: run `python deploy/grafana/dashboard.py`")
    else:
        FILE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()

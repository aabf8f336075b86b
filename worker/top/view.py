"""How a frame looks, at any width and height. Pure: a frame -> something that rich prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worker.terminal import safe
from worker.top.frame import Frame, Output, Worker
from worker.top.snapshot import RECENT_DEAD

NOTHING = "·"
UNKNOWN = "?"
CELL = 10
"""Width of one figure of the head."""
NAME = 20
"""Width that a name gets before figures do."""
GAP = 2
MOST_MODELS = 3
MOST_PROBLEMS = 3
BAR = 30
COLOURS = {"topic": "green", "review": "yellow", "dead": "red"}

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """Of a table of workers or streams."""

    title: str
    width: int
    rank: int
    """Where the terminal is narrow the lowest are kept."""
    cell: Callable[[Row], Text]
    right: bool = True


def render(frame: Frame, width: int, height: int | None = None) -> RenderableType:
    """The whole frame.

    Args:
        height: lines that there are; what does not fit is counted instead. None for no limit.
    """
    figures, lines = _figures(frame, width), [_cut(line, width) for line in _lines(frame)]
    above = 2 + 2 * len(figures) + len(lines)
    left = None if height is None else max(0, height - above - 2 * 2)  # two tables: an empty line and their titles
    workers_need, outputs_need = len(frame.workers), len(frame.outputs)
    outputs_fit = outputs_need if left is None else max(left - workers_need, left // 2)
    workers_fit = workers_need if left is None else left - min(outputs_need, outputs_fit)
    parts: list[RenderableType] = [_title(frame, width), Text(), *figures, *lines]
    if frame.workers:
        parts += [Text(), _workers(frame.workers, width, workers_fit)]
    if frame.outputs:
        parts += [Text(), _outputs(frame.outputs, width, outputs_fit)]
    return Group(*parts)


def _title(frame: Frame, width: int) -> Text:
    title = Text.assemble((safe(frame.stream), "bold"), f"  group {safe(frame.group)}")
    if frame.over_s is not None:
        title.append(f"  over {frame.over_s:.1f} s", "dim")
    return _cut(title, width)


def _figures(frame: Frame, width: int) -> list[Table]:
    """The head: as many figures side by side as fit."""
    lag = Text(UNKNOWN if frame.lag is None and frame.group_exists else _count(frame.lag))
    cells: list[tuple[str, Text]] = [
        ("in", Text(_rate(frame.in_per_s), "bold")),
        ("out", Text(_rate(frame.out_per_s), "bold")),
        ("lag", lag),
        ("pending", Text(_count(frame.pending))),
        ("oldest", Text(seconds(frame.oldest_pending_s))),
        ("lat. p50", Text(seconds(frame.latency_p50_s))),
        ("lat. p99", Text(seconds(frame.latency_p99_s))),
        ("dead", Text(_count(frame.dead), "red" if frame.dead_per_s else "")),
    ]
    beside = max(1, min(len(cells), width // CELL))
    tables = []
    for start in range(0, len(cells), beside):
        table = Table.grid(padding=0)
        row = cells[start : start + beside]
        for _ in row:
            table.add_column(width=CELL, no_wrap=True)
        table.add_row(*(Text(name, "dim") for name, _ in row))
        table.add_row(*(value for _, value in row))
        tables.append(table)
    return tables


def _lines(frame: Frame) -> Iterable[Text]:
    """What is said in words: the newest message, the models, dead letters, what is missing."""
    if not frame.stream_exists:
        yield Text(f"there is no stream {safe(frame.stream)}: no query was sent and no worker has started", "yellow")
    elif not frame.group_exists:
        yield Text(f"there is no group {safe(frame.group)}: no worker has started", "yellow")
    elif not frame.workers:
        yield Text("no worker is in the group", "yellow")
    if frame.newest_age_s is not None:
        took = "" if frame.newest_latency_s is None else f", took {seconds(frame.newest_latency_s)}"
        yield Text.assemble(("last out  ", "dim"), f"{seconds(frame.newest_age_s)} ago{took}")
    if frame.models:
        shown = ", ".join(safe(model) for model in frame.models[:MOST_MODELS])
        more = f" and {len(frame.models) - MOST_MODELS} more" if len(frame.models) > MOST_MODELS else ""
        yield Text.assemble(("models    " if len(frame.models) > 1 else "model     ", "dim"), shown + more)
    if frame.dead_reasons and frame.newest_dead_age_s is not None:
        reasons = ", ".join(f"{safe(reason)} {count}" for reason, count in frame.dead_reasons.items())
        of = f" of the newest {RECENT_DEAD}" if frame.dead > RECENT_DEAD else ""
        yield Text.assemble(("dead      ", "dim"), f"{reasons}{of}; the last {seconds(frame.newest_dead_age_s)} ago")
    told = sum(worker.not_ready is not None for worker in frame.workers)
    if frame.workers and told < len(frame.workers):
        yield Text(f"{told} of {len(frame.workers)} workers tell their own figures; --metrics URL asks others", "dim")
    if not frame.counts_added:
        yield Text("Redis before 7.0 counts no additions: rates and totals are those of lengths", "dim")
    for problem in frame.unreachable[:MOST_PROBLEMS]:
        yield Text(safe(problem), "yellow")
    if len(frame.unreachable) > MOST_PROBLEMS:
        yield Text(f"and {len(frame.unreachable) - MOST_PROBLEMS} more that cannot be asked", "yellow")


def _workers(workers: Sequence[Worker], width: int, fit: int) -> Table:
    columns: list[Column[Worker]] = [
        Column("state", 9, 4, _state, right=False),
        Column("/s", 7, 1, lambda worker: Text(_rate(worker.per_s))),
        Column("in flight", 9, 2, lambda worker: Text(_count(worker.in_flight))),
        Column("batch", 5, 6, lambda worker: Text(NOTHING if worker.batch_size is None else f"{worker.batch_size:.1f}")),
        Column("p50", 7, 8, lambda worker: Text(seconds(worker.latency_p50_s))),
        Column("p99", 7, 5, lambda worker: Text(seconds(worker.latency_p99_s))),
        Column("idle", 7, 3, lambda worker: Text(seconds(worker.idle_s))),
        Column("model", 22, 7, lambda worker: Text(safe(worker.model or NOTHING)), right=False),
    ]
    if all(worker.not_ready is None for worker in workers):
        columns = [column for column in columns if column.title in ("in flight", "idle")]
    return _table("worker", workers, lambda worker: Text(safe(worker.consumer)), columns, width, fit)


def _state(worker: Worker) -> Text:
    if worker.not_ready is None:
        return Text(NOTHING)
    return Text(", ".join(map(safe, worker.not_ready)), "red") if worker.not_ready else Text("ready", "green")


def _outputs(outputs: Sequence[Output], width: int, fit: int) -> Table:
    """The label mix: rates, and of all that was ever added each stream's share."""
    every, largest = sum(output.total for output in outputs) or 1, max(output.total for output in outputs) or 1
    columns: list[Column[Output]] = [
        Column("/s", 7, 1, lambda output: Text(_rate(output.per_s))),
        Column("total", 9, 3, lambda output: Text(_count(output.total))),
        Column("share", 6, 2, lambda output: Text(f"{output.total / every:.1%}")),
        Column("", BAR, 4, lambda output: Text("▇" * round(BAR * output.total / largest), COLOURS[output.kind]), right=False),
    ]
    return _table("published to", outputs, lambda output: Text(safe(output.place), COLOURS[output.kind]), columns, width, fit)


def _table(title: str, rows: Sequence[Row], name: Callable[[Row], Text], columns: Sequence[Column[Row]], width: int, fit: int) -> Table:
    """Names, and of the columns those that fit beside them; at most `fit` lines below the titles."""
    longest = max(len(title), *(len(name(row)) for row in rows))
    room, kept = width - min(longest, NAME) - GAP, []
    for column in sorted(columns, key=lambda column: column.rank):
        if column.width + GAP <= room:
            room -= column.width + GAP
            kept.append(column)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(title, width=min(longest, min(longest, NAME) + room), no_wrap=True, overflow="ellipsis")
    chosen = [column for column in columns if column in kept]
    for column in chosen:
        table.add_column(column.title, width=column.width, no_wrap=True, overflow="ellipsis", justify="right" if column.right else "left")
    shown = rows if len(rows) <= fit else rows[: max(0, fit - 1)]
    for row in shown:
        table.add_row(name(row), *(column.cell(row) for column in chosen))
    if len(shown) < len(rows):
        table.add_row(Text(f"and {len(rows) - len(shown)} more", "dim"))
    return table


def _cut(line: Text, width: int) -> Text:
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line


def _count(number: int | None) -> str:
    if number is None:
        return NOTHING
    return f"{number:,}".replace(",", " ") if number < 1_000_000 else f"{number / 1e6:.2f} M"


def _rate(per_s: float | None) -> str:
    if per_s is None:
        return NOTHING
    return f"{per_s:.1f}" if per_s < 100 else f"{per_s:.0f}"


def seconds(value: float | None) -> str:
    """A span of time in few characters."""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{value * 1000:.0f} ms"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"

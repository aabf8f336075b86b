"""The plots of a report, each as one SVG element to stand in an HTML page. Colours by Okabe and Ito, which all can tell apart."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8a8f98"
MOST_LABELS = 24
"""A confusion matrix of more cannot be read."""

_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "axes.edgecolor": GREY,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "text.parse_math": False,
}


def losses(training: Sequence[Sequence[float]], validation: Sequence[Sequence[float]]) -> str:
    """Loss by step, (step, loss) each."""
    with mpl.rc_context(_STYLE):
        axes = _axes(6.4, 3.6)
        axes.plot(*zip(*training, strict=True), color=BLUE, linewidth=1.2, label="training, each a mean of a few steps")
        if validation:
            axes.plot(*zip(*validation, strict=True), color=ORANGE, marker="o", linewidth=2, label="validation")
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
        axes.legend()
        return _svg(axes, "losses")


def comparison(rows: Sequence[tuple[str, float, float]]) -> str:
    """Accuracy and macro-F1 of each way to classify, best first."""
    with mpl.rc_context(_STYLE):
        axes = _axes(7.6, 0.7 + 0.62 * len(rows))
        places = np.arange(len(rows))
        for values, offset, colour, label in (
            ([row[1] for row in rows], -0.19, BLUE, "accuracy"),
            ([row[2] for row in rows], 0.19, ORANGE, "macro-F1"),
        ):
            bars = axes.barh(places + offset, values, height=0.36, color=colour, label=label)
            axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=9)
        axes.set_yticks(places, [row[0] for row in rows])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.12), xlabel="of the queries; mean over labels")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower right")
        return _svg(axes, "comparison")


def most_confused(names: Sequence[str], confusions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The labels that take part in most confusions, MOST_LABELS at most, in their own order."""
    errors = dict.fromkeys(names, 0)
    for row in confusions:
        errors[row["label"]] += row["count"]
        errors[row["given"]] += row["count"]
    kept = set(sorted(names, key=lambda name: -errors[name])[:MOST_LABELS])
    return [name for name in names if name in kept]


def confusion_matrix(names: Sequence[str], per_label: Mapping[str, Mapping[str, float]], confusions: Sequence[Mapping[str, Any]]) -> str:
    """How often each of `names` was given for each; shaded by the share of the row's label."""
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for name, row in per_label.items():
        if name in place:
            counts[place[name], place[name]] = round(row["recall"] * row["n"])
    for pair in confusions:
        if pair["label"] in place and pair["given"] in place:
            counts[place[pair["label"]], place[pair["given"]]] = pair["count"]
    totals = np.array([max(1.0, per_label.get(name, {}).get("n", 1.0)) for name in names])
    with mpl.rc_context(_STYLE):
        size = 2.4 + 0.36 * len(names)
        axes = _axes(size, size)
        # The root makes the few errors visible beside the many right answers.
        edges = np.arange(len(names) + 1) - 0.5
        shades = np.sqrt(counts / totals[:, None])
        axes.pcolormesh(edges, edges, shades, cmap="Blues", vmin=0, vmax=1, edgecolors="#e6e8eb", linewidth=0.6)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        for y, x in np.argwhere(counts > 0).tolist():
            axes.text(
                x, y, f"{counts[y, x]:.0f}", ha="center", va="center", fontsize=8.5, color="white" if x == y else "black",
                fontweight="normal" if x == y else "bold",
            )  # fmt: skip
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="label given", ylabel="right label")
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _svg(axes, "confusion")


def reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """Accuracy by confidence; on the diagonal a model is as right as it is sure."""
    with mpl.rc_context(_STYLE):
        axes = _axes(4.6, 4.4)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as right as sure")
        axes.bar(
            [row["low"] for row in bins],
            [row["accuracy"] for row in bins],
            width=[row["high"] - row["low"] for row in bins],
            align="edge",
            color="#b9d6e8",
            edgecolor="white",
            label="accuracy",
        )
        axes.plot([r["confidence"] for r in bins], [r["accuracy"] for r in bins], "o", color=BLUE, label="at mean confidence")
        for row in bins:
            axes.annotate(f"{row['n']:.0f}", ((row["low"] + row["high"]) / 2, 0.015), ha="center", fontsize=8)
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="confidence (at the foot of a bar: its queries)", ylabel="accuracy")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(loc="upper left")
        return _svg(axes, "reliability")


def risk_coverage(points: Sequence[Mapping[str, float]], at_threshold: tuple[float, float] | None) -> str:
    """Error among the routed by how many are routed; `at_threshold` is (coverage, error) of the model's, None if it routes none."""
    with mpl.rc_context(_STYLE):
        axes = _axes(5.4, 4.4)
        axes.plot([row["coverage"] for row in points], [row["error"] for row in points], color=BLUE, marker=".", linewidth=1.6)
        if at_threshold is not None:
            coverage, error = at_threshold
            axes.plot([coverage], [error], "D", color=ORANGE, markersize=8, clip_on=False, zorder=3, label="at the model's threshold")
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage: share of all queries routed", ylabel="error among the routed")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        if at_threshold is not None:
            axes.legend(loc="upper left")
        return _svg(axes, "risk")


def _axes(width_in: float, height_in: float) -> Axes:
    return Figure(figsize=(width_in, height_in), layout="constrained").subplots()


def _svg(axes: Axes, name: str) -> str:
    """The figure as an SVG element whose ids are its own in the page, and the same whenever it is drawn."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name, "svg.id": name}):
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.savefig(buffer, format="svg", metadata=nothing)
    element = re.sub(r".*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", element)

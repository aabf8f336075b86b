"""One HTML page about a model, with plots: a pure function of its metadata and of what was measured for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer import card, plots
from trainer.rendering import competitors, shown_evaluation, templates

REPORT_FILE = "report.html"
MOST_PAIRS = 15


def render(metadata: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The page; it needs no other file and no network. What was not recorded says so.

    Args:
        metadata: the `pointsman.*` values of the model.
        record: what `figures.measure` found, or nothing.
    """
    measured_on, figures = shown_evaluation(metadata, record)
    names = [label["name"] for label in metadata["labels"]["labels"]]
    confused = plots.most_confused(names, figures.get("confusions", []))
    page = templates(html=True).get_template("report.html.jinja")
    return page.render(
        training=metadata["training"],
        calibration=metadata["calibration"],
        prompt=metadata["prompt"],
        names=names,
        out_of_scope=metadata["labels"].get("out_of_scope"),
        record=record,
        measured_on=measured_on,
        figures=figures,
        competitors=competitors(metadata, record),
        confused=confused,
        most_pairs=MOST_PAIRS,
        plots=_plots(metadata, record, figures, confused),
    )


def write(directory: Path, metadata: Mapping[str, Any], record: Mapping[str, Any], model: Path) -> Iterator[Path]:
    """Write the page and the model card of `model`, its directory, into `directory`; yields each when it is written."""
    for name, text in ((REPORT_FILE, render(metadata, record)), (card.CARD_FILE, card.render(metadata, record, model))):
        (directory / name).write_text(text, encoding="utf-8")
        yield directory / name


def _plots(metadata: Mapping[str, Any], record: Mapping[str, Any], figures: Mapping[str, Any], confused: list[str]) -> dict[str, str]:
    """The plots for which there are figures."""
    drawn = {}
    training = metadata["training"]
    if training.get("losses"):
        drawn["losses"] = plots.losses(training["losses"], training.get("eval_losses", []))
    rows = competitors(metadata, record)
    if len(rows) > 1:
        drawn["comparison"] = plots.comparison([(f"{row['name']} (n = {row['n']:,})", row["accuracy"], row["macro_f1"]) for row in rows])
    if figures.get("per_label"):
        drawn["confusion"] = plots.confusion_matrix(confused, figures["per_label"], figures["confusions"])
    if figures.get("reliability"):
        drawn["reliability"] = plots.reliability(figures["reliability"])
    if figures.get("risk_coverage"):
        right = figures["routed_accuracy"]
        at_threshold = None if right is None else (1 - figures["reviewed"], 1 - right)
        drawn["risk_coverage"] = plots.risk_coverage(figures["risk_coverage"]["points"], at_threshold)
    return drawn

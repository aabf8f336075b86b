"""The model card in Markdown: what the model is, how good, for what and for what not. All from recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.rendering import competitors, shown_evaluation, templates

WEAKEST = 3
CARD_FILE = "card.md"


def render(metadata: Mapping[str, Any], record: Mapping[str, Any], model: Path) -> str:
    """The card; `metadata` and `record` as for the report, `model` the directory that the model belongs into."""
    measured_on, figures = shown_evaluation(metadata, record)
    per_label = figures.get("per_label", {})
    routed = [row for row in figures.get("routing", []) if row["label"] is not None and row["routed"]]
    return (
        templates(html=False)
        .get_template("card.md.jinja")
        .render(
            directory=model,
            labels=metadata["labels"]["labels"],
            out_of_scope=metadata["labels"].get("out_of_scope"),
            training=metadata["training"],
            calibration=metadata["calibration"],
            parts=metadata["evaluation"],
            record=record,
            measured_on=measured_on,
            figures=figures,
            competitors=competitors(metadata, record),
            weakest=sorted(per_label, key=lambda name: per_label[name]["f1"])[:WEAKEST],
            least_sure=sorted(routed, key=lambda row: row["least_precision"])[:WEAKEST],
            confusions=figures.get("confusions", [])[:WEAKEST],
        )
    )

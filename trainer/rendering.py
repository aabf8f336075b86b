"""How recorded figures are written: the templates of report and card, and what stands where nothing was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

NOT_RECORDED = "not recorded"
NONE_SUCH = "no such queries"
"""What stands for None: it was looked for, and there were none to measure with."""


def templates(*, html: bool) -> jinja2.Environment:
    """Templates with the filters `shown`, `percent`, `decimal`, `count`, `threshold`, `part` (of what may be absent), `cell`,
    `calibrated_on`, `unseen`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer"), autoescape=html, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "shown": _shown, "percent": _percent, "decimal": _decimal, "count": _count, "threshold": _threshold, "part": _part, "cell": _cell,
        "calibrated_on": _calibrated_on, "unseen": _unseen,
    }  # fmt: skip
    return environment


def shown_evaluation(metadata: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """On what the figures shown were measured, and the figures: those of the record, else those of training, test part first."""
    if "evaluation" in record:
        data = record["data"]
        part = "all of" if data["split"] == "all" else f"the {data['split']} part of"
        return f"{part} {data['file']}", record["evaluation"]
    for part in ("test", "validation"):
        if "reviewed" in metadata["evaluation"].get(part, {}):  # where it was calibrated since, not of the test part
            where = "the queries it was calibrated on" if metadata["training"].get("calibrated") else f"the {part} part, at training"
            return where, metadata["evaluation"][part]
    return "nothing", {}


def _calibrated_on(training: Mapping[str, Any]) -> str:
    """The queries by which temperature, offset and thresholds were chosen."""
    calibrated = training.get("calibrated")
    return f"the {calibrated['rows']:,} queries of its last calibration" if calibrated else "the validation part"


def _unseen(training: Mapping[str, Any]) -> bool:
    """Whether the model was calibrated on queries that nothing else of it was chosen by: then a guarantee is exact."""
    calibrated, data = training.get("calibrated"), training.get("data_sha256")
    if calibrated is None or not isinstance(data, Mapping):
        return False
    return calibrated["sha256"] not in data.values() and not calibrated.get("of_validation")


def competitors(metadata: Mapping[str, Any], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The model and what it is compared with, a row of figures each, best first; only what was measured."""
    figures = shown_evaluation(metadata, record)[1]
    rows = [{"name": f"{metadata['training']['name']}, fine-tuned", **_of(figures)}] if figures else []
    if found := record.get("yardsticks"):
        n = record["data"]["n"]
        rows.append({"name": "TF-IDF + linear SVM", "n": n, **found["tfidf_svm"]})
        rows.append({"name": f"most frequent label ({found['majority']['label']})", "n": n, **found["majority"]})
    if found := record.get("baseline"):
        rows += [
            {"name": "untuned, held to the label names", "n": found["n"], **found["constrained"]},
            {"name": "untuned, answering freely", "n": found["n"], **found["free"]},
        ]
    return sorted(rows, key=lambda row: -row["accuracy"])


def _of(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in ("n", "accuracy", "macro_f1")}


def _shown(value: Any, form: str = "") -> str:
    if isinstance(value, jinja2.Undefined):
        return NOT_RECORDED
    return NONE_SUCH if value is None else format(value, form)


def _percent(value: Any, places: int = 1) -> str:
    return _shown(value, f".{places}%").replace("%", "\N{NO-BREAK SPACE}%")


def _decimal(value: Any, places: int = 3) -> str:
    return _shown(value, f".{places}f")


def _count(value: Any) -> str:
    return _shown(value, ",.0f")


def _threshold(value: float) -> str:
    return _percent(value) if value < 1 else "never routed"


def _part(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, Mapping) else value


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")

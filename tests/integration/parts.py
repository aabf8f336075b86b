"""What tests that build their own model files share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support import ROOT
from trainer.recipe import load_recipe

RECIPE = ROOT / "trainer" / "recipes" / "household-smollm2.yaml"


def base_file() -> Path:
    """The untrained base: a GGUF without Pointsman metadata."""
    return load_recipe(RECIPE).base.path()


def metadata(names: Iterable[str], prefix: str, suffix: str, probes: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Metadata of a model whose codes are its labels' names, which may be several tokens long."""
    return {
        "format": 1,
        "labels": {"labels": [{"name": name, "description": "", "code": name} for name in names], "out_of_scope": None},
        "prompt": {"prefix": prefix, "suffix": suffix},
        "calibration": {"temperature": 1.0, "threshold": 0.0, "thresholds": {}},
        "evaluation": {},
        "probes": {"tolerance": 0.1, "probes": list(probes)},
        "training": {"name": "untrained", "version": "0", "base": "SmolLM2-135M-Instruct"},
    }

"""The import contracts of pyproject.toml: kept by the code, and each able to fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "the classifier knows nothing of the rest of the worker": ("worker/classifier/labels.py", "import worker.messages"),
    "imports in the worker run one way": ("worker/routing.py", "import worker.pipeline"),
    "the parts of the pipeline know nothing of settings, health and logs": ("worker/delivery.py", "import worker.settings"),
    "the worker never imports the trainer or torch": ("worker/app.py", "import torch"),
    "llama_cpp is imported in engine, model_file, formats and kernels alone": ("worker/classifier/prompt.py", "import llama_cpp"),
    "FastStream is imported in app and connection alone": ("worker/pipeline.py", "import faststream"),
    "OpenTelemetry is imported in tracing alone": ("worker/pipeline.py", "import opentelemetry"),
    "the trainer uses nothing of the worker but its classifier": ("trainer/dataset.py", "import worker.errors"),
    "torch is imported in adapter, network, peers, pretrained, sft and watch alone": ("trainer/build.py", "import torch"),
}


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--config", str(directory / "pyproject.toml"), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(directory), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in ("worker", "trainer"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_code_keeps_every_contract() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(FORBIDDEN)} kept, 0 broken" in result.stdout


def test_every_contract_is_shown_to_be_able_to_fail() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == set(FORBIDDEN)


@pytest.mark.parametrize("contract", FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(copy: Path, contract: str) -> None:
    file, line = FORBIDDEN[contract]
    module = copy / file
    module.write_text(f"{module.read_text()}\n{line}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in result.stdout

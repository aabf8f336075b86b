"""The README's examples are run, and their output is what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\$ (.+)\n((?:(?!\$ |```).*\n)+)", README, re.MULTILINE)


def test_the_readme_has_examples_to_run() -> None:
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize(("command", "printed"), EXAMPLES, ids=[command[:50] for command, _ in EXAMPLES])
def test_an_example_of_the_readme_prints_what_it_says(command: str, printed: str) -> None:
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    words = re.findall(r"[a-z_]{3,}", printed)
    assert words, "the README shows no output for this command"
    assert re.findall(r"[a-z_]{3,}", done.stdout)[: len(words)] == words


def test_every_command_in_the_readmes_table_exists() -> None:
    commands = re.findall(r"^\| `python -m (worker|trainer) (\w+)", README, re.MULTILINE)
    assert len(commands) >= 8

    def exit_code(package: str, command: str) -> int:
        line = [sys.executable, "-m", package, command, "--help"]
        return subprocess.run(line, cwd=ROOT, capture_output=True, timeout=240, check=False).returncode

    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda each: exit_code(*each), commands))
    assert dict(zip(commands, codes, strict=True)) == dict.fromkeys(commands, 0)

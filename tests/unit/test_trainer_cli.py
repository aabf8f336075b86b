from __future__ import annotations

import subprocess
import sys

WITHOUT_SKLEARN = """
import sys
sys.modules["sklearn"] = None
sys.argv[1:] = ["inspect", "models/household/exam.json"]
from trainer import cli
cli.main()
"""


def test_a_command_whose_libraries_are_not_installed_says_what_installs_them() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_SKLEARN], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "sklearn" in done.stderr
    assert "`make setup` installs the trainer's libraries" in done.stderr

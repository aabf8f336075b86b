"""Files that are there with the old content or with the new, never with a part."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the file, onto the disk, and rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    sync(partial)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that people may read, too."""
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def sync(path: Path) -> None:
    """Onto the disk: else a rename may outlive a power failure that the content does not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

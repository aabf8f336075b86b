"""Training in several processes at once, as `accelerate launch` or torchrun starts them: all compute, the first one does the rest."""

from __future__ import annotations

import os


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0

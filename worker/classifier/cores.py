"""Which CPU, and how many cores of it this process may use: what its affinity allows, cut by the CPU quota of its cgroups (containers).

llama.cpp with a thread more than it has cores for is several times slower, since every thread waits for the last.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_cores(root: Path = _CGROUP_ROOT, own: Path = _OWN_CGROUP) -> int:
    """At least 1. A quota of two and a half cores counts as two: a third thread would be throttled.

    Args:
        root: where cgroups are mounted, version 2 or version 1.
        own: the file that names this process' cgroups.
    """
    quotas = [quota for directory in _directories(root, own) if (quota := _quota(directory)) is not None]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def _directories(root: Path, own: Path) -> list[Path]:
    """The process' cgroups and all above them: a quota anywhere on the way holds."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    found = [root, root / "cpu"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            base = root / "cpu" if controllers else root
            inner = Path(path.lstrip("/"))
            found += [base / part for part in (inner, *inner.parents)]
    return found


def _quota(directory: Path) -> float | None:
    """Cores that one cgroup may use, None if it sets no limit."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((directory / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else quota_us / int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


def cpu_name() -> str:
    """What the CPU calls itself; its architecture where it does not say."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

"""Affinity and quota, on cgroup trees as version 2 and version 1 lay them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.classifier.cores import available_cores

AFFINITY = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def cores(tmp_path: Path, own: str, **files: str) -> int:
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/").replace("_max", ".max").replace("_cfs", ".cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return available_cores(tmp_path, tmp_path / "own")


def test_without_a_quota_it_is_the_affinity(tmp_path: Path) -> None:
    assert cores(tmp_path, "0::/\n", cpu_max="max 100000\n") == 8
    assert available_cores(tmp_path / "nothing", tmp_path / "nothing") == 8


def test_a_containers_quota_cuts_it(tmp_path: Path) -> None:
    assert cores(tmp_path, "0::/\n", cpu_max="300000 100000\n") == 3


def test_a_quota_of_a_part_of_a_core_counts_down_but_never_to_none(tmp_path: Path) -> None:
    assert cores(tmp_path, "0::/\n", cpu_max="250000 100000\n") == 2
    assert cores(tmp_path, "0::/\n", cpu_max="50000 100000\n") == 1


def test_the_least_quota_on_the_way_up_holds(tmp_path: Path) -> None:
    own = "0::/system.slice/pointsman.service\n"
    assert cores(tmp_path, own, system__pod__cpu_max="100000 100000", cpu_max="max 100000") == 8
    (tmp_path / "system.slice" / "pointsman.service").mkdir(parents=True)
    (tmp_path / "system.slice" / "cpu.max").write_text("200000 100000")
    (tmp_path / "system.slice" / "pointsman.service" / "cpu.max").write_text("max 100000")
    assert available_cores(tmp_path, tmp_path / "own") == 2


def test_cgroups_of_version_1_are_understood(tmp_path: Path) -> None:
    own = "5:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"
    assert cores(tmp_path, own, cpu__docker__abc__cpu_cfs_quota_us="400000", cpu__docker__abc__cpu_cfs_period_us="100000") == 4
    assert cores(tmp_path, own, cpu__docker__abc__cpu_cfs_quota_us="-1") == 8


def test_this_process_may_use_at_least_one_core_and_no_more_than_its_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= available_cores() <= AFFINITY

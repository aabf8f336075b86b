"""deploy/compose.yaml: closed to the outside, pinned, and in step with the settings and files that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.settings import PREFIX, Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
WORKERS = [service for name, service in SERVICES.items() if name.startswith("worker-")]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_change_nothing_but_its_data_and_listens_on_this_machine_alone(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("user", "") not in ("0", "root", "0:0")
    assert [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")] == []
    assert [mount for mount in service.get("volumes", []) if mount.startswith(".") and not mount.endswith(":ro")] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_and_says_whether_it_is_well(name: str) -> None:
    assert re.fullmatch(r"[\w/-]+:(dev|v?\d+\.\d+[\w.-]*)", SERVICES[name]["image"])
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_workers_are_two_alike_that_wait_for_redis_and_have_time_to_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(WORKERS) == 2
    assert WORKERS[0] == WORKERS[1]
    environment: dict[str, str] = WORKERS[0]["environment"]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings(environment)
    assert int(WORKERS[0]["stop_grace_period"].removesuffix("s")) > 2 * settings.drain_timeout_s + 10
    assert WORKERS[0]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert f"127.0.0.1:{settings.http_port}/readyz" in WORKERS[0]["healthcheck"]["test"][-1]
    assert set(environment) <= {PREFIX + name.upper() for name in Settings.model_fields}


def test_prometheus_scrapes_every_worker() -> None:
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    port = Settings.model_fields["http_port"].default
    assert scraped["static_configs"][0]["targets"] == [f"{name}:{port}" for name in SERVICES if name.startswith("worker-")]


def test_every_file_that_a_service_mounts_is_there() -> None:
    mounted = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", []) if mount.startswith(".")]
    assert len(mounted) >= 5
    assert [path for path in mounted if not (DEPLOY / path).exists()] == []

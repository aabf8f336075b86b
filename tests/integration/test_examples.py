"""The backends of deploy/examples at work beside a real worker with the household model, by the commands of their README."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from redis import Redis

from tests.integration import stand_in_curl
from tests.integration.parts import Collector
from tests.support import PATIENCE_S, ROOT, Queue, RedisServer, WorkerProcess, wait_for
from worker.settings import PREFIX, Settings

EXAMPLES = ROOT / "deploy" / "examples"
COMMANDS = re.findall(r"^(?!\{|```)\S.*$", "\n".join(re.findall(r"```console\n(.+?)```", (EXAMPLES / "README.md").read_text(), re.S)), re.M)
STAND_INS = "stand-ins"
"""For what a machine may lack, last on the path."""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def readme(beginning: str) -> str:
    """The README's one command that begins so."""
    (found,) = [command for command in COMMANDS if command.startswith(beginning)]
    return str(found)


class Backend:
    """A Redis and a worker, which sends its spans to a collector, and what runs the README's commands beside them."""

    def __init__(self, redis_url: str, collector: Collector, directory: Path) -> None:
        self.collector, self.directory = collector, directory
        self.queue = Queue(Redis.from_url(redis_url), "pointsman")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POINTSMAN_"))}
        path = (Path(sys.executable).parent, os.environ["PATH"], directory / STAND_INS)
        self.environment |= {"REDIS_URL": redis_url, "PATH": os.pathsep.join(map(str, path))}

    def run(self, command: str) -> str:
        """To its end; returns what it prints."""
        line = ["bash", "-c", command]
        done = subprocess.run(
            line, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, command: str, **environment: str) -> Iterator[Callable[[], str]]:
        """In the background; yields what it has printed so far. It is ended with all that it started."""
        log = self.directory / f"{command.rpartition('/')[2].partition(' ')[0]}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.directory, env=self.environment | environment, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield log.read_text
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE_S)


def lay_out(directory: Path) -> None:
    """What the README's commands look for at the project's root."""
    shutil.copytree(EXAMPLES, directory / "deploy" / "examples", ignore=shutil.ignore_patterns("node_modules"))
    (directory / ".venv").symlink_to(sys.prefix)
    curl = directory / STAND_INS / "curl"
    curl.parent.mkdir()
    curl.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(stand_in_curl.__file__)}" "$@"\n')
    curl.chmod(0o755)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Iterator[Backend]:
    """Under the namespace `pointsman`, which the examples write to, so on a Redis of their own."""
    directory = tmp_path_factory.mktemp("backend")
    lay_out(directory)
    (directory / "redis").mkdir()
    redis = RedisServer(directory / "redis").start()
    with Collector() as collector, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        worker = WorkerProcess(directory / "worker.log", redis.url, "pointsman", tracing=True)
        try:
            worker.wait_until_ready()
            yield Backend(redis.url, collector, directory)
        finally:
            worker.kill()
            redis.kill()


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_a_user_writes_to_the_order_desk_is_handled_on_its_topic_in_one_trace(backend: Backend) -> None:
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with backend.running(readme(".venv/bin/python deploy/examples/backend/"), PORT="0", **collector) as said:
        (listening,) = wait_for(lambda: lines(said()), "the desk to listen")
        curl = readme("curl").replace("8000", str(listening["port"]))
        pool = json.loads(backend.run(f"{curl} -H 'traceparent: 00-{TRACE}-00f067aa0ba902b7-01'"))
        garden = json.loads(backend.run(curl.replace("My pool pump is humming", "A sprinkler head in the lawn is broken")))
        backend.run(curl.replace("My pool pump is humming", "The air conditioner blows warm air"))
        backend.run(f"curl -sSf http://127.0.0.1:{listening['port']}/healthz")
        assert pool["trace"] == TRACE != garden["trace"]
        assert "error" in json.loads(backend.run(curl.replace("My pool pump is humming", " ")))
        wait_for(lambda: len(lines(said())) == 6, "two messages to be handled")
        handled = {line["id"]: (line["topic"], line["trace"]) for line in lines(said()) if line["event"] == "handled"}
    assert handled == {
        pool["id"]: ("pointsman:topic:pool", TRACE),
        garden["id"]: ("pointsman:topic:irrigation", garden["trace"]),
    }
    assert "humming" not in said(), "it does not print what users write"
    for topic in ("pointsman:topic:pool", "pointsman:topic:irrigation"):
        assert backend.queue.redis.xpending(topic, "order-desk")["pending"] == 0
    spans = {span.name.partition(" ")[0]: span for span in wait_for(lambda: six_of(backend.collector, TRACE), "all spans of the trace")}
    chain = ["send", "route", "deliver", "process"]
    parents = [spans[name].parent_span_id for name in chain]
    assert parents == [bytes.fromhex("00f067aa0ba902b7"), *(spans[name].span_id for name in chain[:-1])]
    assert spans["read"].parent_span_id == spans["classify"].parent_span_id == spans["route"].span_id


def six_of(collector: Collector, trace: str) -> list[Any]:
    found = [span for span in collector.spans() if span.trace_id.hex() == trace]
    return found if len(found) == 6 else []


def test_a_producer_and_a_consumer_in_node_do_their_work(backend: Backend) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no Node.js here")
    try:
        backend.run(readme("npm install"))
    except AssertionError as error:
        pytest.skip(f"npm cannot install the package redis: {error}")
    with backend.running(readme("node deploy/examples/node/receive.mjs")) as said:
        sent = backend.run(readme("node deploy/examples/node/send.mjs")).strip()
        wait_for(lambda: sent in said(), "the message to be handled")
    (handled,) = [line for line in lines(said()) if line["id"] == sent]
    assert handled["label"] == "irrigation"
    assert_same_trace(backend, "id", sent, handled["traceparent"])
    assert backend.queue.redis.xpending("pointsman:topic:irrigation", "node-desk")["pending"] == 0


def test_a_producer_and_a_consumer_in_the_shell_do_their_work(backend: Backend) -> None:
    if shutil.which("redis-cli", path=backend.environment["PATH"]) is None:
        pytest.skip("there is no redis-cli here")
    with backend.running(readme("deploy/examples/shell/receive.sh")) as said:
        entry_id = backend.run(readme("deploy/examples/shell/send.sh")).strip()
        ((stream, fields),) = backend.queue.wait_until_arrived([entry_id])[entry_id]
        assert stream == "pointsman:topic:hvac"
        traceparent = fields[b"traceparent"].decode()
        wait_for(lambda: traceparent in said(), "the message to be handled")
        wait_for(lambda: backend.queue.redis.xpending(stream, "shell-desk")["pending"] == 0, "it to be acknowledged")
    assert re.search(r"^pointsman.label\nhvac$", said(), re.MULTILINE)
    sent = dict(backend.queue.read(backend.queue.streams.queries))[entry_id][b"traceparent"].decode()
    assert sent.split("-")[1] == traceparent.split("-")[1]


def assert_same_trace(backend: Backend, field: str, value: str, traceparent: str) -> None:
    (sent,) = [row for _, row in backend.queue.read(backend.queue.streams.queries) if row.get(field.encode()) == value.encode()]
    assert sent[b"traceparent"].decode().split("-")[1] == traceparent.split("-")[1]


def test_the_manifests_name_what_there_is() -> None:
    """No cluster and no Compose is needed to see that settings, paths and images belong together."""
    page = (EXAMPLES / "README.md").read_text()
    desk = (EXAMPLES / "backend" / "order_desk.py").read_text()
    compose = yaml.safe_load((EXAMPLES / "backend" / "compose.yaml").read_text())["services"]["order-desk"]
    pod = yaml.safe_load((EXAMPLES / "backend" / "pod.yaml").read_text())["spec"]
    (sidecar,), (container,) = pod["initContainers"], pod["containers"]
    assert (ROOT / "deploy" / compose["build"] / "Dockerfile").is_file()
    assert compose["image"] == container["image"]
    assert f"kind load docker-image {sidecar['image']} {container['image']}\n" in page
    for name in (*compose["environment"], *(variable["name"] for variable in container["env"])):
        assert f'"{name}"' in desk, name
    settings = [variable["name"].removeprefix(PREFIX).lower() for variable in sidecar["env"]]
    assert set(settings) <= set(Settings.model_fields)
    assert pod["enableServiceLinks"] is False
    assert sidecar["restartPolicy"] == "Always"
    assert not {"startupProbe", "readinessProbe"} & sidecar.keys(), "the desk would wait for its router"
    logins = [
        variable["valueFrom"]["secretKeyRef"]["name"]
        for each in (sidecar, container)
        for variable in each["env"]
        if "valueFrom" in variable
    ]
    assert logins == ["pointsman-redis", "order-desk-redis"]
    for secret in logins:
        assert f"kubectl -n pointsman create secret generic {secret} --from-literal=url=" in page


def test_the_desk_gets_by_with_the_rights_that_the_readme_gives_it(tmp_path: Path) -> None:
    executable = shutil.which("redis-server")
    told = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True).stdout if executable else ""
    if int((re.findall(r"v=(\d+)", told) or [0])[0]) < 7:
        pytest.skip("this machine has no redis-server of version 7")
    lay_out(tmp_path)
    (user,) = re.findall(r"^user order-desk .+$", (EXAMPLES / "README.md").read_text(), re.M)
    (tmp_path / "users.acl").write_text(f"{user}\n")
    redis = RedisServer(tmp_path, "--aclfile", str(tmp_path / "users.acl"), executable=executable).start()
    topics = Queue(Redis.from_url(redis.url), "pointsman")
    try:
        with Collector() as collector:
            backend = Backend(redis.url.replace("//", "//order-desk:CHANGE-ME-order-desk@"), collector, tmp_path)
            with backend.running(readme(".venv/bin/python deploy/examples/backend/"), PORT="0") as said:
                (listening,) = wait_for(lambda: lines(said()), "the desk to listen")
                sent = json.loads(backend.run(readme("curl").replace("8000", str(listening["port"]))))
                topics.redis.xadd("pointsman:topic:pool", {"id": sent["id"], "pointsman.confidence": "1"})
                wait_for(lambda: '"handled"' in said(), "the message to be handled")
                wait_for(lambda: topics.redis.xpending("pointsman:topic:pool", "order-desk")["pending"] == 0, "it to be acknowledged")
        assert topics.redis.xlen("pointsman:queries") == 1
        denied = [row for row in cast("Any", topics.redis.acl_log()) if not row["object"].startswith("client")]
        assert denied == [], "redis-py can do without `client`"
    finally:
        redis.kill()

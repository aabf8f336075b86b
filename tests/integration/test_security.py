"""A worker that may do no more than it needs, whose connection is encrypted, and that keeps secrets to itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from tests.conftest import StartWorker, docker_answers
from tests.support import GROUP, QUICK_CLAIM, ROOT, Queue, RedisServer, assert_clear_failure, command, wait_for
from worker.embedded_redis import free_port
from worker.settings import Settings

RULES = ROOT / "deploy" / "redis"
PASSWORD = "hunter2"
QUERY = "quokkaproof"
"""In every query whose text must not be told."""
FILES, PORT = "FILES", "PORT"
"""In a server's options: the directory of its files, and the port where it listens."""


# --- Servers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docker() -> bool:
    return docker_answers()


@contextmanager
def redis_7(docker: bool, directory: Path, options: Sequence[str], files: Mapping[str, bytes]) -> Iterator[tuple[str, int]]:
    """Redis 7 with TLS built in: a container where a Docker engine answers, else this machine's own. Yields host and port."""
    if docker:
        os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
        from testcontainers.core.container import DockerContainer

        line = [option.replace(FILES, "/etc/pointsman").replace(PORT, "6379") for option in options]
        container = DockerContainer("redis:7").with_exposed_ports(6379).with_command(["redis-server", "--protected-mode", "no", *line])
        for name, content in files.items():
            container.with_copy_into_container(content, f"/etc/pointsman/{name}")
        with container:
            yield container.get_container_host_ip(), container.get_exposed_port(6379)
        return
    executable = shutil.which("redis-server")
    told = subprocess.run([executable, "--version"], capture_output=True, check=True).stdout.decode() if executable else ""
    if int((re.findall(r"v=(\d+)", told) or [0])[0]) < 7:
        pytest.skip("needs Redis 7: no Docker engine answers, and this machine has no redis-server of that version")
    for name, content in files.items():
        (directory / name).write_bytes(content)
    port = free_port()
    line = [option.replace(FILES, str(directory)).replace(PORT, str(port)) for option in options]
    quiet = ("--bind", "127.0.0.1", "--dir", str(directory), "--logfile", str(directory / "redis.log"))
    process = subprocess.Popen([str(executable), *quiet, *line], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield "127.0.0.1", port
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Guarded:
    """A Redis with the users of deploy/redis, and one more who may do everything."""

    version: str
    where: str
    admin: Redis = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "admin", Redis.from_url(self.url("admin")))
        wait_for(self.admin.ping, "Redis to listen")

    def url(self, user: str) -> str:
        return f"redis://{user}:{PASSWORD}-{user}@{self.where}"

    def refusals(self) -> list[str]:
        """What Redis has denied so far, but for what redis-py asks at each connection and can do without."""
        rows = cast("Any", self.admin.acl_log())
        denied = [f"{row['username']}: {row['reason']} {row['object']}" for row in rows]
        return [refusal for refusal in denied if not re.search(r"command client(\||$)", refusal)]


@pytest.fixture(params=["6.2", "7"])
def guarded(request: pytest.FixtureRequest, docker: bool, tmp_path: Path) -> Iterator[Guarded]:
    shipped = (RULES / ("pointsman.acl" if request.param == "7" else "pointsman-6.2.acl")).read_text(encoding="utf-8")
    hashed = hashlib.sha256(f"{PASSWORD}-pointsman".encode()).hexdigest()
    rules = shipped.replace(">CHANGE-ME-pointsman", f"#{hashed}").replace("CHANGE-ME", PASSWORD)
    rules += f"user admin on >{PASSWORD}-admin ~* &* +@all\n"
    directory = tmp_path / "guarded"
    directory.mkdir()
    if request.param == "7":
        with redis_7(docker, directory, ("--port", PORT, "--aclfile", f"{FILES}/users.acl"), {"users.acl": rules.encode()}) as where:
            yield Guarded("7", f"{where[0]}:{where[1]}")
        return
    (directory / "users.acl").write_text(rules)
    server = RedisServer(directory, "--aclfile", str(directory / "users.acl")).start()
    yield Guarded("6.2", f"127.0.0.1:{server.port}")
    server.kill()


# --- Least privilege --------------------------------------------------------------------------------------------------


def test_a_worker_lacks_no_right_in_all_that_it_does(guarded: Guarded, start_worker: StartWorker) -> None:
    queue = Queue(guarded.admin, "pointsman")
    producer = Queue(Redis.from_url(guarded.url("producer")), "pointsman")
    login = {"redis_url": guarded.url("pointsman"), "namespace": "pointsman", "retention": "delete"}
    every_way = login | QUICK_CLAIM | {"max_topic_length": 1000, "deduplicate_by": "id"}

    guarded.admin.xgroup_create(queue.streams.queries, GROUP, id="0", mkstream=True)
    claimed = producer.add("left behind by a worker that died")
    guarded.admin.xreadgroup(GROUP, "dead", {queue.streams.queries: ">"})
    worker = start_worker(pace_s=0.001, **every_way)
    ids = producer.add_all([*({"text": f"query {number}", "id": number} for number in range(60)), {"no": "text"}])
    queue.wait_until_arrived([claimed, *ids])
    producer.add({"text": "query 7, sent once more", "id": 7})
    wait_for(lambda: worker.metrics()["pointsman_deduplicated_total"] == 1, "the repeated message to be dropped")
    assert guarded.admin.xgroup_destroy(queue.streams.queries, GROUP)
    wait_for(lambda: "has been made again" in worker.log, "the group to be made again")
    queue.assert_each_once([claimed, *ids, *producer.add_all([{"text": f"query {number}", "id": number} for number in range(60, 80)])])
    wait_for(lambda: worker.metrics()["pointsman_pending"] == 0, "the gauge of pending entries to fall")

    metrics = worker.metrics()
    assert metrics["pointsman_published_total"] == 82
    assert metrics["pointsman_reclaimed_total"] == 1
    assert metrics['pointsman_dead_total{reason="missing_text"}'] == 1
    assert metrics["pointsman_held_back"] == metrics["pointsman_failed_total"] == 0
    assert [name for name in metrics if name.startswith("pointsman_delivery_retries_total{")] == []
    assert {"pointsman_stream_lag", 'pointsman_latency_seconds_count{label=""}'} <= metrics.keys()
    assert worker.stop() == 0
    assert queue.consumers() == set(), "a worker that stops leaves the group"

    slow = start_worker(pace_s=2, batch_size=1, max_in_flight=2, drain_timeout_s=0.2, **login)
    held = producer.add_all(["one", "two"])
    wait_for(lambda: queue.pending() == 2, "the slow worker to read both")
    assert slow.stop() == 0
    assert {row["message_id"].decode() for row in queue.pending_rows() if row["time_since_delivered"] >= 60_000} == set(held)

    assert guarded.refusals() == []
    assert [line for line in (worker.log + slow.log).splitlines() if re.search("NOPERM|permission|can't (run|access)", line)] == []


REFUSED: dict[str, list[tuple[str, ...]]] = {
    "pointsman": [
        ("GET", "elsewhere"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "elsewhere"),
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "elsewhere", ">"),
        ("XADD", "elsewhere:topic:pool", "*", "text", "x"),
        ("XREAD", "STREAMS", "pointsman:topic:pool", "0"),
        ("XTRIM", "pointsman:queries", "MAXLEN", "0"),
        ("DEL", "pointsman:queries"),
        ("XGROUP", "DESTROY", "pointsman:queries", GROUP),
        ("SCAN", "0"),
        ("MONITOR",),
        ("ACL", "LIST"),
    ],
    "producer": [
        ("XADD", "pointsman:topic:pool", "*", "text", "forged"),
        ("XADD", "pointsman:dead", "*", "text", "forged"),
        ("XADD", "pointsman:review", "*", "text", "forged"),
        ("XRANGE", "pointsman:queries", "-", "+"),
        ("XREAD", "STREAMS", "pointsman:topic:pool", "0"),
        ("XLEN", "pointsman:queries"),
        ("XDEL", "pointsman:queries", "1-1"),
        ("XGROUP", "CREATE", "pointsman:queries", "mine", "0"),
        ("EVAL", "return 1", "0"),
    ],
    "consumer": [
        ("XRANGE", "pointsman:dead", "-", "+"),
        ("XRANGE", "pointsman:queries", "-", "+"),
        ("XREADGROUP", "GROUP", GROUP, "me", "STREAMS", "pointsman:queries", ">"),
        ("XACK", "pointsman:queries", GROUP, "1-1"),
        ("XADD", "pointsman:topic:pool", "*", "text", "forged"),
        ("DEL", "pointsman:topic:pool"),
        ("EVAL", "return 1", "0"),
    ],
    "operator": [
        ("GET", "elsewhere"),
        ("XRANGE", "elsewhere", "-", "+"),
        ("DEL", "pointsman:dead"),
        ("XTRIM", "pointsman:queries", "MAXLEN", "0"),
        ("ACL", "LIST"),
    ],
    "scaler": [
        ("XRANGE", "pointsman:queries", "-", "+"),
        ("XREADGROUP", "GROUP", GROUP, "me", "STREAMS", "pointsman:queries", ">"),
        ("XADD", "pointsman:queries", "*", "text", "forged"),
        ("XINFO", "STREAM", "pointsman:queries", "FULL"),
        ("XLEN", "pointsman:dead"),
        ("EVAL", "return 1", "0"),
    ],
}
REFUSED_BY_7: dict[str, list[tuple[str, ...]]] = {
    "pointsman": [
        ("XRANGE", "pointsman:dead", "-", "+"),
        ("XRANGE", "pointsman:topic:pool", "-", "+"),
        ("XGROUP", "CREATE", "pointsman:topic:pool", "mine", "0", "MKSTREAM"),
        ("XREADGROUP", "GROUP", "mine", "me", "STREAMS", "pointsman:topic:pool", ">"),
        ("XDEL", "pointsman:dead", "1-1"),
        ("XADD", "pointsman:queries", "*", "text", "forged"),
    ],
    "operator": [
        ("XADD", "pointsman:topic:pool", "*", "text", "forged"),
        ("XREADGROUP", "GROUP", GROUP, "me", "STREAMS", "pointsman:queries", ">"),
        ("XDEL", "pointsman:queries", "1-1"),
    ],
}
"""Where rights can differ by key and by reading and writing."""
EVERYONE_REFUSED = [("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("SHUTDOWN", "NOSAVE"), ("SET", "pointsman:x", "1")]


def refused(client: Redis, attempt: Sequence[str]) -> bool:
    try:
        client.execute_command(*attempt)
    except NoPermissionError:
        return True
    except ResponseError as error:  # Redis before 7.2 has no code for what is refused within a script
        return "The user executing the script can't" in str(error)
    return False


def test_no_user_can_do_more_than_its_task(guarded: Guarded) -> None:
    allowed = []
    for user, attempts in REFUSED.items():
        client = Redis.from_url(guarded.url(user))
        assert client.ping()
        by_key = REFUSED_BY_7.get(user, []) if guarded.version == "7" else []
        allowed += [(user, attempt) for attempt in (*attempts, *EVERYONE_REFUSED, *by_key) if not refused(client, attempt)]
    assert allowed == []


def test_nobody_gets_in_without_a_login(guarded: Guarded) -> None:
    with pytest.raises(AuthenticationError):
        Redis.from_url(f"redis://{guarded.where}").ping()


def test_producers_and_consumers_can_do_their_work(guarded: Guarded) -> None:
    queue = Queue(guarded.admin, "pointsman")
    assert Queue(Redis.from_url(guarded.url("producer")), "pointsman").add("pool pump hums") == queue.read(queue.streams.queries)[0][0]
    consumer = Redis.from_url(guarded.url("consumer"))
    for stream in (queue.streams.topic("pool"), queue.streams.review):
        consumer.xgroup_create(stream, "answerers", id="0", mkstream=True)
        guarded.admin.xadd(stream, {"text": "pool pump hums"})
        ((_, ((entry_id, fields),)),) = cast("Any", consumer.xreadgroup("answerers", "one", {stream: ">"}))
        assert fields == {b"text": b"pool pump hums"}
        assert len(cast("Any", consumer.xautoclaim(stream, "answerers", "two", min_idle_time=0))[1]) == 1
        assert consumer.xack(stream, "answerers", entry_id) == 1
        assert consumer.xdel(stream, entry_id) == 1
        assert consumer.xtrim(stream, maxlen=0) == 0
    assert guarded.refusals() == []


def test_a_scaler_can_count_what_waits_and_what_is_pending(guarded: Guarded) -> None:
    """These are the commands of KEDA's scaler for streams."""
    queries = "pointsman:queries"
    guarded.admin.xgroup_create(queries, GROUP, id="0", mkstream=True)
    for number in range(5):
        guarded.admin.xadd(queries, {"text": f"query {number}"})
    guarded.admin.xreadgroup(GROUP, "busy", {queries: ">"}, count=2)
    scaler = Redis.from_url(guarded.url("scaler"))
    assert cast("Any", scaler.info())["redis_version"].startswith(guarded.version)
    (group,) = cast("Any", scaler.xinfo_groups(queries))
    assert group.get("lag") == (3 if guarded.version == "7" else None), "Redis before 7 does not tell the lag"
    assert cast("Any", scaler.xpending(queries, GROUP))["pending"] == 2
    assert scaler.xlen(queries) == 5
    assert guarded.refusals() == []


def test_an_operator_can_look_at_dead_letters_replay_and_purge_them_and_follow_what_arrives(guarded: Guarded) -> None:
    queue = Queue(guarded.admin, "pointsman")
    login: dict[str, Any] = {"redis_url": guarded.url("operator"), "namespace": "pointsman"}

    def rows(*arguments: str) -> list[dict[str, Any]]:
        done = command(*arguments, "--json", **login)
        assert done.returncode == 0, done.stderr.decode()
        return [json.loads(line) for line in done.stdout.decode().splitlines()]

    again, old = [
        cast("bytes", guarded.admin.xadd(queue.streams.dead, {"text": text, "pointsman.reason": "poison"}, id=entry_id)).decode()
        for text, entry_id in (("again", "1000-1"), ("old", "2000-1"))
    ]
    guarded.admin.xadd(queue.streams.topic("pool"), {"text": "pool pump hums", "pointsman.confidence": "0.9"})
    assert [row["id"] for row in rows("dead", "list")] == [again, old]
    assert [row["id"] for row in rows("dead", "replay", "--id", again)] == [again]
    assert [fields for _, fields in queue.read(queue.streams.queries)] == [{b"text": b"again"}]
    assert rows("dead", "purge", "--older-than", "1d") == [{"purged": 1}]
    assert [row["stream"] for row in rows("tail", "--from-start", "--count", "1")] == [queue.streams.topic("pool")]
    assert [row["stream"] for row in rows("send", "one more")] == [queue.streams.queries]
    guarded.admin.xgroup_create(queue.streams.queries, GROUP, id="0")
    queue.redis.xadd(queue.streams.dead, {"text": "dead", "pointsman.reason": "poison"})
    assert [(row["group_exists"], row["dead_reasons"]) for row in rows("top", "--once", "--interval", "0.2")] == [(True, {"poison": 1})]
    assert guarded.refusals() == []


def test_an_operator_can_add_corrections_and_harvest_them(guarded: Guarded, tmp_path: Path) -> None:
    Redis.from_url(guarded.url("operator")).xadd("pointsman:corrections", {"id": "1", "text": "My pump hums", "label": "pool"})
    where = ("--redis-url", guarded.url("operator"), "--namespace", "pointsman", "--output", tmp_path / "corrections.json")
    done = command("harvest", *where, "--trim", "--json", module="trainer")
    assert done.returncode == 0, done.stderr.decode()
    harvested = json.loads(done.stdout)
    assert (harvested["new"], harvested["trimmed"]) == (1, 1)
    assert guarded.refusals() == []


@pytest.mark.parametrize("user", ["pointsman", "operator"])
def test_doctor_finds_nothing_wrong_and_shows_no_password(guarded: Guarded, user: str, model_file: Path) -> None:
    settings: dict[str, Any] = {"redis_url": guarded.url(user), "model": model_file, "retention": "delete", "deduplicate_by": "id"}
    done = command("doctor", "--json", **settings)
    assert done.returncode == 0, done.stdout.decode()
    assert {finding["what"] for finding in json.loads(done.stdout)["findings"]} >= {"redis", "permissions", "queue"}
    assert PASSWORD not in (done.stdout + done.stderr).decode()
    assert guarded.refusals() == []


def test_results_that_the_rules_forbid_are_held_back_until_someone_mends_the_rules(guarded: Guarded, start_worker: StartWorker) -> None:
    queue = Queue(guarded.admin, "pointsman")
    worker = start_worker(pace_s=0.001, redis_url=guarded.url("pointsman"), namespace="pointsman", max_deliveries=2, **QUICK_CLAIM)
    changes = ["clearselectors", "(~pointsman:* +eval +evalsha)"] if guarded.version == "7" else ["-xadd"]
    guarded.admin.execute_command("ACL", "SETUSER", "pointsman", *changes)
    ids = queue.add_all([f"query {number}" for number in range(8)])
    wait_for(lambda: worker.metrics().get('pointsman_delivery_retries_total{reason="NOPERM"}', 0) >= 3, "some tries")
    assert worker.get("/readyz")[0] == 503
    assert queue.outputs() == {}
    guarded.admin.acl_load()
    queue.assert_each_once(ids)
    assert queue.read(queue.streams.dead) == []
    wait_for(worker.ready, "the worker to be ready again")


# --- Encrypted connections --------------------------------------------------------------------------------------------


class Certificates:
    """A certificate authority, and what it has signed for a server and a client; and another that nobody knows."""

    def __init__(self, directory: Path, server_address: str) -> None:
        self.directory = directory
        for authority in ("ca", "other-ca"):
            self._make(authority, "-subj", f"/CN={authority}")
        kind = "IP" if re.fullmatch(r"[\d.]+", server_address) else "DNS"
        self._make("server", "-subj", "/CN=server", "-addext", f"subjectAltName={kind}:{server_address}", signed_by="ca")
        self._make("client", "-subj", "/CN=client", signed_by="ca")
        self._make("stranger", "-subj", "/CN=stranger", signed_by="other-ca")

    def _make(self, name: str, *options: str, signed_by: str | None = None) -> None:
        line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        line += ["-keyout", f"{name}.key", "-out", f"{name}.pem", *options]
        if signed_by:
            line += ["-CA", f"{signed_by}.pem", "-CAkey", f"{signed_by}.key", "-addext", "basicConstraints=critical,CA:FALSE"]
        subprocess.run(line, cwd=self.directory, check=True, capture_output=True)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def options(self, ca: str | None = "ca", client: str | None = None) -> str:
        """The query of a URL."""
        chosen = {"ssl_ca_certs": self.path(f"{ca}.pem")} if ca else {}
        if client:
            chosen |= {"ssl_certfile": self.path(f"{client}.pem"), "ssl_keyfile": self.path(f"{client}.key")}
        return urlencode(chosen)


@pytest.fixture(scope="module")
def certificates(docker: bool, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl, to make certificates")
    address = "127.0.0.1"
    if docker:
        with redis_7(docker, tmp_path_factory.mktemp("address"), (), {}) as (address, _):
            pass
    return Certificates(tmp_path_factory.mktemp("certificates"), address)


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A Redis that speaks TLS alone."""

    where: str
    certificates: Certificates

    def url(self, ca: str | None = "ca", client: str | None = None) -> str:
        return f"rediss://default:{PASSWORD}@{self.where}?{self.certificates.options(ca, client)}"


@contextmanager
def encrypted(docker: bool, certificates: Certificates, directory: Path, *, ask_clients: bool) -> Iterator[Encrypted]:
    files = {name: Path(certificates.path(name)).read_bytes() for name in ("ca.pem", "server.pem", "server.key")}
    options = [
        *("--port", "0", "--tls-port", PORT, "--tls-auth-clients", "yes" if ask_clients else "no", "--requirepass", PASSWORD),
        *("--tls-ca-cert-file", f"{FILES}/ca.pem", "--tls-cert-file", f"{FILES}/server.pem", "--tls-key-file", f"{FILES}/server.key"),
    ]
    with redis_7(docker, directory, options, files) as (host, port):
        server = Encrypted(f"{host}:{port}", certificates)
        with Redis.from_url(server.url(client="client")) as client:
            wait_for(client.ping, "Redis to listen")
        yield server


@pytest.fixture(scope="module")
def tls(docker: bool, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """Servers prove who they are."""
    with encrypted(docker, certificates, tmp_path_factory.mktemp("tls"), ask_clients=False) as server:
        yield server


@pytest.fixture(scope="module")
def mutual_tls(docker: bool, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """Clients too."""
    with encrypted(docker, certificates, tmp_path_factory.mktemp("mutual-tls"), ask_clients=True) as server:
        yield server


def route_over(url: str, start_worker: StartWorker) -> str:
    """Start a worker, let it route some queries and stop it. Returns what it told: its log and its description of the streams."""
    with Redis.from_url(url) as client:
        queue = Queue(client)
        worker = start_worker(pace_s=0.001, redis_url=url, namespace=queue.namespace)
        queue.assert_each_once(queue.add_all([f"query {number}" for number in range(20)]))
        status, description = worker.get("/asyncapi")
        assert status == 200
        assert worker.stop() == 0
        assert queue.consumers() == set()
        return worker.log + description


def test_a_worker_routes_over_tls(tls: Encrypted, start_worker: StartWorker) -> None:
    route_over(tls.url(), start_worker)


def test_a_worker_routes_over_mutual_tls_and_tells_neither_password_nor_where_its_key_is(
    mutual_tls: Encrypted, start_worker: StartWorker
) -> None:
    told = route_over(mutual_tls.url(client="client"), start_worker)
    assert mutual_tls.where in told
    assert [secret for secret in (PASSWORD, "ssl_", "client.key", mutual_tls.certificates.path("")) if secret in told] == []


REFUSED_BY_SERVER = "certificate required|unknown ca|reset by peer|closed by server"
"""A server that refuses a client says why and closes; which of the two a client sees first is chance."""
FAULTS = {
    "an authority that has not signed the server": ("tls", {"ca": "other-ca"}, "certificate verify failed"),
    "no authority of one's own": ("tls", {"ca": None}, "certificate verify failed"),
    "a file of authorities that is not there": ("tls", {"ca": "nowhere"}, r"nowhere\.pem"),
    "no certificate where the server asks for one": ("mutual_tls", {}, REFUSED_BY_SERVER),
    "a certificate that the server does not know": ("mutual_tls", {"client": "stranger"}, REFUSED_BY_SERVER),
    "a certificate that is not there": ("mutual_tls", {"client": "nobody"}, r"nobody\.pem"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_tls_is_told_in_one_line(fault: str, request: pytest.FixtureRequest) -> None:
    server, chosen, words = FAULTS[fault]
    redis: Encrypted = request.getfixturevalue(server)
    told = assert_clear_failure(command("send", "x", redis_url=redis.url(**cast("Any", chosen))))
    assert re.search(words, told, re.IGNORECASE), told
    assert PASSWORD not in told


def test_a_worker_does_not_start_without_the_certificate_that_redis_asks_for(mutual_tls: Encrypted, model_file: Path) -> None:
    told = assert_clear_failure(command("run", redis_url=mutual_tls.url(), model=model_file, http_port=0), mutual_tls.where, exit_code=1)
    assert re.search(REFUSED_BY_SERVER, told, re.IGNORECASE), told
    assert PASSWORD not in told


def test_plain_text_to_an_encrypted_redis_is_told_in_one_line(tls: Encrypted) -> None:
    done = command("send", "x", redis_url=f"redis://default:{PASSWORD}@{tls.where}")
    assert PASSWORD not in assert_clear_failure(done, tls.where, exit_code=1)


@pytest.mark.parametrize("option", ["ssl_ca=/ca.pem", "ssl_ca_certs=/ca.pem"])
def test_an_option_that_a_plain_url_does_not_have_is_told_in_one_line(option: str) -> None:
    name, _, _ = option.partition("=")
    done = command("send", "x", redis_url=f"redis://user:{PASSWORD}@127.0.0.1:1?{option}")
    assert PASSWORD not in assert_clear_failure(done, name)


# --- Hostile entries --------------------------------------------------------------------------------------------------


def test_an_entry_that_redis_does_not_take_back_harms_no_other(tmp_path: Path, start_worker: StartWorker) -> None:
    directory = tmp_path / "small"
    directory.mkdir()
    server = RedisServer(directory, "--proto-max-bulk-len", "1mb").start()
    try:
        queue = Queue(Redis.from_url(server.url))
        worker = start_worker(pace_s=0.001, redis_url=server.url, namespace=queue.namespace, **QUICK_CLAIM)
        hostile = {b"text": b"x"} | {f"f{number}".encode(): b"\xff" * 5000 for number in range(299)}
        _, *ids = queue.add_all([hostile, *(f"query {number}" for number in range(40))])
        queue.wait_until_arrived(ids)
        assert worker.process.poll() is None
        assert worker.get("/healthz")[0] == 200
    finally:
        server.kill()


# --- Secrets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def locked_redis(tmp_path: Path) -> Iterator[RedisServer]:
    directory = tmp_path / "locked"
    directory.mkdir()
    server = RedisServer(directory, "--requirepass", PASSWORD).start()
    yield server
    server.kill()


def with_password(server: RedisServer, password: str = PASSWORD) -> str:
    return f"redis://:{password}@127.0.0.1:{server.port}"


def test_neither_queries_nor_passwords_are_logged_even_at_debug_when_everything_goes_wrong(
    locked_redis: RedisServer, start_worker: StartWorker
) -> None:
    queue = Queue(Redis.from_url(with_password(locked_redis)))
    blocked = queue.streams.review
    queue.redis.set(blocked, "in the way")
    settings = {"redis_url": with_password(locked_redis), "namespace": queue.namespace, "redis_timeout_s": 2} | QUICK_CLAIM
    worker = start_worker(pace_s=0.02, log_level="debug", deduplicate_by="id", **settings)
    rows: list[Mapping[Any, Any]] = [
        *({"text": f"{QUERY} {number}", "id": f"{QUERY} {number}"} for number in range(40)),
        {"text": QUERY.encode() + b"\xff"},
        {"body": QUERY, QUERY: "x"},
        {"__data__": f'{{"data": "{QUERY}'},
        {"__data__": f'{{"data": [5, "{QUERY}"]}}'},
        {"__data__": b"\x89BIN\x0d\x0a\x1a\x0a" + QUERY.encode()},
        {"text": f"{QUERY} " * 20_000},
    ]
    ids = queue.add_all(rows)
    wait_for(lambda: "Redis does not take results" in worker.log, "the stream of the wrong type to be met")
    wait_for(lambda: len(queue.arrived()) > 40, "the others to arrive")
    locked_redis.kill()
    wait_for(lambda: '"faststream"' in worker.log, "FastStream to complain")
    locked_redis.start()
    wait_for(lambda: queue.redis.delete(blocked), "the key in the way to be removed")
    queue.assert_each_once(ids)
    assert queue.redis.xgroup_destroy(queue.streams.queries, GROUP)
    wait_for(lambda: "has been made again" in worker.log, "the group to be made again")
    assert worker.stop() == 0
    levels = {json.loads(line)["level"] for line in worker.log.splitlines() if line.startswith("{")}
    assert levels >= {"debug", "info", "warning", "error"}
    assert [secret for secret in (QUERY, PASSWORD) if secret in worker.log] == []


def test_a_wrong_password_is_not_repeated(locked_redis: RedisServer) -> None:
    done = command("send", "x", redis_url=with_password(locked_redis, "kiwiplum"))
    assert "kiwiplum" not in assert_clear_failure(done, "refuses the login", exit_code=1)


@pytest.mark.parametrize("password", ["kiwi/plum", "kiwi#plum", "kiwi?plum", "kiwi@plum:", "[kiwiplum", "kiwi plum\n"])
def test_a_password_that_breaks_the_url_is_not_repeated(password: str) -> None:
    done = command("send", "x", redis_url=f"redis://user:{password}@127.0.0.1:1")
    stderr = done.stderr.decode()
    assert done.returncode > 0
    assert "Traceback" not in stderr
    assert [part for part in ("kiwi", "plum") if part in stderr] == []


def test_a_password_among_the_options_of_the_url_is_not_told(locked_redis: RedisServer, start_worker: StartWorker) -> None:
    worker = start_worker(pace_s=0.0, redis_url=f"redis://127.0.0.1:{locked_redis.port}?password={PASSWORD}")
    status, description = worker.get("/asyncapi")
    assert status == 200
    assert PASSWORD not in description + worker.log


# --- HTTP -------------------------------------------------------------------------------------------------------------


def answers(host: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False


def test_http_is_open_to_this_machine_alone_unless_one_says_otherwise(start_worker: StartWorker) -> None:
    assert Settings.model_fields["http_host"].default == "127.0.0.1"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.2", 1)) not in (111, 61):
            pytest.skip("this system has no second loopback address, which stands for another machine here")
    closed, opened = start_worker(pace_s=0.0), start_worker(pace_s=0.0, http_host="0.0.0.0")
    assert [answers(host, closed.port) for host in ("127.0.0.1", "127.0.0.2")] == [True, False]
    assert [answers(host, opened.port) for host in ("127.0.0.1", "127.0.0.2")] == [True, True]


def test_http_reads_and_does_nothing(start_worker: StartWorker, queue: Queue) -> None:
    """FastStream's page of the streams can by itself publish, and swaps the broker for a test's meanwhile."""
    worker = start_worker(pace_s=0.0)
    for options in ({}, {"sendToRealBroker": True}):
        attempt = {"channelName": queue.streams.queries, "message": {"message": "x"}, "options": options}
        request = urllib.request.Request(f"{worker.url}/asyncapi/try", data=json.dumps(attempt).encode(), method="POST")
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=30)
        assert refusal.value.code in (404, 405)
    assert "/asyncapi/try" not in worker.get("/asyncapi")[1]
    queue.assert_each_once(queue.add_all(["query 1", "query 2"]))

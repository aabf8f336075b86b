"""Redis behind Sentinel, which fails over, and Redis Cluster: real servers, three of each kind at most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from redis import Redis, RedisCluster

from tests.conftest import StartWorker
from tests.support import QUICK_CLAIM, Queue, RedisServer, WorkerProcess, command, wait_for
from worker.embedded_redis import free_port

MASTER = "main"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Two servers, not yet started."""
    made = []
    for number in range(2):
        directory = tmp_path / f"redis-{number}"
        directory.mkdir()
        made.append(RedisServer(directory))
    yield made
    for server in made:
        server.kill()


@pytest.fixture
def sentinel(servers: list[RedisServer], tmp_path: Path) -> Iterator[RedisServer]:
    """A sentinel that watches the first server, of which the second is a replica; both are started."""
    master, replica = (server.start() for server in servers)
    with Redis.from_url(replica.url) as client:
        client.replicaof("127.0.0.1", str(master.port))
        wait_for(lambda: client.info("replication")["master_link_status"] == "up", "the replica to follow")
    directory = tmp_path / "sentinel"
    directory.mkdir()
    file = directory / "sentinel.conf"
    file.write_text(
        f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {MASTER} 1000\n"
        f"sentinel failover-timeout {MASTER} 5000\n"
    )
    server = RedisServer(directory, sentinel=file).start()
    with Redis.from_url(server.url) as client:
        wait_for(lambda: len(cast("Any", client.sentinel_slaves(MASTER))) == 1, "the sentinel to know the replica")
    yield server
    server.kill()


def watched(worker: WorkerProcess, url: str, namespace: str) -> int:
    """How much `top` says was published by the one worker that it shows."""
    done = command("top", "--once", "--json", "--interval", "0.2", "--metrics", worker.url, redis_url=url, namespace=namespace)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    frame = json.loads(done.stdout)
    assert [one["not_ready"] for one in frame["workers"]] == [[]]
    return sum(output["total"] for output in frame["outputs"])


def test_a_failover_by_sentinel_loses_and_doubles_nothing(
    start_worker: StartWorker, sentinel: RedisServer, servers: list[RedisServer]
) -> None:
    master, replica = servers
    with Redis.from_url(master.url) as at_first, Redis.from_url(replica.url) as later:
        before = Queue(at_first)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{MASTER}"
        worker = start_worker(redis_url=url, namespace=before.namespace, pace_s=0.05, redis_timeout_s=2, **QUICK_CLAIM)
        ids = before.add_all([f"query {number}" for number in range(60)])
        at_first.wait(1, 5000)
        wait_for(lambda: len(before.arrived()) > 5, "the burst to be under way")
        master.kill()
        after = Queue(later, before.namespace)
        wait_for(lambda: worker.get("/readyz")[0] == 503, "readiness to fall")
        wait_for(lambda: later.role()[0] == b"master", "the replica to be the master")
        after.assert_each_once([*ids, after.add("one more")])
        wait_for(worker.ready, "the worker to be ready again")
        assert watched(worker, url, before.namespace) == 61
        assert worker.stop() == 0
        assert after.consumers() == set()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Three nodes that share the slots."""
    with ExitStack() as stack:
        nodes = []
        for number in range(3):
            directory = tmp_path / f"node-{number}"
            directory.mkdir()
            port = next(port for port in iter(free_port, None) if port < 55_536)  # nodes talk to each other at a port 10,000 higher
            nodes.append(RedisServer(directory, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", port=port))
            stack.callback(nodes[-1].kill)
            nodes[-1].start()
        clients = [stack.enter_context(Redis.from_url(node.url)) for node in nodes]
        for number, client in enumerate(clients):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            client.execute_command("CLUSTER ADDSLOTS", *range(first, last + 1))
            client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        wait_for(lambda: all(b"cluster_state:ok" in _raw_info(client) for client in clients), "the cluster to agree")
        yield nodes


def _raw_info(client: Redis) -> bytes:
    info: Any = client.execute_command("CLUSTER INFO")
    return info if isinstance(info, bytes) else "\n".join(f"{name}:{value}" for name, value in info.items()).encode()


@pytest.mark.parametrize("number", range(3))
def test_in_a_cluster_all_keys_lie_on_one_node_and_the_worker_finds_it(
    start_worker: StartWorker, cluster: list[RedisServer], number: int
) -> None:
    """For one of three namespaces at least, the node that the URL names is not the one that holds the keys."""
    with RedisCluster(host="127.0.0.1", port=cluster[0].port) as client:
        namespace = next(name for name in (f"{{ns-{n}}}" for n in range(100)) if client.keyslot(name) * 3 // 16384 == number)
        queue = Queue(cast("Redis", client), namespace)
        ids = queue.add_all([f"query {number}" for number in range(40)])
        worker = start_worker(
            redis_url=f"redis+cluster://127.0.0.1:{cluster[0].port}",
            namespace=namespace, pace_s=0.0, deduplicate_by="id", retention="delete", **QUICK_CLAIM,
        )  # fmt: skip
        queue.assert_each_once(ids)
        with Redis.from_url(cluster[number].url) as holder:
            assert {key.decode() for key in cast("Any", holder.keys("*"))} == queue.keys()
        assert watched(worker, f"redis+cluster://127.0.0.1:{cluster[0].port}", namespace) == 40
        assert worker.stop() == 0
        assert queue.consumers() == set()

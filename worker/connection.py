"""How Redis is reached: one server, a master that Sentinel names, or a Cluster. One URL says which.

redis://[user:password@]host:port[/db]                              rediss:// for TLS, unix:///path for a socket
redis+sentinel://[user:password@]host:port[,host:port...]/master[/db]
redis+cluster://[user:password@]host:port[,host:port...]

The URL's query holds redis-py's options, such as ssl_ca_certs, ssl_certfile and ssl_keyfile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import SplitResult, urlsplit

from faststream.redis import RedisBroker, RedisClusterBroker, RedisSentinelBroker
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from worker.errors import REDIS_ERRORS, Fatal, SettingsError
from worker.settings import Settings

POLLING_S = 1.0
"""How long a read waits for entries."""


@dataclass(frozen=True, slots=True)
class Address:
    """What a Redis URL says."""

    kind: Literal["single", "sentinel", "cluster"]
    tls: bool
    nodes: tuple[tuple[str, int], ...]
    """Host and port of the server, of the sentinels, or of some nodes of the cluster; empty for a socket."""
    master: str
    """What the sentinels call it; empty if there are none."""
    url: str
    """For the first node alone, as redis-py reads it. Holds the password."""
    options: Mapping[str, Any]
    """What redis-py makes of that."""
    shown: str
    """Without user, password and options: for people."""


def parse(url: str) -> Address:
    """Raises SettingsError if the URL is malformed."""
    try:
        parts = _split(url)
        base, _, kind = parts.scheme.partition("+")
        user, at, hosts = parts.netloc.rpartition("@")
        names = [name for name in parts.path.split("/") if name]
        if kind not in ("", "sentinel", "cluster"):
            raise ValueError(f"there is no scheme {parts.scheme}://, but redis+sentinel:// and redis+cluster://")
        if kind == "sentinel" and not names:
            raise ValueError("the name of the master is missing: redis+sentinel://host:26379/mymaster")
        nodes = tuple(_node(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(",") if host or base != "unix")
        master = names.pop(0) if kind == "sentinel" else ""
        path = parts.path if base == "unix" else "/" + "/".join(names)
        query = f"?{parts.query}" if parts.query else ""
        plain = f"{base}://{user}{at}{hosts.split(',')[0]}{path}{query}"
        options: Mapping[str, Any] = parse_url(plain)
        if kind == "cluster" and options.get("db"):
            raise ValueError(f"a cluster has no databases: leave out /{options['db']}")
    except ValueError as error:
        raise SettingsError(f"POINTSMAN_REDIS_URL is not a Redis URL: {error}") from error
    shown = parts.path if base == "unix" else hosts + (f" (master {master})" if kind == "sentinel" else "")
    return Address(cast("Any", kind or "single"), base == "rediss", nodes, master, plain, options, shown)


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises SettingsError where redis-py would fail at each connection, with words that do not say what is wrong."""
    try:
        options.get("connection_class", Connection)(**{name: value for name, value in options.items() if name != "connection_class"})
    except TypeError as error:
        unknown = str(error).rpartition("argument ")[2]
        raise SettingsError(f"POINTSMAN_REDIS_URL has an option {unknown} that there is not; those of TLS need rediss://") from error
    except (RedisError, ValueError) as error:
        raise SettingsError(f"POINTSMAN_REDIS_URL has an option with a value that cannot be: {error}") from error
    for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"):
        if (path := options.get(name)) and not Path(path).exists():
            raise SettingsError(f"POINTSMAN_REDIS_URL: {name} names {path}, which is not there")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # whose text may quote the password
        raise ValueError("its user, password or host has a sign that must be percent-encoded, such as [ (%5B) or ] (%5D)") from None


def _node(host: str, default_port: int) -> tuple[str, int]:
    parts = _split(f"//{host}")
    try:
        return parts.hostname or "localhost", parts.port or default_port
    except ValueError:  # whose text may quote a piece of the password
        raise ValueError("a port is not a number; a / or @ in the password is written %2F or %40") from None


def connect(settings: Settings) -> Redis:
    """A client of the settings' Redis, with timeouts on everything. It does not try again by itself: its users do.

    Raises:
        SettingsError: the URL is malformed, or has options that cannot be.
    """
    address = parse(settings.redis_url.get_secret_value())
    _check_options(address.options)
    patience: dict[str, Any] = {
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
        "health_check_interval": 15,
    }
    once = Retry(NoBackoff(), 0)
    if address.kind == "single":
        return Redis.from_url(address.url, retry=once, **patience)
    options: dict[str, Any] = {name: value for name, value in address.options.items() if name not in ("host", "port", "connection_class")}
    options |= patience | ({"ssl": True} if address.tls else {})
    if address.kind == "sentinel":
        sentinel: Any = Sentinel(address.nodes, sentinel_kwargs=_for_sentinels(options), retry=once, **options)
        return cast("Redis", sentinel.master_for(address.master))
    nodes = [ClusterNode(*node) for node in address.nodes]
    return cast("Redis", RedisCluster(startup_nodes=nodes, **options))  # whose commands on one key are the same


def _for_sentinels(options: dict[str, Any]) -> dict[str, Any]:
    """Timeouts and TLS are the same for the sentinels; the login is not."""
    return {name: value for name, value in options.items() if name.startswith(("socket_", "ssl"))}


def make_broker(settings: Settings) -> RedisBroker:
    """FastStream's broker for the same Redis. A connection that hangs without closing is given up."""
    address = parse(settings.redis_url.get_secret_value())
    timeouts: dict[str, Any] = {
        "socket_timeout": settings.redis_timeout_s + POLLING_S,
        "socket_connect_timeout": settings.redis_timeout_s,
    }
    common: dict[str, Any] = timeouts | {
        "graceful_timeout": settings.drain_timeout_s,
        "logger": logging.getLogger("faststream"),
        "specification_url": f"redis://{address.shown}",
    }
    if address.kind == "single":
        return RedisBroker(address.url, **common)
    if address.kind == "cluster":
        return RedisClusterBroker(address.url, startup_nodes=address.nodes[1:], **common)
    tls: dict[str, Any] = {"ssl": True} if address.tls else {}
    return RedisSentinelBroker(
        address.url.replace("rediss://", "redis://", 1),
        sentinels=address.nodes,
        sentinel_master_name=address.master,
        sentinel_kwargs=_for_sentinels(dict(address.options) | timeouts | tls),
        **common,
        **tls,
    )


async def check_redis(redis: Redis, settings: Settings) -> None:
    """Raises Fatal, saying what to do, unless Redis answers."""
    where = parse(settings.redis_url.get_secret_value()).shown
    try:
        await redis.ping()
    except AuthenticationError as error:
        raise Fatal(f"Redis at {where} refuses the login ({error}): check user and password in POINTSMAN_REDIS_URL") from error
    except REDIS_ERRORS as error:
        raise Fatal(f"cannot reach Redis at {where} ({error}): start it, set POINTSMAN_REDIS_URL, or use --embedded-redis") from error

"""What is wrong here: checks that a person would make by hand when a worker does not work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from worker.classifier import EngineError, ModelFileError, tuning
from worker.classifier.cores import available_cores
from worker.classifier.engine import backend, system_info
from worker.classifier.model_file import content_hash
from worker.connection import check_redis, connect, parse
from worker.errors import REDIS_ERRORS, Fatal
from worker.model import open_classifier
from worker.recovery import backlog
from worker.routing import Streams
from worker.settings import PREFIX, Settings

OLDEST_REDIS = (6, 2)


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    ok: bool
    what: str
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def examine(settings: Settings) -> list[Finding]:
    """Make all checks; none of them changes anything in Redis."""
    findings = [
        await asyncio.to_thread(_model, settings),
        await asyncio.to_thread(_speed, settings),
        Finding(True, "computing", f"{backend(settings.n_gpu_layers)}; {available_cores()} cores to use; {system_info()}"),
    ]
    redis = connect(settings)
    try:
        await check_redis(redis, settings)
    except Fatal as error:
        return [*findings, Finding(False, "redis", str(error))]
    for what, check in (("redis", _version), ("permissions", _permissions), ("queue", _queue)):
        findings.append(await _attempt(what, check, redis, settings))
    await redis.aclose()
    return findings


def _model(settings: Settings) -> Finding:
    try:
        classifier = open_classifier(settings)
    except (ModelFileError, EngineError, Fatal) as error:
        return Finding(False, "model", str(error))
    card = classifier.card
    detail = (
        f"{settings.model}: {card.name} {card.version}, {classifier.weight_format} from {card.base}, {len(card.labels)} labels, "
        f"{len(card.probes)} probes reproduced"
    )
    classifier.close()
    return Finding(True, "model", detail)


def _speed(settings: Settings) -> Finding:
    try:
        profile = tuning.load_profile(content_hash(settings.model), settings.cache_dir, settings.n_gpu_layers)
    except ModelFileError:  # the finding about the model says it
        profile = None
    if profile is None:
        return Finding(
            True, "speed", "not tuned on this machine: `python -m worker tune` finds the fastest weight format, threads and batches"
        )
    if settings.format == "original":
        return Finding(True, "speed", "tuned on this machine, and not used: POINTSMAN_FORMAT=original takes the file as it is")
    threads = settings.threads or profile.threads or available_cores()
    found = f"{profile.weight_format or 'the format of the file'}, {threads} threads, calls of {profile.batch_tokens} tokens"
    unused = "" if settings.format in ("tuned", "auto") else f"; POINTSMAN_FORMAT={settings.format} goes before its format"
    return Finding(True, "speed", f"tuned on this machine: {found}{unused}")


async def _attempt(what: str, check: Callable[[Redis, Settings], Awaitable[str]], redis: Redis, settings: Settings) -> Finding:
    try:
        return Finding(True, what, await check(redis, settings))
    except (*REDIS_ERRORS, Fatal) as error:
        return Finding(False, what, str(error))


async def _version(redis: Redis, settings: Settings) -> str:
    where = parse(settings.redis_url.get_secret_value()).shown
    version = str((await redis.info("server"))["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        raise Fatal(f"Redis {version} at {where} is too old, 6.2 or newer is needed")
    memory = await redis.info("memory")
    policy = memory.get("maxmemory_policy", "noeviction")
    if memory.get("maxmemory") and policy != "noeviction":
        raise Fatal(f"Redis evicts keys when memory is short (maxmemory-policy {policy}): queries could be lost, set noeviction")
    return f"{version} at {where}"


async def _permissions(redis: Redis, settings: Settings) -> str:
    """Try all that a worker does on a stream that does not exist: Redis checks permissions first, and nothing is changed."""
    key, group = f"{settings.namespace}:doctor", "doctor"
    needed: list[tuple[str | int, ...]] = [
        ("XADD", key, "NOMKSTREAM", "*", "text", "probe"),
        ("XLEN", key),
        ("EXISTS", key),
        ("XGROUP CREATE", key, group, "0"),
        ("XGROUP DELCONSUMER", key, group, group),
        ("XREADGROUP", "GROUP", group, group, "COUNT", 1, "STREAMS", key, ">"),
        ("XACK", key, group, "0-0"),
        ("ZADD", key, "XX", 0, ""),
        ("XPENDING", key, group),
        ("XCLAIM", key, group, group, 0, "0-0"),
        ("XRANGE", key, "-", "+"),
        ("XINFO STREAM", key),
        ("XINFO GROUPS", key),
        ("XINFO CONSUMERS", key, group),
        ("EVAL", "return redis.call('XPENDING', KEYS[1], 'doctor')", 1, key),
        ("SCRIPT LOAD", "return 1"),
    ]
    if settings.retention == "delete":
        needed.append(("XDEL", key, "0-0"))
    if settings.deduplicate_by:
        needed += [("ZSCORE", key, "probe"), ("ZREM", key, "probe")]
        needed += [("ZREMRANGEBYSCORE", key, 0, 0), ("PEXPIRE", key, 1), ("TIME",)]
    refused = []
    for command in needed:
        try:
            await redis.execute_command(*command)
        except NoPermissionError:
            refused.append(str(command[0]))
        except ResponseError:  # there is no such stream
            pass
    if refused:
        raise Fatal(
            f"this user may not {', '.join(refused)} on {settings.namespace}:*; deploy/redis/pointsman.acl lists what a worker needs"
        )
    return "streams, consumer groups and scripts are allowed"


async def _queue(redis: Redis, settings: Settings) -> str:
    streams = Streams(settings.namespace)
    waiting = await backlog(redis, streams.queries, settings.group)
    if waiting is None:
        return f"{streams.queries} has no group {settings.group} yet; the first worker makes it"
    lag = "unknown (Redis cannot say)" if waiting.lag is None else str(waiting.lag)
    return f"{streams.queries}: lag {lag}, pending {waiting.pending}, dead letters {await redis.xlen(streams.dead)}"


def shown_settings(settings: Settings) -> list[dict[str, str]]:
    """Every setting with its variable, value and meaning; secrets masked."""
    rows = []
    for name, info in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = "**********" if isinstance(value, SecretStr) else "" if value is None else str(value)
        rows.append({"variable": PREFIX + name.upper(), "value": shown, "meaning": info.description or ""})
    return rows

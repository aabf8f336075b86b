"""What workers say of themselves: /metrics and /readyz of each, over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from worker.errors import SettingsError
from worker.worker_process import open_local

ANSWER_WITHIN_S = 2.0
LARGEST_ANSWER = 4_000_000


@dataclass(frozen=True, slots=True)
class Figures:
    """One worker's, since its start."""

    stream: str
    group: str
    consumer: str
    model: str
    """The model's name and version."""
    published: float
    queries: float
    """Classified, in `calls` calls of the model."""
    calls: float
    latency: tuple[tuple[float, float], ...]
    """Bounds in seconds, rising to infinity, and how many messages took no longer."""
    not_ready: tuple[str, ...] = ()
    """The checks of /readyz that do not hold; empty if it is ready."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """What all addresses said at one moment."""

    workers: tuple[Figures, ...] = ()
    failed: tuple[str, ...] = ()
    """For people: which addresses gave no answer, and why."""


async def scrape(urls: Sequence[str]) -> Scrape:
    """Ask all workers at once. A name that stands for several addresses, as that of a service does, is asked at each.

    Args:
        urls: as `check_url` returns them.
    """
    answers = await asyncio.gather(*(asyncio.to_thread(_ask_all, url) for url in urls))
    found = {figures.consumer: figures for answer in answers for figures in answer if isinstance(figures, Figures)}
    return Scrape(tuple(found.values()), tuple(each for answer in answers for each in answer if isinstance(each, str)))


def check_url(url: str) -> str:
    """The address of a worker: `host:port` and `http://host:port/metrics` mean `http://host:port`.

    Raises:
        SettingsError: it is neither http nor https, or names no host.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(f"--metrics {url!r} is no address of a worker: say http://HOST:PORT")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.removesuffix("/").removesuffix("/metrics"), "", ""))


def parse(text: str) -> Figures:
    """Raises ValueError if these are not the metrics of a Pointsman worker."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    worker, model = (_labels(samples, name) for name in ("pointsman_worker_info", "pointsman_model_info"))
    if not worker:
        raise ValueError("these are not the metrics of a Pointsman worker")
    latency: dict[float, float] = {}
    for sample in samples:
        if sample.name == "pointsman_latency_seconds_bucket":
            bound = float(sample.labels.get("le", ""))
            latency[bound] = latency.get(bound, 0.0) + sample.value
    return Figures(
        stream=worker.get("stream", ""),
        group=worker.get("group", ""),
        consumer=worker.get("consumer", ""),
        model=f"{model.get('name', '')} {model.get('version', '')}".strip(),
        published=_total(samples, "pointsman_published_total"),
        queries=_total(samples, "pointsman_batch_size_sum"),
        calls=_total(samples, "pointsman_batch_size_count"),
        latency=tuple(sorted(latency.items())),
    )


def _labels(samples: Iterable[Sample], name: str) -> dict[str, str]:
    return next((dict(sample.labels) for sample in samples if sample.name == name), {})


def _total(samples: Iterable[Sample], name: str) -> float:
    return sum(sample.value for sample in samples if sample.name == name)


def _ask_all(url: str) -> list[Figures | str]:
    try:
        return [_ask(one, url) for one in _addresses(urlsplit(url))]
    except OSError as error:
        return [f"{url}: {_why(error)}"]


def _addresses(parts: SplitResult) -> list[str]:
    """One URL for each address that the name stands for; a certificate holds for the name alone, so https has but one."""
    if parts.scheme == "https" or parts.hostname is None:
        return [urlunsplit(parts)]
    found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    same_kind = [row for row in found if row[0] == socket.AF_INET] or found  # a worker with two kinds of address is still one
    hosts = sorted({str(row[4][0]) for row in same_kind})
    return [f"http://{f'[{host}]' if ':' in host else host}:{parts.port or 80}{parts.path}" for host in hosts]


def _ask(address: str, url: str) -> Figures | str:
    """What the worker says; or for people, why it does not."""
    where = url if address == url else f"{url} ({urlsplit(address).hostname})"
    try:
        return replace(parse(_get(f"{address}/metrics")), not_ready=_not_ready(address))
    except urllib.error.URLError as error:
        return f"{where}: {_why(error.reason)}"
    except (OSError, HTTPException, ValueError) as error:
        return f"{where}: {_why(error)}"


def _why(error: BaseException | str) -> str:
    return getattr(error, "strerror", None) or str(error)


def _not_ready(address: str) -> tuple[str, ...]:
    try:
        _get(f"{address}/readyz")
    except urllib.error.HTTPError as refusal:
        checks: Any = json.loads(refusal.read(LARGEST_ANSWER))
        return tuple(name for name, holds in checks.items() if not holds) if isinstance(checks, dict) else ("readyz",)
    return ()


def _get(url: str) -> str:
    with open_local(url, timeout=ANSWER_WITHIN_S) as answer:
        content: bytes = answer.read(LARGEST_ANSWER)
    return content.decode("utf-8", errors="replace")

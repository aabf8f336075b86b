"""Liveness and readiness: what an orchestrator asks, answered from what is known, without waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

REDIS_ANSWER_AGE_S = 5.0
"""Readiness falls when Redis has not answered for so long."""


@dataclass(slots=True)
class Health:
    """What the worker knows about itself; `app` keeps it up to date."""

    redis_answered_at: float = float("-inf")
    """time.monotonic() of Redis' last answer."""
    consuming: bool = False
    """Whether the consume loop is there."""
    consume_stuck: bool = False
    """Whether it takes nothing although it could."""
    stopping: bool = False
    pipeline_failed: bool = False
    inference_stuck: Callable[[], bool] = lambda: False
    """Whether the model has been at one batch for longer than one may take."""
    held_back: Callable[[], bool] = lambda: False
    """Whether Redis does not take results for now."""

    def redis_answered(self) -> None:
        self.redis_answered_at = time.monotonic()

    def alive(self) -> dict[str, bool]:
        """Checks of which all must hold, or the process should be restarted."""
        return {"pipeline": not self.pipeline_failed, "inference": not self.inference_stuck(), "consuming": not self.consume_stuck}

    def ready(self) -> dict[str, bool]:
        """Checks of which all must hold for queries to be routed now."""
        return {
            "redis": time.monotonic() - self.redis_answered_at < REDIS_ANSWER_AGE_S,
            "consuming": self.consuming and not self.consume_stuck and not self.stopping,
            "delivering": not self.held_back(),
            "pipeline": not self.pipeline_failed,
            "inference": not self.inference_stuck(),
        }


def endpoint(checks: Callable[[], dict[str, bool]]) -> AsgiApp:
    """An ASGI app that answers 200 if all checks hold and 503 if not, with the checks as JSON."""

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        results = checks()
        body = json.dumps(results).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200 if all(results.values()) else 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer

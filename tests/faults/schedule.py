"""Which faults strike a run, and when: the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop", "terminate", "disconnect", "flush scripts", "restart Redis", "lose group"]
Retention = Literal["keep", "delete"]
Model = Literal["null", "real"]

LEGEND: Mapping[Kind, str] = {
    "kill": "a worker gets SIGKILL, a new one takes its place",
    "stop": "a worker gets SIGSTOP, and SIGCONT once others have claimed what it holds",
    "terminate": "a worker gets SIGTERM, a new one takes its place",
    "disconnect": "CLIENT KILL of every connection, the producer's too",
    "flush scripts": "SCRIPT FLUSH",
    "restart Redis": "Redis gets SIGKILL and is started again on its append-only file",
    "lose group": "XGROUP DESTROY",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something bad, and how many messages are published when it happens."""

    after: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does. The same plan gives the same faults in the same order, at the same numbers of messages."""

    messages: int
    kills: int
    workers: int = 3
    seed: int = 1
    model: Model = "null"
    pace_s: float = 0.0
    redis_restarts: int | None = None
    retention: Retention = "delete"
    lose_group: bool = False
    redis_server: str | None = None

    def faults(self) -> list[Fault]:
        """By the number of messages published when they strike: so they strike under load, on any machine."""
        source, others = random.Random(self.seed), -(-self.kills // 4)
        restarts = -(-self.kills // 20) if self.redis_restarts is None else self.redis_restarts
        counts: Counter[Kind] = Counter({"kill": self.kills, "restart Redis": restarts, "lose group": others if self.lose_group else 0})
        counts.update(dict.fromkeys(("stop", "terminate", "disconnect", "flush scripts"), others))
        kinds = list(counts.elements())
        source.shuffle(kinds)
        moments = sorted(source.uniform(0.02, 0.9) for _ in kinds)
        return [Fault(int(moment * self.messages), kind) for moment, kind in zip(moments, kinds, strict=True)]

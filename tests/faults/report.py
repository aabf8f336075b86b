"""What a chaos run did and what came of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from tests.faults.reconciliation import Tally
from tests.faults.schedule import LEGEND, Plan


@dataclass(slots=True)
class Report:
    """What a run did and what came of it."""

    plan: Plan
    redis_version: str
    seconds: float = 0.0
    """From the first message to the last publication."""
    faults: dict[str, int] = field(default_factory=dict)
    held_by_victims: int = 0
    """Entries that killed and stopped workers had in their hands at that moment."""
    longest_pause_s: dict[str, float] = field(default_factory=dict)
    """The longest time in which nothing was published although something waited, by the last fault before its end."""
    lost: int = 0
    doubled: int = 0
    strange: int = 0
    examples_lost: list[int] = field(default_factory=list)
    examples_doubled: list[int] = field(default_factory=list)
    pending: int = 0
    left_in_queue: int = 0
    """Entries still in the stream of queries; with retention `keep`, 1 if some of them were never read."""
    keys_left: list[str] = field(default_factory=list)
    consumers_left: list[str] = field(default_factory=list)
    """Consumers of workers that were killed or have stopped, that nobody removed from the group."""
    dead_letters: int = 0
    slowest_message_s: float = 0.0
    """The longest way of one message, from XADD to publication by Redis' clock."""
    workers_failed: list[str] = field(default_factory=list)
    """Workers that ended although nobody asked them to, or not with exit code 0 when asked."""

    @property
    def longest_recovery_s(self) -> float:
        return max(self.longest_pause_s.values(), default=0.0)

    @property
    def messages_per_s(self) -> float:
        return self.plan.messages / max(self.seconds, 1e-3)

    @property
    def ok(self) -> bool:
        """Every message came out once, nothing stayed behind, and every worker ended when it was asked to and not before."""
        amiss: tuple[object, ...] = (self.lost, self.doubled, self.strange, self.pending, self.left_in_queue)
        return not any((*amiss, self.keys_left, self.consumers_left, self.workers_failed))

    def count(self, tally: Tally) -> None:
        self.lost, self.doubled, self.strange = tally.lost, tally.doubled, tally.strange
        self.examples_lost, self.examples_doubled = tally.examples_lost(), tally.examples_doubled()
        self.dead_letters, self.slowest_message_s = tally.dead, tally.slowest_ms / 1000


def for_machines(report: Report) -> str:
    derived = {"ok": report.ok, "longest_recovery_s": report.longest_recovery_s, "messages_per_s": report.messages_per_s}
    return json.dumps(derived | asdict(report))


def for_people(report: Report) -> str:
    plan = report.plan
    rows: list[tuple[str, object]] = [
        ("messages", f"{plan.messages:,} through {plan.workers} workers, {plan.model} model, retention {plan.retention}"),
        ("Redis", report.redis_version),
        ("seed", plan.seed),
        ("took", f"{report.seconds:,.1f} s, {report.messages_per_s:,.0f} messages/s, all faults included"),
    ]
    for kind, meaning in LEGEND.items():
        if count := report.faults.get(kind):
            rows.append((kind, f"{count:<4} pause at most {report.longest_pause_s.get(kind, 0.0):4.1f} s   {meaning}"))
    rows += [
        ("longest recovery", f"{report.longest_recovery_s:.1f} s in which nothing was published although something waited"),
        ("slowest message", f"{report.slowest_message_s:.1f} s from XADD to publication"),
        ("held by victims", f"{report.held_by_victims} entries when they were killed or stopped"),
        ("lost", " ".join(map(str, [report.lost, *report.examples_lost]))),
        ("doubled", " ".join(map(str, [report.doubled, *report.examples_doubled]))),
        ("of unknown number", report.strange),
        ("left pending", report.pending),
        ("left in the queue", report.left_in_queue),
        ("keys left over", " ".join(report.keys_left) or 0),
        ("consumers left over", " ".join(report.consumers_left) or 0),
        ("dead letters", report.dead_letters),
        ("workers that failed", " ".join(report.workers_failed) or 0),
    ]
    return "\n".join(f"{name:<21}{value}" for name, value in rows)

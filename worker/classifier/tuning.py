"""What is fastest on this machine: weight format, threads, and how much is computed in one call.

Everything is measured in turns with what is best so far, and compared by the median of the ratios, since
machines are noisy. A format that does not answer like the original is never chosen, however fast.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median

from worker.classifier.classifier import Classifier
from worker.classifier.cores import available_cores
from worker.classifier.engine import EngineError, EngineOptions
from worker.classifier.formats import FORMATS, in_format
from worker.classifier.model_file import ModelFileError, content_hash, load

LEAST_AGREEMENT = 0.98
"""Share of texts that a format must label like the original."""
_WORTH_IT = 1.03
"""A setting must be faster by so much to be preferred to what stands."""
_LEAST_TOKENS = 2_000
"""Tokens in one round; fewer say little."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What was found best for one model on one machine."""

    weight_format: str | None
    """None: the file as it is."""
    threads: int
    batch_tokens: int
    micro_batch_tokens: int

    def options(self, base: EngineOptions) -> EngineOptions:
        """`base` with what was found; threads that were set by hand stay."""
        return replace(
            base, threads=base.threads or self.threads, batch_tokens=self.batch_tokens, micro_batch_tokens=self.micro_batch_tokens
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate against what stood before it."""

    what: str
    ratio: float
    """Median ratio of its speed to that of the best so far; 0 if it was not measured."""
    agreement: float
    """Share of texts labelled like the original."""
    chosen: bool
    note: str = ""


def choose(
    model: Path,
    weight_format: str,
    cache: Path,
    base: EngineOptions,
    *,
    n_gpu_layers: int = 0,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> tuple[Path, EngineOptions]:
    """Which file to load, and with which options.

    Args:
        weight_format: `tuned` (what `measure` found on this machine, if it ever ran), `auto` (the same, and if it never
            ran it does now, in its short form), `original` (the file as it is), or one of FORMATS.

    Raises:
        ModelFileError: the model cannot be used, or the format cannot be made.
    """
    if weight_format == "original":
        return model, base
    profile = load_profile(model, cache)
    if profile is None and weight_format == "auto":
        profile = measure(model, [], cache, base=base, n_gpu_layers=n_gpu_layers, formats_only=True, rounds=3, on_trial=on_trial)
        save_profile(profile, model, cache)
    options = profile.options(base) if profile else base
    wanted = weight_format if weight_format in FORMATS else profile.weight_format if profile else None
    return (in_format(model, wanted, cache, content_hash(model)) if wanted else model), options


def measure(
    model: Path,
    texts: Sequence[str],
    cache: Path,
    *,
    base: EngineOptions,
    n_gpu_layers: int = 0,
    formats_only: bool = False,
    rounds: int = 5,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> Profile:
    """Find the best profile for a model on this machine.

    Args:
        texts: queries to measure with; the model's probes are added.
        formats_only: the short form; threads and batches stay as they are.

    Raises:
        ModelFileError: the model cannot be used as it is.
    """
    load(model, vocab_only=True).close()
    master_hash = content_hash(model)
    cores = available_cores()
    best = Profile(None, base.threads or cores, base.batch_tokens, base.micro_batch_tokens)

    def start(profile: Profile) -> Classifier:
        path = model if profile.weight_format is None else in_format(model, profile.weight_format, cache, master_hash)
        return Classifier.open(path, options=profile.options(replace(base, threads=None)), n_gpu_layers=n_gpu_layers)

    standing = start(best)
    try:
        queue = _queue(standing, texts)
        original = [decision.label for decision in standing.classify(queue)]

        def challenge(what: str, profile: Profile) -> None:
            nonlocal best, standing
            try:
                challenger = start(profile)
            except (ModelFileError, EngineError) as error:
                on_trial(Trial(what, 0.0, 0.0, chosen=False, note=str(error)))
                return
            labels = [decision.label for decision in challenger.classify(queue)]
            agreement = sum(a == b for a, b in zip(labels, original, strict=True)) / len(queue)
            ratio = 0.0 if agreement < LEAST_AGREEMENT else _speed_ratio(challenger, standing, queue, rounds)
            chosen = ratio > _WORTH_IT
            note = "" if ratio else f"answers unlike the original on {1 - agreement:.1%} of {len(queue)} texts"
            on_trial(Trial(what, ratio, agreement, chosen, note))
            if chosen:
                standing, challenger, best = challenger, standing, profile
            challenger.close()

        for name in FORMATS:
            if name != standing.weight_format or best.weight_format is not None:
                challenge(name, replace(best, weight_format=name))
        if not formats_only:
            for threads in sorted({max(1, cores // 2), max(1, cores * 3 // 4)} - {best.threads}):
                challenge(f"{threads} threads", replace(best, threads=threads))
            for tokens in (127, 511, 1023):
                challenge(f"calls of {tokens} tokens", replace(best, batch_tokens=tokens))
            for tokens in (128, 256):
                challenge(f"micro-batches of {tokens} tokens", replace(best, micro_batch_tokens=tokens))
    finally:
        standing.close()
    return best


def _queue(classifier: Classifier, texts: Sequence[str]) -> list[str]:
    """Distinct texts, cut to what one round needs."""
    queue, tokens = [], 0
    for text in dict.fromkeys([*(probe.text for probe in classifier.card.probes), *texts]):
        queue.append(text)
        tokens += len(classifier.encode(text).ids)
        if tokens >= _LEAST_TOKENS:
            break
    return queue


def _speed_ratio(challenger: Classifier, standing: Classifier, queue: Sequence[str], rounds: int) -> float:
    def seconds(classifier: Classifier) -> float:
        started = time.perf_counter()
        classifier.classify(queue)
        return time.perf_counter() - started

    return median(seconds(standing) / seconds(challenger) for _ in range(rounds))


def machine_key() -> str:
    """Changes with the CPU, the cores that this process may use, and llama.cpp: what a profile depends on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else [platform.processor()]
    kept = sorted({line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))})
    said = json.dumps([kept, available_cores(), version("llama-cpp-python")])
    return sha256(said.encode()).hexdigest()[:12]


def _profile_path(cache: Path, master_hash: str) -> Path:
    return cache / master_hash[:16] / f"profile-{machine_key()}.json"


def load_profile(model: Path, cache: Path) -> Profile | None:
    """What was found for this model on this machine, if anything. One that cannot be read counts as none."""
    if not cache.is_dir():
        return None
    try:
        return Profile(**json.loads(_profile_path(cache, content_hash(model)).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def save_profile(profile: Profile, model: Path, cache: Path) -> Path:
    """Keep a profile for `load_profile`. Returns where.

    Raises:
        ModelFileError: it cannot be written.
    """
    path = _profile_path(cache, content_hash(model))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(asdict(profile), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ModelFileError(f"cannot keep the profile in {cache} ({error}): set POINTSMAN_CACHE_DIR") from error
    return path

"""What is fastest on this machine: weight format, threads, and how much is computed in one call.

Everything is measured in turns with what is best so far, and compared by the median of the ratios, since
machines are noisy. A format that does not answer like the original is never chosen, however fast.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter

from worker.classifier.classifier import Classifier
from worker.classifier.cores import available_cores
from worker.classifier.engine import EngineError, EngineOptions, call_tokens, layers_on_gpu
from worker.classifier.formats import FORMATS, cached, forget, in_format
from worker.classifier.labels import agreement
from worker.classifier.model_file import ModelFileError, content_hash

LEAST_AGREEMENT = 0.98
"""Share of texts that a format must label like the original."""
_WORTH_IT = 1.03
"""A setting must be faster by so much to be preferred to what stands."""
AT_START_S = 60.0
"""Within it a worker that measures for itself should be done: what started it waits, and may have little patience."""
_TOKENS_A_ROUND = 2_000
"""Fewer say little."""
_CLOSE = ("F32", "F16", "BF16", "Q8_0")
"""Formats that answer nearly alike: the only ones tried where there are too few texts to tell."""
_ENOUGH_TEXTS = 100


@dataclass(frozen=True, slots=True)
class Profile:
    """What was found best for one model on one machine. None stands for the default."""

    weight_format: str | None
    """None: the file as it is."""
    threads: int | None
    """None: as many as there are cores."""
    batch_tokens: int
    micro_batch_tokens: int

    def options(self, base: EngineOptions) -> EngineOptions:
        """`base` with what was found; threads that were set by hand stay as they were set."""
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
    if weight_format == "original" or (weight_format == "tuned" and not cache.is_dir()):
        return model, base  # nothing asks for the model's hash, which takes as long as reading it
    master_hash = content_hash(model)
    profile = load_profile(master_hash, cache, n_gpu_layers)
    if profile is None and weight_format == "auto":
        profile = measure(
            model,
            master_hash,
            [],
            cache,
            base=base,
            n_gpu_layers=n_gpu_layers,
            formats_only=True,
            rounds=3,
            budget_s=AT_START_S,
            on_trial=on_trial,
        )
        if profile is not None:
            save_profile(profile, master_hash, cache, n_gpu_layers)
    options = profile.options(base) if profile else base
    wanted = weight_format if weight_format in FORMATS else profile.weight_format if profile else None
    return (in_format(model, wanted, cache, master_hash) if wanted else model), options


def measure(
    model: Path,
    master_hash: str,
    texts: Sequence[str],
    cache: Path,
    *,
    base: EngineOptions,
    n_gpu_layers: int = 0,
    formats_only: bool = False,
    rounds: int = 5,
    budget_s: float | None = None,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> Profile | None:
    """Find the best profile for a model on this machine; None if there are neither probes nor texts to measure with.

    Args:
        master_hash: `content_hash` of the model.
        texts: queries to measure with; the model's probes are added. With fewer than a hundred only formats are tried
            that answer nearly alike.
        formats_only: the short form; threads and batches stay as they are.
        budget_s: after so long no further format is tried; rounds are short, and no format is tried that is larger than the original.

    Raises:
        ModelFileError: the model cannot be used as it is.
    """
    cores = available_cores()
    on_gpu = layers_on_gpu(n_gpu_layers) != 0
    best = Profile(None, None, call_tokens(base, on_gpu=on_gpu), base.micro_batch_tokens)
    base = replace(base, hold_prefixes=False)  # what is held depends on what came before, which would favour the longest at work

    def start(profile: Profile) -> Classifier:
        path = model if profile.weight_format is None else in_format(model, profile.weight_format, cache, master_hash)
        return Classifier.open(path, options=profile.options(base), n_gpu_layers=n_gpu_layers)

    started = time.monotonic()
    standing = start(best)
    own_format = standing.weight_format
    queue, repeats = _queue(standing, texts)
    try:
        if not queue:
            return None
        before = time.monotonic()
        original = [decision.label for decision in standing.classify(queue)]
        if budget_s is not None:
            repeats = max(1, min(repeats, int(budget_s / 30 / (time.monotonic() - before))))

        def challenge(what: str, profile: Profile) -> None:
            nonlocal best, standing
            challenger = None
            try:
                challenger = start(profile)
                labels = [decision.label for decision in challenger.classify(queue)]
                alike = agreement(labels, original)
                ratio = 0.0 if alike < LEAST_AGREEMENT else _speed_ratio(challenger, standing, queue, repeats, rounds)
            except (ModelFileError, EngineError) as error:
                on_trial(Trial(what, 0.0, 0.0, chosen=False, note=str(error)))
            else:
                note = "" if ratio else f"answers unlike the original on {1 - alike:.1%} of {len(queue)} texts"
                on_trial(Trial(what, ratio, alike, ratio > _WORTH_IT, note))
                if ratio > _WORTH_IT:
                    standing, challenger, best = challenger, standing, profile
            finally:
                if challenger is not None:
                    challenger.close()

        for name in FORMATS if len(queue) >= _ENOUGH_TEXTS else _CLOSE:
            if name == own_format or (budget_s is not None and name == "F32"):
                continue
            if budget_s is not None and time.monotonic() - started > budget_s:
                on_trial(Trial(name, 0.0, 0.0, chosen=False, note="no time was left for it"))
                continue
            beaten = best.weight_format
            challenge(name, replace(best, weight_format=name))
            if best.weight_format != name:
                beaten = name
            if beaten is not None:
                forget(cached(model, beaten, cache, master_hash))
        if not formats_only:
            if base.threads is None:
                for threads in sorted({max(1, cores // 2), max(1, cores * 3 // 4)} - {cores}):
                    challenge(f"{threads} threads", replace(best, threads=threads))
            for tokens in (511, 1023, 4095) if on_gpu else (127, 511, 1023):
                challenge(f"calls of {tokens} tokens", replace(best, batch_tokens=tokens))
            for tokens in (1024, 2048) if on_gpu else (128, 256):
                challenge(f"micro-batches of {tokens} tokens", replace(best, micro_batch_tokens=tokens))
    finally:
        standing.close()
    return best


def _queue(classifier: Classifier, texts: Sequence[str]) -> tuple[list[str], int]:
    """Distinct texts, and how often a round must classify them to have enough to do."""
    queue, tokens = [], 0
    for text in dict.fromkeys([*(probe.text for probe in classifier.card.probes), *texts]):
        queue.append(text)
        tokens += len(classifier.encode(text).ids)
        if tokens >= _TOKENS_A_ROUND and len(queue) >= _ENOUGH_TEXTS:
            break
    return queue, -(-_TOKENS_A_ROUND // max(1, tokens))


def _speed_ratio(challenger: Classifier, standing: Classifier, queue: Sequence[str], repeats: int, rounds: int) -> float:
    def seconds(classifier: Classifier) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            classifier.classify(queue)
        return time.perf_counter() - started

    return median(seconds(standing) / seconds(challenger) for _ in range(rounds))


def machine_key(n_gpu_layers: int) -> str:
    """Changes with what a profile depends on: the CPU, the cores that this process may use, llama.cpp, layers on a GPU."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else [platform.processor()]
    kept = sorted({line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))})
    said = json.dumps([kept, available_cores(), version("llama-cpp-python"), layers_on_gpu(n_gpu_layers)])
    return sha256(said.encode()).hexdigest()[:12]


def _profile_path(master_hash: str, cache: Path, n_gpu_layers: int) -> Path:
    return cache / master_hash[:16] / f"profile-{machine_key(n_gpu_layers)}.json"


def load_profile(master_hash: str, cache: Path, n_gpu_layers: int = 0) -> Profile | None:
    """What was found for the model of this `content_hash` on this machine, if anything. One that cannot be read counts as none."""
    try:
        profile = TypeAdapter(Profile).validate_json(_profile_path(master_hash, cache, n_gpu_layers).read_bytes())
    except (OSError, ValueError):
        return None
    return profile if profile.weight_format in (None, *FORMATS) else None


def save_profile(profile: Profile, master_hash: str, cache: Path, n_gpu_layers: int = 0) -> Path:
    """Keep a profile for `load_profile`. Returns where.

    Raises:
        ModelFileError: it cannot be written.
    """
    path = _profile_path(master_hash, cache, n_gpu_layers)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial", delete=False, encoding="utf-8") as partial:
            partial.write(json.dumps(asdict(profile), indent=1) + "\n")
        Path(partial.name).replace(path)
    except OSError as error:
        raise ModelFileError(f"cannot keep the profile in {cache} ({error}): set POINTSMAN_CACHE_DIR") from error
    return path

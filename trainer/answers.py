"""What a new model answers to the held-out examples, as a GGUF and in the engine: asked once, and all figures are computed from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer import build, work
from trainer.dataset import Example, fingerprint
from trainer.evaluate import CHUNK
from worker.classifier import Classifier, Decision
from worker.classifier.calibration import Floats
from worker.classifier.classifier import decide
from worker.classifier.model_file import ModelCard

ANSWERS_FILE = "answers.npz"


@dataclass(frozen=True, slots=True)
class Answers:
    """To the examples of one part, a row each."""

    scores: Floats
    """Uncalibrated log-probabilities, shape (examples, labels)."""
    lengths: npt.NDArray[np.int64]
    """Tokens of each query, its suffix included."""
    truncated: npt.NDArray[np.bool_]
    prompts: npt.NDArray[np.uint64]
    """A hash of the token ids of each, prefix and all."""

    def decisions(self, card: ModelCard) -> list[Decision]:
        """As the worker decides, calibrated as the card says."""
        return decide(card, self.scores, self.lengths.tolist(), self.truncated.tolist())


def ask(
    base: Path,
    directory: Path,
    metadata: Mapping[str, Any],
    parts: Mapping[str, Sequence[Example]],
    progress: Callable[[str, int, int | None], None],
) -> dict[str, Answers]:
    """Ask the model of an adapter in `directory`, unless its answers to these very examples lie there already.

    Raises:
        BuildError, ModelFileError: no GGUF can be made of it, or it cannot be used.
    """
    adapter = directory / build.ADAPTER_FILE
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest()
    examples = {part: fingerprint(rows) for part, rows in parts.items()}
    asked = work.fingerprint([digest, metadata["labels"], metadata["prompt"], examples, version("llama-cpp-python")])
    found = work.recall(directory / ANSWERS_FILE)
    if found is not None and found[0] == {"asked": asked}:
        return {part: Answers(*(found[1][f"{part}_{field.name}"] for field in fields(Answers))) for part in parts}
    draft = directory / ".draft.gguf"
    try:
        build.build(base, build.read_adapter(adapter), metadata, draft, lambda done, total: progress("building", done, total))
        classifier = Classifier.open(draft)
        try:
            answers = {part: _answers(classifier, part, rows, progress) for part, rows in parts.items()}
        finally:
            classifier.close()
    finally:
        draft.unlink(missing_ok=True)
    arrays = {f"{part}_{name}": array for part, each in answers.items() for name, array in asdict(each).items()}
    work.remember(directory / ANSWERS_FILE, {"asked": asked}, arrays)
    return answers


def prompt_hash(ids: Sequence[int]) -> int:
    """Of token ids, prefix and all."""
    return int.from_bytes(hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()[:8])


def _answers(classifier: Classifier, part: str, examples: Sequence[Example], progress: Callable[[str, int, int | None], None]) -> Answers:
    queries = [classifier.encode(example.text) for example in examples]
    scores = []
    for start in range(0, len(queries), CHUNK):
        scores.append(classifier.log_probabilities(queries[start : start + CHUNK]))
        progress(f"classifying the {part} part", min(start + CHUNK, len(queries)), len(queries))
    return Answers(
        np.concatenate(scores),
        np.array([len(query.ids) for query in queries]),
        np.array([query.truncated for query in queries]),
        np.array([prompt_hash([*classifier.prefix_ids, *query.ids]) for query in queries], dtype=np.uint64),
    )

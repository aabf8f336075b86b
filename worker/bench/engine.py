"""The engine against llama.cpp's own prefill, and against the ordinary way to classify with a GGUF."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import llama_cpp

from worker.bench.llama_server import llama_server
from worker.bench.rounds import Contestant, rates, ratio
from worker.classifier import Classifier, EngineOptions
from worker.classifier.cores import available_cores
from worker.classifier.engine import layers_on_gpu
from worker.classifier.grammar import gbnf
from worker.classifier.model_file import load

PREFILL_TOKENS = 512
ORDINARY_MESSAGES = 12
"""Queries that the ordinary way gets a round: it is slow."""
SERVER_MESSAGES = 96
"""Queries that llama-server gets a round."""


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Rates are medians; ratios are medians of the ratios of each round."""

    messages: int
    tokens_per_message: float
    prefill_tokens_per_s: float
    tokens_per_s: float
    messages_per_s: float
    to_prefill: float
    unlike_to_prefill: float
    ordinary_messages_per_s: float
    to_ordinary: float
    server_messages_per_s: float | None
    """llama-server's, if one was given."""
    to_server: float | None
    computed_share: float
    """Tokens that were computed, of all tokens of the texts: the rest was shared or held."""
    forward_pass_s: float
    """llama.cpp's own, of one query of median length alone."""


def measure(
    model: Path,
    options: EngineOptions,
    texts: Sequence[str],
    rounds: int,
    on_step: Callable[[], None],
    *,
    n_gpu_layers: int = 0,
    server: Path | None = None,
) -> EngineFigures:
    """Run all contestants in turns. `texts` is a full queue; `server` a llama-server to compare with."""
    classifier = Classifier.open(model, options=options, n_gpu_layers=n_gpu_layers)
    unlike = unlike_texts(len(texts))
    n_tokens = {name: sum(len(classifier.encode(text).ids) for text in some) for name, some in (("alike", texts), ("unlike", unlike))}

    def classify(some: Sequence[str], amount: float) -> Contestant:
        return lambda: (classifier.classify(some), amount)[1]

    alone = len(classifier.prefix_ids) + sorted(len(classifier.encode(text).ids) for text in texts)[len(texts) // 2]
    with ExitStack() as stack:
        decode = stack.enter_context(prefill(model, n_gpu_layers))
        complete = stack.enter_context(ordinary(classifier, model, n_gpu_layers))
        contestants: dict[str, Contestant] = {
            "prefill": decode,
            "alike": classify(texts, n_tokens["alike"]),
            "prefill again": decode,
            "unlike": classify(unlike, n_tokens["unlike"]),
            "ordinary": lambda: complete(texts[:ORDINARY_MESSAGES]),
            "alone": stack.enter_context(prefill(model, n_gpu_layers, alone)),
        }
        if server is not None:
            send = stack.enter_context(llama_server(server, model, classifier.card))
            contestants["server"] = lambda: send(texts[:SERVER_MESSAGES])
        rates(contestants, 1)  # warms caches up
        found = rates(contestants, rounds, on_step)
    before = classifier.tokens_computed
    classifier.classify(texts)
    computed = classifier.tokens_computed - before
    classifier.close()
    per_message = n_tokens["alike"] / len(texts)
    found["messages"] = [rate / per_message for rate in found["alike"]]
    return EngineFigures(
        messages=len(texts),
        tokens_per_message=per_message,
        prefill_tokens_per_s=median(found["prefill"]),
        tokens_per_s=median(found["alike"]),
        messages_per_s=median(found["messages"]),
        to_prefill=ratio(found, "alike", "prefill"),
        unlike_to_prefill=ratio(found, "unlike", "prefill again"),
        ordinary_messages_per_s=median(found["ordinary"]),
        to_ordinary=ratio(found, "messages", "ordinary"),
        server_messages_per_s=median(found["server"]) if server else None,
        to_server=ratio(found, "messages", "server") if server else None,
        computed_share=computed / n_tokens["alike"],
        forward_pass_s=alone / median(found["alone"]),
    )


def unlike_texts(count: int, seed: int = 0) -> list[str]:
    """Texts with nothing in common: random letters."""
    source = random.Random(seed)
    return [" ".join("".join(source.choices(string.ascii_lowercase, k=source.randint(2, 7))) for _ in range(7)) for _ in range(count)]


@contextmanager
def prefill(model: Path, n_gpu_layers: int = 0, tokens: int = PREFILL_TOKENS) -> Iterator[Contestant]:
    """llama.cpp's own prefill of one text of so many tokens, a full batch if not said, with the settings that suit it best."""
    loaded = load(model, n_gpu_layers=n_gpu_layers)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = tokens
    params.n_threads = params.n_threads_batch = available_cores()
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    context = llama_cpp.llama_init_from_model(loaded.handle, params)
    source = random.Random(0)
    ids = (llama_cpp.llama_token * tokens)(*(source.randrange(1000, loaded.n_tokens) for _ in range(tokens)))
    batch = llama_cpp.llama_batch_get_one(ids, tokens)
    times = max(3, 256 // tokens)

    def decode() -> float:
        for _ in range(times):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
            llama_cpp.llama_decode(context, batch)
            llama_cpp.llama_synchronize(context)
        return times * tokens

    try:
        yield decode
    finally:
        llama_cpp.llama_free(context)
        loaded.close()


@contextmanager
def ordinary(classifier: Classifier, model: Path, n_gpu_layers: int = 0) -> Iterator[Callable[[Sequence[str]], float]]:
    """What a user of llama-cpp-python would write: `create_completion` with a grammar of the same labels."""
    cores = available_cores()
    llama = llama_cpp.Llama(
        str(model), n_ctx=1024, n_threads=cores, n_threads_batch=cores, n_gpu_layers=layers_on_gpu(n_gpu_layers), verbose=False
    )
    grammar = llama_cpp.LlamaGrammar.from_string(gbnf(classifier.card.labels.codes), verbose=False)
    prompt = classifier.card.prompt

    def complete(texts: Sequence[str]) -> float:
        for text in texts:
            llama.create_completion(prompt.prefix + text + prompt.suffix, grammar=grammar, max_tokens=8, temperature=0.0)
        return len(texts)

    try:
        yield complete
    finally:
        llama.close()

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
from worker.classifier.engine import kv_cache_type, layers_on_gpu
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
    forward_pass_tokens: int
    """A query of median length with its prefix: what one forward pass of llama.cpp's own is measured with."""


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
    lengths = {text: len(classifier.encode(text).ids) for text in texts}
    by_length = sorted(texts, key=lengths.__getitem__)
    n_tokens = sum(lengths[text] for text in texts)
    # Never the same again: what comes again is held.
    fresh = iter([(some, sum(len(classifier.encode(text).ids) for text in some)) for some in unlike_texts(len(texts), rounds + 1)])

    def classify(some: Sequence[str], amount: float) -> float:
        classifier.classify(some)
        return amount

    few, more = spread(by_length, ORDINARY_MESSAGES), spread(by_length, SERVER_MESSAGES)
    answer_tokens = max(map(len, classifier.code_ids)) + 1
    with ExitStack() as stack:
        decode = stack.enter_context(prefill(model, options, n_gpu_layers))
        complete = stack.enter_context(ordinary(classifier, model, answer_tokens, n_gpu_layers))
        contestants: dict[str, Contestant] = {
            "prefill": decode,
            "alike": lambda: classify(texts, n_tokens),
            "prefill again": decode,
            "unlike": lambda: classify(*next(fresh)),
            "ordinary": lambda: complete(few),
        }
        if server is not None:
            send = stack.enter_context(llama_server(server, model, classifier.card, answer_tokens))
            contestants["server"] = lambda: send(more)
        rates(contestants, 1)  # warms caches up
        found = rates(contestants, rounds, on_step)
    before = classifier.tokens_computed
    classifier.classify(texts)
    computed = classifier.tokens_computed - before
    classifier.close()
    per_message = n_tokens / len(texts)
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
        computed_share=computed / n_tokens,
        forward_pass_tokens=len(classifier.prefix_ids) + lengths[by_length[len(texts) // 2]],
    )


def spread(by_length: Sequence[str], count: int) -> list[str]:
    """So many of these texts, evenly from the shortest to the longest: together about as long as all, whatever order they came in."""
    count = min(count, len(by_length))
    return [by_length[(2 * number + 1) * len(by_length) // (2 * count)] for number in range(count)]


def unlike_texts(count: int, rounds: int = 1) -> list[list[str]]:
    """For each round other texts with nothing in common: random letters."""
    source = random.Random(0)

    def text() -> str:
        return " ".join("".join(source.choices(string.ascii_lowercase, k=source.randint(2, 7))) for _ in range(7))

    return [[text() for _ in range(count)] for _ in range(rounds)]


@contextmanager
def prefill(model: Path, options: EngineOptions, n_gpu_layers: int = 0, tokens: int = PREFILL_TOKENS) -> Iterator[Contestant]:
    """llama.cpp's own prefill of one text of so many tokens, a full batch if not said, with the settings that suit it best."""
    loaded = load(model, n_gpu_layers=n_gpu_layers)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = tokens
    params.n_threads = params.n_threads_batch = options.threads or available_cores()
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.type_k = params.type_v = kv_cache_type()
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
def ordinary(classifier: Classifier, model: Path, answer_tokens: int, n_gpu_layers: int = 0) -> Iterator[Callable[[Sequence[str]], float]]:
    """What a user of llama-cpp-python would write: `create_completion` with a grammar of the same labels."""
    cores = available_cores()
    llama = llama_cpp.Llama(
        str(model), n_ctx=1024, n_threads=cores, n_threads_batch=cores, n_gpu_layers=layers_on_gpu(n_gpu_layers), verbose=False
    )
    grammar = llama_cpp.LlamaGrammar.from_string(gbnf(classifier.card.labels.codes), verbose=False)
    prompt = classifier.card.prompt

    def complete(texts: Sequence[str]) -> float:
        for text in texts:
            llama.create_completion(prompt.prefix + text + prompt.suffix, grammar=grammar, max_tokens=answer_tokens, temperature=0.0)
        return len(texts)

    try:
        yield complete
    finally:
        llama.close()

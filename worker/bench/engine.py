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
from worker.classifier.engine import EngineError, context_params, layers_on_gpu
from worker.classifier.grammar import gbnf
from worker.classifier.model_file import load

PREFILL_TOKENS = (256, 512)
"""Tokens that llama.cpp's own prefill gets at a time. On a CPU sometimes the one is faster and sometimes the other: the faster counts."""
ORDINARY_MESSAGES = 12
"""Queries that the ordinary way gets a round: it is slow."""
UNLIKE_MESSAGES = 256
"""Random texts a round, which share nothing: more of them are no other."""
SERVER_MESSAGES = 96
"""Queries that llama-server gets a round."""


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Rates are medians; ratios are medians of the ratios of each round."""

    messages: int
    tokens_per_message: float
    prefill_tokens: int
    """How many at a time llama.cpp's own prefill was fastest with."""
    prefill_tokens_per_s: float
    tokens_per_s: float
    messages_per_s: float
    to_prefill: float
    unlike_to_prefill: float
    batches_to_prefill: float
    """The same in the batches that a worker gets from a full queue, in the order of the texts: fewer share a beginning."""
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
    count = min(len(texts), UNLIKE_MESSAGES)
    fresh = iter([(some, sum(len(classifier.encode(text).ids) for text in some)) for some in unlike_texts(count, rounds + 1)])

    def classify(some: Sequence[str], amount: float) -> float:
        classifier.classify(some)
        return amount

    few, more = spread(by_length, ORDINARY_MESSAGES), spread(by_length, SERVER_MESSAGES)
    answer_tokens = max(map(len, classifier.code_ids)) + 1
    batches = [texts[start : start + options.sequences] for start in range(0, len(texts), options.sequences)]

    def classify_in_batches() -> float:
        for batch in batches:
            classifier.classify(batch)
        return n_tokens

    with ExitStack() as stack:
        sizes = {tokens: stack.enter_context(prefill(model, options, n_gpu_layers, tokens)) for tokens in PREFILL_TOKENS}
        tried = rates({str(tokens): decode for tokens, decode in sizes.items()}, 3)
        prefill_tokens = max(sizes, key=lambda tokens: median(tried[str(tokens)]))
        decode = sizes[prefill_tokens]
        complete = stack.enter_context(ordinary(classifier, model, answer_tokens, n_gpu_layers))
        contestants: dict[str, Contestant] = {
            "prefill": decode,
            "alike": lambda: classify(texts, n_tokens),
            "prefill again": decode,
            "unlike": lambda: classify(*next(fresh)),
            "prefill once more": decode,
            "in batches": classify_in_batches,
            "ordinary": lambda: complete(few),
        }
        if server is not None:
            send = stack.enter_context(llama_server(server, model, classifier.card, answer_tokens, layers_on_gpu(n_gpu_layers)))
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
        prefill_tokens=prefill_tokens,
        prefill_tokens_per_s=median(found["prefill"]),
        tokens_per_s=median(found["alike"]),
        messages_per_s=median(found["messages"]),
        to_prefill=ratio(found, "alike", "prefill"),
        unlike_to_prefill=ratio(found, "unlike", "prefill again"),
        batches_to_prefill=ratio(found, "in batches", "prefill once more"),
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
def prefill(model: Path, options: EngineOptions, n_gpu_layers: int, tokens: int) -> Iterator[Contestant]:
    """llama.cpp's own prefill of one text of so many tokens, in one batch and with the engine's own settings.

    Raises:
        EngineError: llama.cpp makes no context or does not compute; too little memory, say.
    """
    loaded = load(model, n_gpu_layers=n_gpu_layers)
    params = context_params(loaded, options)
    params.n_ctx = params.n_batch = params.n_ubatch = tokens
    context = llama_cpp.llama_init_from_model(loaded.handle, params)
    if not context:
        loaded.close()
        raise EngineError(f"llama.cpp made no context of {tokens} tokens for {model}: too little memory?")
    source = random.Random(0)
    ids = (llama_cpp.llama_token * tokens)(*(source.randrange(1000, loaded.n_tokens) for _ in range(tokens)))
    batch = llama_cpp.llama_batch_get_one(ids, tokens)
    times = max(3, 256 // tokens)

    def decode() -> float:
        for _ in range(times):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
            if llama_cpp.llama_decode(context, batch) != 0:
                raise EngineError(f"llama.cpp did not compute {tokens} tokens")
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

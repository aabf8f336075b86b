"""llama.cpp's own server as a classifier: the same weights, prompt and grammar, with parallel slots."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from worker.classifier import ModelCard
from worker.classifier.cores import available_cores
from worker.classifier.grammar import gbnf
from worker.embedded_redis import end_process, free_port
from worker.errors import Fatal
from worker.worker_process import open_local

SLOTS = 16
_CELLS_PER_SLOT = 512
_STARTS_WITHIN_S = 60.0


@contextmanager
def llama_server(
    binary: Path, model: Path, card: ModelCard, answer_tokens: int, n_gpu_layers: int = 0
) -> Iterator[Callable[[Sequence[str]], float]]:
    """A running server; what it gives sends texts, as many at a time as there are slots, and returns how many.

    Args:
        answer_tokens: room for the longest answer and its end.

    Raises:
        Fatal: the server does not start.
    """
    port = free_port()
    command = [
        *(str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("--gpu-layers", str(n_gpu_layers if n_gpu_layers >= 0 else 999)),
        *("--parallel", str(SLOTS), "--ctx-size", str(SLOTS * _CELLS_PER_SLOT), "--threads", str(available_cores())),
        # The same texts come again each round: what the server keeps of old prompts in memory would answer them.
        *("--flash-attn", "on", "--no-webui", "--cache-ram", "0"),
    ]
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as error:
            raise Fatal(f"cannot start {binary} ({error}): --llama-server wants the llama-server of llama.cpp") from error
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log.fileno())
            with ThreadPoolExecutor(SLOTS) as clients:
                yield _sender(f"http://127.0.0.1:{port}/completion", card, answer_tokens, clients)
        finally:
            end_process(process, patience_s=10)


def _sender(url: str, card: ModelCard, answer_tokens: int, clients: ThreadPoolExecutor) -> Callable[[Sequence[str]], float]:
    grammar = gbnf(card.labels.codes)

    def ask(text: str) -> str:
        body = {
            "prompt": card.prompt.prefix + text + card.prompt.suffix,
            "grammar": grammar,
            "n_predict": answer_tokens,
            "temperature": 0.0,
            "cache_prompt": True,
        }
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with open_local(request, timeout=60) as reply:
            return str(json.loads(reply.read())["content"])

    def send(texts: Sequence[str]) -> float:
        answers = list(clients.map(ask, texts))
        strangers = sorted(set(answers) - set(card.labels.codes))
        if strangers:
            raise Fatal(f"llama-server answered {strangers[0]!r}, which is none of the labels' codes")
        return len(answers)

    return send


def _wait(url: str, process: subprocess.Popen[bytes], log: int) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with open_local(url, timeout=2) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    with open(log, "rb", closefd=False) as file:
        file.seek(0)
        said = file.read().decode(errors="replace").strip().splitlines()
    raise Fatal(f"llama-server did not start: {said[-1] if said else 'it said nothing'}")

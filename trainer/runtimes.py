"""The same model for other programs that run GGUFs: what they must know of prompt and answers, in their own formats.

`Modelfile` is for Ollama (`ollama create NAME -f Modelfile`), `labels.gbnf` for llama.cpp (`llama-cli --grammar-file`). Both answer
with a label's code; `pointsman.json` tells whose it is. They know no calibration, so no offset of out of scope, and take control
tokens in a query for such; Pointsman's own engine does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.files import write_whole
from worker.classifier.grammar import gbnf

MODELFILE, GRAMMAR = "Modelfile", "labels.gbnf"


def modelfile(metadata: Mapping[str, Any], model: Path) -> str:
    """An Ollama Modelfile: always the likeliest tokens; one where the model answers with codes, else until it ends its answer.

    Args:
        model: the GGUF, relative to where the Modelfile lies.
    """
    prompt = metadata["prompt"]
    names = metadata["training"].get("recipe", {}).get("answers") == "names"
    return "\n".join(
        (
            f"FROM {model}",
            f'TEMPLATE """{prompt["prefix"]}{{{{ .Prompt }}}}{prompt["suffix"]}"""',
            "PARAMETER temperature 0",
            *(() if names else ("PARAMETER num_predict 1",)),
            "",
        )
    )


def write(directory: Path, metadata: Mapping[str, Any], model: Path) -> None:
    """Write both into a model's directory, each atomically."""
    files = {
        MODELFILE: modelfile(metadata, Path(os.path.relpath(model, directory))),
        GRAMMAR: gbnf([label["code"] for label in metadata["labels"]["labels"]]),
    }
    for name, text in files.items():
        write_whole(directory / name, text.encode())

"""A base model's own chat template, as what stands before and after a query."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trainer.base import BaseError
from trainer.fast_gguf import gguf
from trainer.recipe import thinks_on
from worker.classifier.prompt import Prompt

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a base that has no template of its own."""
_QUERY = "THE-QUERY"


def chat_prompt(template: str, task: str) -> Prompt:
    """What a chat template puts around a user's query, with `task` as the system's message.

    A thinking model never thinks: the template is told so (`enable_thinking`), and a block of thoughts that it opens all the same
    is closed here. The token that begins a text is left to the tokenizer.

    Raises:
        BaseError: the template cannot be rendered, or does not show the query once.
    """
    try:
        text = (
            _environment()
            .from_string(template)
            .render(
                messages=[{"role": "system", "content": task}, {"role": "user", "content": _QUERY}],
                add_generation_prompt=True,
                enable_thinking=False,
                bos_token="",
                eos_token="",
            )
        )
    except TemplateError as error:
        raise BaseError(f"the base model's chat template cannot be rendered: {error}") from error
    if text.count(_QUERY) != 1:
        raise BaseError(f"the base model's chat template shows a query {text.count(_QUERY)} times instead of once")
    prefix, suffix = text.split(_QUERY)
    return Prompt(prefix, suffix + ("\n</think>\n\n" if thinks_on(suffix) else ""))


def template_of(base: Path) -> str:
    """The chat template in a GGUF; ChatML if it has none."""
    field = gguf.GGUFReader(base).get_field(gguf.Keys.Tokenizer.CHAT_TEMPLATE)
    return CHATML if field is None else str(field.contents())


def _environment() -> ImmutableSandboxedEnvironment:
    """The template is a stranger's program; it is run as transformers runs such."""

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    return environment

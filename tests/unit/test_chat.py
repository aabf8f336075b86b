"""Chat templates around a query, and that thinking models are not let think. Qwen3's template and vocabulary are the real ones."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import tiktoken
from transformers.utils.chat_template_utils import render_jinja_template

from tests import qwen
from trainer.base import BaseError
from trainer.chat import CHATML, chat_prompt
from trainer.codes import choose_codes
from trainer.recipe import load_recipe, thinks_on

RECIPE = load_recipe(Path(__file__).parents[2] / "trainer/recipes/household-qwen3-0.6b.yaml")
QWEN3_TEMPLATE = (Path(__file__).parent / "qwen3_chat_template.jinja").read_text(encoding="utf-8")
"""Qwen3's own (Apache-2.0)."""
OPENS_ALWAYS = CHATML.replace("assistant\n", "assistant\n<think>\n")
"""As the templates of models that always think do."""
NO_THOUGHTS = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def qwen3() -> tiktoken.Encoding:
    lines = qwen.RANKS.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    special = {token: len(ranks) + number for number, token in enumerate(qwen.SPECIAL)}
    return tiktoken.Encoding("qwen3", pat_str=qwen.SPLIT, mergeable_ranks=ranks, special_tokens=special)


def rendered(*messages: dict[str, str]) -> str:
    """By transformers, told not to think."""
    (text,), _ = render_jinja_template([list(messages)], chat_template=QWEN3_TEMPLATE, add_generation_prompt=True, enable_thinking=False)
    return str(text)


def test_the_query_stands_where_the_template_puts_it() -> None:
    prompt = chat_prompt(CHATML, "Sort.")
    assert prompt.prefix == "<|im_start|>system\nSort.<|im_end|>\n<|im_start|>user\n"
    assert prompt.suffix == "<|im_end|>\n<|im_start|>assistant\n"


def test_qwen3s_template_closes_the_thoughts_itself() -> None:
    prompt = chat_prompt(QWEN3_TEMPLATE, "Sort.")
    assert prompt.suffix.endswith(f"assistant\n{NO_THOUGHTS}")
    expected = rendered({"role": "system", "content": "Sort."}, {"role": "user", "content": "my pump hums"})
    assert prompt.prefix + "my pump hums" + prompt.suffix == expected


def test_thoughts_that_a_template_opens_all_the_same_are_closed() -> None:
    assert chat_prompt(OPENS_ALWAYS, "Sort.").suffix.endswith(f"assistant\n{NO_THOUGHTS}")


def test_the_qwen3_recipe_asks_as_qwen3s_template_does_and_leaves_no_room_for_thoughts(qwen3: tiktoken.Encoding) -> None:
    assert RECIPE.prompt.prefix + "my pump hums" + RECIPE.prompt.suffix == rendered({"role": "user", "content": "my pump hums"})
    tokens = qwen3.encode(RECIPE.prompt.suffix, allowed_special="all")
    assert [qwen3.decode([token]) for token in tokens[-4:]] == ["<think>", "\n\n", "</think>", "\n\n"]
    assert len(tokens) == 9, "computed anew for each query"


def test_no_code_of_the_qwen3_recipe_is_a_thinking_token(qwen3: tiktoken.Encoding) -> None:
    codes = choose_codes(list(RECIPE.labels), qwen3.encode_ordinary, RECIPE.codes)
    ids = [qwen3.encode_ordinary(code) for code in codes]
    assert all(len(tokens) == 1 for tokens in ids), "one forward pass answers"
    assert max(token for (token,) in ids) < qwen3.encode_single_token("<|endoftext|>"), "all are plain text"


@pytest.mark.parametrize(("text", "open_"), [("", False), ("<think>", True), (NO_THOUGHTS, False), (f"{NO_THOUGHTS}<think>", True)])
def test_whether_a_text_ends_within_thoughts(text: str, open_: bool) -> None:
    assert thinks_on(text) is open_


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ raise_exception('no system') }}", "cannot be rendered: no system"),
        ("{% for", "cannot be rendered"),
        ("{{ messages[0].content }}", "shows a query 0 times"),
        ("{{ messages.clear() }}", "cannot be rendered"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template: str, what: str) -> None:
    with pytest.raises(BaseError, match=what):
        chat_prompt(template, "Sort.")

"""Chat templates around a query, and that thinking models are not let think. Qwen3's template and vocabulary are the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests.tiny import QWEN3_TEMPLATE, QWEN_SPECIAL, write_qwen_tokenizer
from trainer.base import BaseError
from trainer.chat import CHATML, chat_prompt
from trainer.recipe import load_recipe, thinks_on
from worker.classifier.labels import choose_codes

RECIPE = load_recipe(Path(__file__).parents[2] / "trainer/recipes/household-qwen3-0.6b.yaml")
OPENS_ALWAYS = CHATML.replace("assistant\n", "assistant\n<think>\n")
"""As the templates of models that always think do."""
NO_THOUGHTS = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> transformers.PreTrainedTokenizerBase:
    directory = tmp_path_factory.mktemp("qwen3")
    write_qwen_tokenizer(directory)
    return transformers.AutoTokenizer.from_pretrained(directory)


def test_the_query_stands_where_the_template_puts_it() -> None:
    prompt = chat_prompt(CHATML, "Sort.")
    assert prompt.prefix == "<|im_start|>system\nSort.<|im_end|>\n<|im_start|>user\n"
    assert prompt.suffix == "<|im_end|>\n<|im_start|>assistant\n"


def test_qwen3s_template_closes_the_thoughts_itself(qwen3: transformers.PreTrainedTokenizerBase) -> None:
    prompt = chat_prompt(QWEN3_TEMPLATE, "Sort.")
    assert prompt.suffix.endswith(f"assistant\n{NO_THOUGHTS}")
    messages = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "my pump hums"}]
    rendered = qwen3.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False, tokenize=False)
    assert prompt.prefix + "my pump hums" + prompt.suffix == rendered


def test_thoughts_that_a_template_opens_all_the_same_are_closed() -> None:
    assert chat_prompt(OPENS_ALWAYS, "Sort.").suffix.endswith(f"assistant\n{NO_THOUGHTS}")


def test_the_qwen3_recipe_asks_as_qwen3s_template_does_and_leaves_no_room_for_thoughts(qwen3: transformers.PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "my pump hums"}]
    rendered = qwen3.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False, tokenize=False)
    assert RECIPE.prompt.prefix + "my pump hums" + RECIPE.prompt.suffix == rendered
    pieces = qwen3.tokenize(RECIPE.prompt.suffix)
    assert pieces == ["<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ", "<think>", "ĊĊ", "</think>", "ĊĊ"]


def test_no_code_of_the_qwen3_recipe_is_a_thinking_token(qwen3: transformers.PreTrainedTokenizerBase) -> None:
    codes = choose_codes(list(RECIPE.labels), lambda text: qwen3.encode(text, add_special_tokens=False), RECIPE.codes)
    ids = [qwen3.encode(code, add_special_tokens=False) for code in codes]
    assert all(len(tokens) == 1 for tokens in ids), "one forward pass answers"
    assert not {token for (token,) in ids} & set(qwen3.convert_tokens_to_ids(list(QWEN_SPECIAL)))


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

"""Tiny random networks of each architecture, saved as checkpoints that llama.cpp's own converter takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE = 64, 4, 2, 16
SHAPE = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_SIZE,
    "max_position_embeddings": 512,
}


def checkpoint(architecture: str, directory: Path, write_tokenizer: Callable[[Path], int]) -> Path:
    """A checkpoint in `directory`: config, tokenizer and random weights that bfloat16 can hold exactly.

    Args:
        write_tokenizer: one of those below.
    """
    size = write_tokenizer(directory)
    configs: dict[str, Any] = {
        "llama": lambda: transformers.LlamaConfig(vocab_size=size, tie_word_embeddings=False, **SHAPE),
        "qwen2": lambda: transformers.Qwen2Config(vocab_size=size, tie_word_embeddings=True, **SHAPE),
        "qwen3": lambda: transformers.Qwen3Config(vocab_size=size, tie_word_embeddings=True, **SHAPE),
        "gemma3": lambda: transformers.Gemma3TextConfig(vocab_size=size, query_pre_attn_scalar=HEAD_SIZE, sliding_window=256, **SHAPE),
    }
    transformers.set_seed(1)
    network = transformers.AutoModelForCausalLM.from_config(configs[architecture](), dtype=torch.bfloat16)
    with torch.no_grad():  # norms and biases begin as ones and zeros, which would hide a mistake in them
        for weights in network.parameters():
            if weights.dim() == 1:
                weights.add_(torch.randn_like(weights) * 0.3)
            else:
                weights.mul_(5)
    network.save_pretrained(directory)
    return directory


def write_small_sentencepiece(directory: Path) -> int:
    """A stand-in for any vocabulary: 340 pieces learnt from a few words; its size."""
    import sentencepiece  # only llama.cpp's converter needs it

    directory.mkdir(parents=True, exist_ok=True)
    words = [
        f"{a} {b}" for a in ("the pool pump", "a fence post", "my car", "one light") for b in ("hums", "is broken", "drips", "A B C D")
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 4),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",  # with which each letter by itself and each after a blank is a piece
        vocab_size=340,
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}))
    return int(sentencepiece.SentencePieceProcessor(str(directory / "tokenizer.model")).vocab_size())


def write_qwens_own(directory: Path) -> int:
    """Qwen3's vocabulary, all of it; the rows of its embedding."""
    from tests import qwen  # for which a package is needed that only tests have

    directory.mkdir(parents=True, exist_ok=True)
    converter = TikTokenConverter(str(qwen.RANKS), qwen.SPLIT, extra_special_tokens=list(qwen.SPECIAL))
    converter.converted().save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return qwen.SIZE


def write_small_bpe(directory: Path) -> int:
    """A stand-in for Qwen's vocabulary: single bytes alone; its size. llama.cpp's converter does not take it."""
    vocabulary = {letter: number for number, letter in enumerate(_printable_bytes())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


def _printable_bytes() -> list[str]:
    """Byte-level BPE's letter for each byte, as GPT-2 chose them."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]

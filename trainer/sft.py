"""Supervised fine-tuning of a LoRA adapter with TRL, on the prompt that the worker serves.

The base GGUF is de-quantised into torch; token ids come from the worker's own tokenizer, so what is trained
is what is served; the loss is on the answer alone: on its code or, to compare with, TRL's own on the label's name. The result
is written as a llama.cpp LoRA adapter (GGUF), which `trainer.build` merges with the base.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from transformers import AutoTokenizer, TrainerCallback

from trainer.network import answer_log_probabilities, from_gguf
from trainer.recipe import Recipe

OTHER_TOKENS_WEIGHT = 0.2
"""How much of the loss is the probability that the model gives to tokens that are no code."""
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True)
class TokenExample:
    """Token ids of prefix, query and suffix, and those of the right answer: one where it is a code."""

    prompt_ids: list[int]
    answer_ids: list[int]


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What happened: the loss per logged step, steps, and library versions."""

    losses: list[tuple[int, float]]
    eval_losses: list[tuple[int, float]]
    steps: int
    versions: dict[str, str]
    validation_log_probabilities: npt.NDArray[np.float64]
    """What the trained network itself answers to the validation split, shape (examples, codes)."""


Progress = Callable[[int, int, float | None], None]
"""Called after each step with (step, total steps, latest loss)."""


def train_adapter(
    recipe: Recipe,
    base: Path,
    train: Sequence[TokenExample],
    validation: Sequence[TokenExample],
    answer_ids: Sequence[Sequence[int]],
    output: Path,
    progress: Progress,
) -> TrainingLog:
    """Fine-tune on `train` and write the adapter to `output` (GGUF).

    The checkpoint kept is the last one: with a cosine schedule to zero it is the most settled.
    """
    settings = recipe.training
    transformers.set_seed(settings.seed)
    on_gpu = torch.cuda.is_available()
    model = from_gguf(base, attn_implementation="eager")
    _forget_quantisation(model)
    tokenizer = AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    kind, end = trl.SFTTrainer, [model.config.eos_token_id]
    if recipe.answers == "codes":
        code_ids = [code for (code,) in answer_ids]
        kind = partial(_CodeTrainer, code_ids=code_ids, smoothing=settings.label_smoothing, token_dropout=settings.token_dropout)
        end = []
    trainer = kind(
        model=model,
        processing_class=tokenizer,
        train_dataset=_dataset(train, end),
        eval_dataset=_dataset(validation, end),
        peft_config=LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=TARGETS,
            task_type="CAUSAL_LM",
        ),
        args=trl.SFTConfig(
            output_dir=str(output.parent),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            prediction_loss_only=True,
            train_sampling_strategy="group_by_length",
            completion_only_loss=True,
            max_length=None,
            packing=False,
            bf16=True,
            use_cpu=not on_gpu,
            gradient_checkpointing=False,
            dataloader_pin_memory=on_gpu,
            seed=settings.seed,
            data_seed=settings.seed,
            eval_strategy="epoch",
            save_strategy="no",
            logging_steps=10,
            report_to="none",
            disable_tqdm=True,
        ),
        callbacks=[_Report(progress)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    write_adapter(trainer.model, recipe, output)
    trainer.model.eval()
    with torch.autocast(trainer.model.device.type, torch.bfloat16):
        answers = answer_log_probabilities(trainer.model.get_base_model(), [example.prompt_ids for example in validation], answer_ids)
    history = trainer.state.log_history
    return TrainingLog(
        losses=[(row["step"], row["loss"]) for row in history if "loss" in row],
        eval_losses=[(row["step"], row["eval_loss"]) for row in history if "eval_loss" in row],
        steps=trainer.state.global_step,
        versions={module.__name__: module.__version__ for module in (torch, transformers, trl)},
        validation_log_probabilities=answers,
    )


def _forget_quantisation(model: Any) -> None:
    """The weights were de-quantised into plain torch tensors; transformers still refuses to train them."""
    model.is_quantized = False
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)


def _dataset(examples: Sequence[TokenExample], end: list[int]) -> Dataset:
    """`end` follows every answer."""
    return Dataset.from_dict(
        {
            "input_ids": [[*example.prompt_ids, *example.answer_ids, *end] for example in examples],
            "completion_mask": [[0] * len(example.prompt_ids) + [1] * len(example.answer_ids + end) for example in examples],
        }
    )


class _CodeTrainer(trl.SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose loss is normalised over the codes, at the one position where the code is answered.

    That is the distribution which constrained decoding serves, and it is learnt several times faster than that
    over the whole vocabulary. A second, smaller term draws the probability of all other tokens to the codes:
    -log of the codes' share. Without it llama.cpp's own grammar sampler, which also allows a code in pieces,
    may prefer a piece of a wrong one.
    """

    def __init__(self, *, code_ids: Sequence[int], smoothing: float, token_dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._code_ids = torch.tensor(code_ids)
        self._smoothing = smoothing
        self._token_dropout = token_dropout

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        causal = self.accelerator.unwrap_model(model).get_base_model()
        rows, answers = (inputs["labels"] != -100).nonzero(as_tuple=True)
        mask = inputs["attention_mask"]
        if model.training and self._token_dropout:
            hidden_tokens = torch.rand(mask.shape, device=mask.device) < self._token_dropout
            columns = torch.arange(mask.shape[1], device=mask.device)
            within = (columns > 0) & (columns < answers[:, None] - 1)  # neither the first token, the attention's sink, nor the suffix
            mask = mask * ~(hidden_tokens & within)
        hidden = causal.model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
        codes = self._code_ids.to(hidden.device)
        logits = causal.lm_head(hidden[rows, answers - 1]).float()
        truth = (inputs["labels"][rows, answers][:, None] == codes).int().argmax(dim=1)
        loss = torch.nn.functional.cross_entropy(logits[:, codes], truth, label_smoothing=self._smoothing)
        loss = loss + OTHER_TOKENS_WEIGHT * (logits.logsumexp(dim=1) - logits[:, codes].logsumexp(dim=1)).mean()
        return (loss, {}) if return_outputs else loss


class _Report(TrainerCallback):  # type: ignore[misc]
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._loss: float | None = None

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self._progress(state.global_step, state.max_steps, self._loss)


def write_adapter(model: Any, recipe: Recipe, output: Path) -> None:
    """Write a PEFT model's LoRA weights as a llama.cpp adapter, in half precision.

    llama.cpp stores the query and key projections of the llama architecture with their rotary halves
    interleaved; the rows of B are permuted the same way (llama.cpp's LlamaModel.permute).
    """
    config = model.config
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA}[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    partial = output.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(recipe.training.lora_alpha))
    for key, tensor in sorted(get_peft_model_state_dict(model).items()):
        module, kind = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        name = names.get_name(module)
        if name is None:
            raise ValueError(f"llama.cpp has no name for the module {module}")
        values = tensor.detach().to(torch.float32).cpu().numpy()
        if kind == "B" and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            values = _interleave_rotary_halves(values, heads)
        writer.add_tensor(f"{name}.weight.lora_{kind.lower()}", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, output)


def _interleave_rotary_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)

"""Supervised fine-tuning of a LoRA adapter with TRL, on the prompt that the worker serves.

The base comes into torch as `pretrained` says; token ids come from the worker's own tokenizer, so what is trained
is what is served; the loss is on the answer code alone. The result is written as a llama.cpp LoRA adapter
(GGUF), which `trainer.build` merges with the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
import trl
from datasets import Dataset
from transformers import TrainerCallback

from trainer import pretrained, processes
from trainer.adapter import write_adapter
from trainer.network import log_probabilities
from trainer.recipe import Recipe

OTHER_TOKENS_WEIGHT = 0.2
"""How much of the loss is the probability that the model gives to tokens that are no code."""


@dataclass(frozen=True, slots=True)
class TokenExample:
    """Token ids of prefix, query and suffix, and the id of the right code."""

    prompt_ids: list[int]
    code_id: int


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
    code_ids: Sequence[int],
    output: Path,
    progress: Progress,
) -> TrainingLog:
    """Fine-tune on `train` and write the adapter to `output` (GGUF). Of several processes only the first writes.

    The checkpoint kept is the last one: with a cosine schedule to zero it is the most settled.
    """
    settings = recipe.training
    transformers.set_seed(settings.seed)
    on_gpu = torch.cuda.is_available()
    model, tokenizer = pretrained.with_adapter(base, recipe.base.checkpoint(), settings)

    trainer = _CodeTrainer(
        code_ids=code_ids,
        smoothing=settings.label_smoothing,
        token_dropout=settings.token_dropout,
        model=model,
        processing_class=tokenizer,
        train_dataset=_dataset(train),
        eval_dataset=_dataset(validation),
        args=trl.SFTConfig(
            output_dir=str(output.parent),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=max(1, settings.batch_size // processes.count()),
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
    if processes.is_first():
        write_adapter(trainer.model, output)
    trainer.model.eval()
    with torch.autocast(trainer.model.device.type, torch.bfloat16):
        answers = log_probabilities(trainer.model.get_base_model(), [example.prompt_ids for example in validation], code_ids)
    history = trainer.state.log_history
    return TrainingLog(
        losses=[(row["step"], row["loss"]) for row in history if "loss" in row],
        eval_losses=[(row["step"], row["eval_loss"]) for row in history if "eval_loss" in row],
        steps=trainer.state.global_step,
        versions={module.__name__: module.__version__ for module in (torch, transformers, trl)},
        validation_log_probabilities=answers,
    )


def _dataset(examples: Sequence[TokenExample]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [[*example.prompt_ids, example.code_id] for example in examples],
            "completion_mask": [[0] * len(example.prompt_ids) + [1] for example in examples],
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

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        """The loss goes around the wrapper that averages gradients over several processes, so that is done here."""
        loss = super().training_step(model, inputs, *rest)
        if processes.count() > 1:
            for weights in model.parameters():
                if weights.grad is not None:
                    weights.grad = self.accelerator.reduce(weights.grad, reduction="mean")
        return loss

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

"""Supervised fine-tuning of a LoRA adapter with TRL, on the prompt that the worker serves.

The base comes into torch as `pretrained` says; token ids come from the worker's own tokenizer, so what is trained
is what is served; the loss is on the answer alone: on its code or, to compare with, TRL's own on the label's name. Of the weights that
`selection` looks at, those that do best on the validation split are written as a llama.cpp LoRA adapter (GGUF), which `trainer.build`
merges with the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import peft
import torch
import transformers
import trl
from peft import set_peft_model_state_dict
from transformers.trainer_pt_utils import LengthGroupedSampler

from trainer import adapter, checkpoints, pretrained, processes
from trainer.build import Adapter
from trainer.pretrained import precision
from trainer.recipe import Recipe, RecipeError, Training
from trainer.selection import Evaluation
from trainer.terminal import Progress, peak_memory_gb
from trainer.watch import STATE_FILE, TokenExample, Watch

OTHER_TOKENS_WEIGHT = 0.2
"""How much of the loss is the probability that the model gives to tokens that are no code."""
TOKENS_AT_ONCE = 640
"""On a CPU a batch goes through the network in even pieces of at most so many: what is kept for the way back is most of the memory."""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What happened."""

    losses: list[tuple[int, float]]
    """(step, mean loss of a few steps)."""
    evaluations: list[Evaluation]
    candidates: dict[str, Evaluation]
    """What could have been kept: `last`, `best`, `averaged`."""
    taken: str
    """Which of them was."""
    steps: int
    minutes: float
    """Of all processes that had a part in it."""
    peak_memory_gb: float
    """Of the last of them."""
    versions: dict[str, str]
    precision: str
    validation_log_probabilities: npt.NDArray[np.float64]
    """What the trained network itself answers to the validation split, shape (examples, codes)."""

    def facts(self) -> dict[str, Any]:
        """All but the answers, as JSON can hold it."""
        found = asdict(self)
        del found["validation_log_probabilities"]
        return found

    @classmethod
    def of(cls, facts: dict[str, Any], answers: npt.NDArray[np.float64]) -> TrainingLog:
        """The other way of `facts`."""
        evaluations = [Evaluation(**row) for row in facts["evaluations"]]
        candidates = {name: Evaluation(**row) for name, row in facts["candidates"].items()}
        known = {"evaluations": evaluations, "candidates": candidates, "validation_log_probabilities": answers}
        return cls(**facts | known)


def software() -> dict[str, str]:
    """What training depends on besides the recipe, the data and the base: library versions, this code, how numbers are held."""
    code = b"".join(
        Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("sft", "watch", "selection", "network", "pretrained", "adapter")
    )
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl, peft)}
    return versions | {"code": hashlib.sha256(code).hexdigest(), "precision": str(precision())}


def train_adapter(
    recipe: Recipe,
    base: Path,
    train: Sequence[TokenExample],
    validation: Sequence[TokenExample],
    answer_ids: Sequence[Sequence[int]],
    output: Path,
    progress: Progress,
    say: Callable[[str], None] = lambda _: None,
    start: Adapter | None = None,
) -> TrainingLog:
    """Fine-tune on `train` and write the adapter to `output` (GGUF). Of several processes only the first writes.

    One process alone goes on from the newest checkpoint in the directory `checkpoints` beside `output`, if there is one.

    Args:
        start: the adapter to begin with, instead of one that changes nothing.

    Raises:
        RecipeError: `start` does not fit the recipe or the base, or batches cannot be shared out among the processes.
    """
    settings = recipe.schedule()
    if settings.batch_size % processes.count():
        raise RecipeError(f"training.batch_size ({settings.batch_size}) cannot be shared out evenly among {processes.count()} processes")
    progress("loading the base", 0, None)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(settings.seed)
    on_gpu, dtype = torch.cuda.is_available(), precision()
    model, tokenizer = pretrained.with_adapter(base, recipe.base.checkpoint(), settings)

    directory = output.parent / "checkpoints"
    watch = Watch(directory, settings, validation, answer_ids, -(-len(train) // settings.batch_size), progress, say)
    by_code = recipe.answers == "codes"
    args = trl.SFTConfig(
        output_dir=str(output.parent),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // processes.count(),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        completion_only_loss=True,
        max_length=None,
        packing=False,
        bf16=dtype == torch.bfloat16,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,
        dataloader_pin_memory=on_gpu,
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
    )
    if processes.count() == 1:
        args._n_gpu = min(1, args.n_gpu)  # else transformers would multiply the batch by the machine's GPUs
    trainer = _AnswerTrainer(
        code_ids=[code for (code,) in answer_ids] if by_code else None,
        settings=settings,
        around=train[0].around,
        watch=watch,
        model=model,
        processing_class=tokenizer,
        train_dataset=_dataset(train, [] if by_code else [model.config.eos_token_id]),
        args=args,
        callbacks=[watch],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if start is not None:
        weights = adapter.peft_weights(start, trainer.model.config)
        set_peft_model_state_dict(trainer.model, {name: torch.from_numpy(factor) for name, factor in weights.items()})

    checkpoint = checkpoints.newest(directory) if processes.count() == 1 else None
    if checkpoint is not None:
        watch.recall(checkpoint)
        say(f"resumed   at step {checkpoint.name}, from {checkpoint}")
    elif start is not None:
        watch.evaluate(trainer.model, 0)
    if checkpoint is not None and watch.ended:
        trainer.state = transformers.TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    else:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    candidates, taken = watch.choose(trainer.model)
    set_peft_model_state_dict(trainer.model, candidates[taken].weights)
    if processes.is_first():
        adapter.write_adapter(trainer.model, output)
    return TrainingLog(
        losses=[(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row],
        evaluations=watch.evaluations,
        candidates={name: candidate.evaluation for name, candidate in candidates.items()},
        taken=taken,
        steps=trainer.state.global_step,
        minutes=watch.seconds / 60,
        peak_memory_gb=peak_memory_gb(),
        versions={module.__name__: module.__version__ for module in (torch, transformers, trl, peft)}
        | ({"unsloth": version("unsloth")} if pretrained.uses_unsloth() else {}),
        precision=str(dtype).removeprefix("torch."),
        validation_log_probabilities=candidates[taken].answers,
    )


def _dataset(examples: Sequence[TokenExample], end: list[int]) -> datasets.Dataset:
    """`end` follows every answer."""
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[*example.prompt_ids, *example.answer_ids, *end] for example in examples],
            "completion_mask": [[0] * len(example.prompt_ids) + [1] * len(example.answer_ids + end) for example in examples],
        }
    )


class _ByLength(LengthGroupedSampler):  # type: ignore[misc]
    """Batches of like lengths, in an order that depends on seed and epoch alone: a resumed epoch has the same."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed, self._epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self._seed + self._epoch())
        return iter(super().__iter__())


class _AnswerTrainer(trl.SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose loss is normalised over the codes, at the one position where a code is answered; for names TRL's own.

    The first is the distribution which constrained decoding serves, and it is learnt several times faster than that
    over the whole vocabulary. A second, smaller term draws the probability of all other tokens to the codes:
    -log of the codes' share. Without it llama.cpp's own grammar sampler, which also allows a code in pieces,
    may prefer a piece of a wrong one.
    """

    def __init__(self, *, code_ids: Sequence[int] | None, settings: Training, around: tuple[int, int], watch: Watch, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._code_ids = None if code_ids is None else torch.tensor(code_ids)
        self._settings = settings
        self._around = around
        self._watch = watch

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> _ByLength:
        lengths = [len(ids) for ids in (train_dataset or self.train_dataset)["input_ids"]]
        steps_per_epoch = -(-len(lengths) // self._settings.batch_size)
        return _ByLength(self._settings.batch_size, lengths, self._settings.seed, lambda: int(self.state.global_step) // steps_per_epoch)

    def training_step(self, model: Any, inputs: dict[str, Any], *_: Any) -> Any:
        """Forward and backward in pieces of the batch; the gradient is that of the whole."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        rows, columns = inputs["input_ids"].shape
        pieces = 1 if torch.cuda.is_available() else -(-rows // max(1, TOKENS_AT_ONCE // columns))
        at_once = -(-rows // pieces)
        answered = (inputs["labels"] != -100).sum()
        loss = torch.zeros((), device=self.args.device)
        for start in range(0, rows, at_once):
            piece = {name: tensor[start : start + at_once] for name, tensor in inputs.items()}
            with self.compute_loss_context_manager():
                share = self.compute_loss(model, piece) * ((piece["labels"] != -100).sum() / answered)
            self.accelerator.backward(share)
            loss += share.detach()
        if processes.count() > 1:  # the loss goes around the wrapper that averages gradients over several processes
            for weights in model.parameters():
                if weights.grad is not None:
                    weights.grad = self.accelerator.reduce(weights.grad, reduction="mean")
        return loss

    def _save_checkpoint(self, *_: Any) -> None:
        if processes.count() > 1:
            return
        with checkpoints.writing(self._watch.directory, self.state.global_step) as partial:
            self.model.save_pretrained(partial, save_embedding_layers=False)
            self._save_optimizer_and_scheduler(str(partial))
            self._save_rng_state(str(partial))
            self.state.save_to_json(str(partial / STATE_FILE))
            self._watch.remember(partial)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        if self._code_ids is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs)
        causal = self.accelerator.unwrap_model(model).get_base_model()
        rows, answers = (inputs["labels"] != -100).nonzero(as_tuple=True)
        ids, mask = inputs["input_ids"][:, :-1], inputs["attention_mask"][:, :-1]  # nothing is asked of what follows the answer
        if model.training and self._settings.token_dropout:
            hidden_tokens = torch.rand(mask.shape, device=mask.device) < self._settings.token_dropout
            columns = torch.arange(mask.shape[1], device=mask.device)
            before, after = self._around
            within = (columns >= max(1, before)) & (columns < answers[:, None] - after)  # the first token is the attention's sink
            mask = mask * ~(hidden_tokens & within)
        hidden = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state
        codes = self._code_ids.to(hidden.device)
        logits = causal.lm_head(hidden[rows, answers - 1]).float()
        truth = (inputs["labels"][rows, answers][:, None] == codes).int().argmax(dim=1)
        loss = torch.nn.functional.cross_entropy(logits[:, codes], truth, label_smoothing=self._settings.label_smoothing)
        loss = loss + OTHER_TOKENS_WEIGHT * (logits.logsumexp(dim=1) - logits[:, codes].logsumexp(dim=1)).mean()
        return (loss, {}) if return_outputs else loss

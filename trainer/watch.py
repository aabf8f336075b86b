"""Watches over a training: answers the validation split, keeps the weights that may be chosen, asks for checkpoints, knows when to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import TrainerCallback

from trainer import selection
from trainer.network import answer_log_probabilities
from trainer.pretrained import precision
from trainer.recipe import Training
from trainer.selection import Evaluation, Snapshot
from trainer.terminal import Progress

CHECKPOINT_EVERY_S = 120.0
"""Besides one after each evaluation."""
STATE_FILE = "trainer_state.json"
"""Of transformers, in a checkpoint."""
_SEEN_FILE = "seen.pt"


@dataclass(frozen=True, slots=True)
class TokenExample:
    """Token ids of prefix, query and suffix, and those of the right answer: one where it is a code."""

    prompt_ids: list[int]
    answer_ids: list[int]
    around: tuple[int, int] = (1, 1)
    """How many of the first and of the last belong to prefix and suffix."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Looks at the weights at every evaluation and keeps those that may be chosen; asks for checkpoints; tells how far it is."""

    def __init__(
        self,
        directory: Path,
        settings: Training,
        validation: Sequence[TokenExample],
        answer_ids: Sequence[Sequence[int]],
        steps_per_epoch: int,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self.directory = directory
        self.evaluations: list[Evaluation] = []
        self._snapshots: list[Snapshot] = []
        self._settings, self._answer_ids, self._progress, self._say = settings, answer_ids, progress, say
        self._prompts = [example.prompt_ids for example in validation]
        self._truth = [list(answer_ids).index(example.answer_ids) for example in validation]
        self._steps = steps_per_epoch * settings.epochs
        self._every = -(-steps_per_epoch // settings.evaluations_per_epoch)
        self._loss: float | None = None
        self._began = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long training has taken so far, in all processes."""
        return time.monotonic() - self._began

    @property
    def ended(self) -> bool:
        return self._last_step >= self._steps or selection.has_stalled(self.evaluations, self._settings.patience)

    @property
    def _last_step(self) -> int:
        return self.evaluations[-1].step if self.evaluations else 0

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, _args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._progress("training" if self._loss is None else f"training, loss {self._loss:.3f}", state.global_step, state.max_steps)
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self.evaluate(model, state.global_step)
            control.should_save = True
            control.should_training_stop = control.should_training_stop or self.ended
        elif time.monotonic() - self._saved > CHECKPOINT_EVERY_S:
            control.should_save = True

    def evaluate(self, model: Any, step: int) -> None:
        """Look at the weights as they are."""
        snapshot = self._snapshot(model, step)
        self.evaluations.append(snapshot.evaluation)
        self._snapshots = selection.worth_keeping([*self._snapshots, snapshot], self._settings.average_last)
        self._say(f"validate  step {step}: loss {snapshot.evaluation.loss:.4f}, accuracy {snapshot.evaluation.accuracy:.4f}")

    def choose(self, model: Any) -> tuple[dict[str, Snapshot], str]:
        """What could be kept, and the name of what should be. The model is left with the mean, if there is one."""
        best = min(self._snapshots, key=lambda snapshot: snapshot.evaluation.loss)
        candidates = {"last": self._snapshots[-1], "best": best}
        few = self._snapshots[-self._settings.average_last :]
        if self._settings.average_last > 1 and len(few) > 1:
            set_peft_model_state_dict(model, selection.mean(few))
            candidates["averaged"] = self._snapshot(model, self._last_step)
        taken = selection.choose(candidates)
        told = ", ".join(f"{name} {each.evaluation.loss:.4f} ({each.evaluation.accuracy:.4f})" for name, each in candidates.items())
        self._say(f"weights   {taken}, by the loss on validation (accuracy): {told}")
        return candidates, taken

    def remember(self, directory: Path) -> None:
        """Into a checkpoint."""
        self._saved = time.monotonic()
        snapshots = [(astuple(each.evaluation), dict(each.weights), torch.from_numpy(each.answers)) for each in self._snapshots]
        torch.save((self.seconds, [astuple(each) for each in self.evaluations], snapshots), directory / _SEEN_FILE)

    def recall(self, checkpoint: Path) -> None:
        """The other way of `remember`."""
        seconds, evaluations, snapshots = torch.load(checkpoint / _SEEN_FILE, weights_only=True)
        self._began = time.monotonic() - seconds
        self.evaluations = [Evaluation(*row) for row in evaluations]
        self._snapshots = [Snapshot(Evaluation(*row), weights, answers.numpy()) for row, weights, answers in snapshots]

    def _snapshot(self, model: Any, step: int) -> Snapshot:
        training, total = model.training, len(self._prompts)
        model.eval()
        rounding = torch.autocast(model.device.type, torch.bfloat16) if precision() == torch.bfloat16 else nullcontext()
        with rounding:
            answers = answer_log_probabilities(
                model.get_base_model(), self._prompts, self._answer_ids, lambda done: self._progress("validating", done, total)
            )
        model.train(training)
        weights = {
            name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        }
        return Snapshot(selection.evaluate(step, answers, self._truth), weights, answers)

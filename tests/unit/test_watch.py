"""What a training has seen of its weights is kept in its checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from trainer.recipe import Training
from trainer.selection import Evaluation, Snapshot
from trainer.watch import TokenExample, Watch


def watch(directory: Path) -> Watch:
    return Watch(directory, Training(epochs=2), [TokenExample([1, 2], [3])], [[3], [4]], 10, lambda *_: None, lambda _: None)


def test_what_was_seen_of_the_weights_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    before, after = watch(tmp_path), watch(tmp_path)
    before.evaluations = [Evaluation(5, 0.75, 0.5), Evaluation(10, 0.25, 1.0)]
    before._snapshots = [Snapshot(before.evaluations[1], {"a": torch.tensor([0.1, 0.2])}, np.array([[-0.1, -2.4]]))]
    before._began -= 100
    before.remember(tmp_path)
    after.recall(tmp_path)
    assert after.evaluations == before.evaluations
    (snapshot,) = after._snapshots
    assert snapshot.evaluation == before.evaluations[1]
    assert torch.equal(snapshot.weights["a"], torch.tensor([0.1, 0.2]))
    np.testing.assert_array_equal(snapshot.answers, [[-0.1, -2.4]])
    assert 100 <= after.seconds < 200
    assert not after.ended

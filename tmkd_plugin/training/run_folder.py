"""The folder of one arm and seed: what it holds and when it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.files import (
    append_jsonl,
    json_line,
    remove_temporary_files,
    save_predictions,
    save_tensors,
    write_bytes,
)

STUDENT = "student.safetensors"
STUDENT_LAST = "student_last.safetensors"
HEADS = "heads.safetensors"
PREDICTIONS = "predictions.npz"
HISTORY = "history.jsonl"


class RunFolder:
    """Writes the files of a run; each is whole or absent at any moment.

    ``student.safetensors`` and ``heads.safetensors`` are of the best epoch so far and are there from the first epoch on;
    their metadata names the epoch. ``history.jsonl`` has a line for each finished epoch. ``student_last.safetensors`` and
    ``predictions.npz`` come at the end.

    Args:
        path: The folder; made if it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(self.path)

    def begin(self, arm: Arm) -> None:
        """Makes the files those of an arm that starts, or goes on from a checkpoint; an earlier run's are removed."""
        for name in (STUDENT, STUDENT_LAST, HEADS, PREDICTIONS, HISTORY):
            (self.path / name).unlink(missing_ok=True)
        if arm.best_epoch:
            self.save_best(arm.best_epoch, arm.best_student, arm.best_heads)
        if arm.history:
            write_bytes(self.path / HISTORY, b"".join(json_line(record) for record in arm.history))

    def save_epoch(self, record: Mapping[str, Any]) -> None:
        """Adds the record of an epoch to the history."""
        append_jsonl(self.path / HISTORY, record)

    def save_best(self, epoch: int, student: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Writes the weights of the best epoch so far."""
        save_tensors(self.path / STUDENT, student, epoch=epoch)
        save_tensors(self.path / HEADS, heads, epoch=epoch)

    def save_last(self, epoch: int, student: Mapping[str, Tensor]) -> None:
        """Writes the student's weights of the last epoch."""
        save_tensors(self.path / STUDENT_LAST, student, epoch=epoch)

    def save_predictions(self, index: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Writes what the best weights say of the test split."""
        save_predictions(self.path / PREDICTIONS, index, labels, logits)

"""The contract that every distiller keeps, and the base class of this package's own ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.losses import at_least_float32
from tmkd_plugin.model_output import ModelOutput, OutputReader
from tmkd_plugin.settings import Setting
from tmkd_plugin.teacher_free_state import TeacherFreeState


class Distiller(TeacherFreeState, ABC):
    """A student, a frozen teacher and the loss between them.

    ``forward(images, labels)`` returns a dict with ``"loss"`` (the scalar to back-propagate), ``"output"`` (the
    student's logits) and one entry for each term of the loss, already weighted, which add up to ``"loss"``.

    The teacher is frozen, stays in eval mode and is no part of ``state_dict``.

    Args:
        student: The network to train; images (B, 3, H, W) -> logits (B, K), or a nest of tensors that holds them.
        teacher: The frozen network, with the same K.
        input_size: Side in pixels of the images with which the networks are probed; see :class:`OutputReader`.

    Raises:
        InputError: A network can't be read, or their class counts differ.
    """

    has_logit_kl: bool = False
    """Whether the method has a KL divergence of logits of its own, so that an enhancer need not add one."""

    LOGIT_KL_WEIGHT: ClassVar[str | None] = None
    """Name of the setting that weighs that divergence: an instance with 0 there has none."""

    SETTINGS: ClassVar[dict[str, Setting]] = {}
    """Every hyper-parameter of the method: its default, where that comes from and what it means."""

    def __init__(self, student: nn.Module, teacher: nn.Module, *, input_size: int | None = None) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.student_reader = OutputReader(student, "student", input_size)
        self.teacher_reader = OutputReader(teacher, "teacher", input_size)
        if self.student_reader.num_classes != self.teacher_reader.num_classes:
            raise InputError(
                f"Student and teacher must tell the same classes apart, but the student has "
                f"{self.student_reader.num_classes} and the teacher {self.teacher_reader.num_classes}."
            )
        self.freeze_teacher()

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Computes the loss of a batch.

        Args:
            images: (B, 3, H, W), normalised as the networks expect them.
            labels: (B,) integers or (B, K) probabilities.
        """

    def read_student(self, images: Tensor) -> ModelOutput:
        """Runs the student once on (B, 3, H, W)."""
        return self.student_reader(images)

    def read_teacher(self, images: Tensor) -> ModelOutput:
        """Runs the teacher once on (B, 3, H, W), without gradient."""
        with torch.no_grad():
            return self.teacher_reader(images)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, K) logits, mean over the batch, in float32 at least.

    Args:
        logits: (B, K).
        labels: (B,) integers or (B, K) probabilities.
    """
    logits = at_least_float32(logits)
    return F.cross_entropy(logits, labels.to(logits.dtype) if labels.is_floating_point() else labels)


def total(output: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Builds what a distiller returns from the student's logits and its weighted terms."""
    return {"loss": torch.stack(list(terms.values())).sum(), "output": output, **terms}

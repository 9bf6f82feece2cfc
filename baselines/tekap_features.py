"""TeKAP's feature level: CRD with the teacher and with a noisy copy of its features (github.com/mdimtiazh/TeKAP)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tmkd_plugin.contrast_memory import ContrastBatch, ContrastMemory, contrast_memory
from tmkd_plugin.contrastive import LOWEST_TEMPERATURE, embed
from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import seeded_linear
from tmkd_plugin.losses import at_least_float32
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.settings import check_number

NOISE_STD = 0.1
"""Standard deviation of the noise before it is mixed in: the official code scales it by 0.1 twice."""


@dataclass(frozen=True)
class ContrastSettings:
    """The values of the contrast, after RepDistiller's CRD.

    Attributes:
        projection_width: Width of its space.
        negatives: K, the negatives of a sample.
        contrast_temperature: tau, at least 0.015.
        memory_momentum: Share of the old entry when the bank is updated.
        bank_limit: The most training samples for which the exact bank is kept.
        queue_size: Entries of the queue that stands in for it.

    Raises:
        InputError: A value is out of its range.
    """

    projection_width: int = 128
    negatives: int = 16384
    contrast_temperature: float = 0.07
    memory_momentum: float = 0.5
    bank_limit: int = 65536
    queue_size: int = 4096

    def __post_init__(self) -> None:
        check_number("contrast_temperature", self.contrast_temperature, at_least=LOWEST_TEMPERATURE)
        check_number("memory_momentum", self.memory_momentum, at_least=0, at_most=1)
        for name, least in (("projection_width", 1), ("negatives", 1), ("bank_limit", 0), ("queue_size", 2)):
            check_number(name, getattr(self, name), at_least=least, whole=True)


class TeKAPFeatures(nn.Module):
    """Two contrasts of the student's embedding, with the teacher's and with a noisy teacher's.

    ``(S1 + T1) + (S1 + T2)``, as in the official ``crd/criterion.py``: the student side of the first contrast counts twice,
    that of the second is not used, and the second one meets the memory that the first has updated.

    Args:
        student_width: Width of the student's pooled features.
        teacher_width: Width of the teacher's.
        settings: The values of the contrast.
        noise_mix: Share of the noise in the noisy features.
        seed: Initialisation is a function of it.
    """

    memory: ContrastMemory

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        settings: ContrastSettings,
        *,
        noise_mix: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        width = settings.projection_width
        self.student_projection = seeded_linear(student_width, width, seed, "TeKAP student projection")
        self.teacher_projection = seeded_linear(teacher_width, width, seed, "TeKAP teacher projection")
        self.memory = contrast_memory(settings, seed)
        self.settings, self.seed = settings, seed
        self.noise_mix = noise_mix

    def know_samples(self, sample_labels: Tensor) -> None:
        """Takes CRD's own memory bank, whose entries are the training samples; before the first step.

        Args:
            sample_labels: (ids,) int64 classes by sample id, -1 for an id that is not trained on.
        """
        memory = contrast_memory(self.settings, self.seed, sample_labels)
        self.memory = memory.to(self.memory.student).train(self.training)

    def forward(
        self, student_features: Tensor, teacher_features: Tensor, batch: ContrastBatch, noise: Tensor
    ) -> Tensor:
        """Returns the loss, a scalar; in training mode the memory is updated, twice.

        Args:
            student_features: (B, D_s), pooled.
            teacher_features: (B, D_t), pooled; no gradient goes there.
            batch: Which samples these are, and their negatives; see :meth:`ContrastMemory.begin`.
            noise: (B, D_t), drawn from N(0, 1).

        Raises:
            InputError: The noise has another shape than the teacher's features.
        """
        if noise.shape != teacher_features.shape:
            raise InputError(
                f"TeKAP's feature noise must be {tuple(teacher_features.shape)} as the teacher's features, but is "
                f"{tuple(noise.shape)}."
            )
        clean = at_least_float32(teacher_features.detach())
        noisy = (1 - self.noise_mix) * clean + self.noise_mix * NOISE_STD * noise.to(clean)
        student = embed(self.student_projection, student_features)
        teacher, augmented = embed(self.teacher_projection, clean), embed(self.teacher_projection, noisy)
        student_side, teacher_side = self.memory.sides(student, teacher, batch)
        self._update(student, teacher, batch)
        _, augmented_side = self.memory.sides(student, augmented, batch)
        self._update(student, augmented, batch)
        return 2 * student_side + teacher_side + augmented_side

    def draw(
        self, labels: Tensor, ids: Tensor | None, teacher_features: Tensor, seed: int, step: int
    ) -> tuple[ContrastBatch, Tensor]:
        """Draws the negatives and the noise of a step, both functions of seed and step.

        Args:
            labels: (B,) int64.
            ids: (B,) int64, where the memory is a bank.
            teacher_features: (B, D_t), for its shape.
            seed: Of both draws.
            step: The number of steps before this one.
        """
        batch = self.memory.begin(labels, ids, generator_for(seed, "tekap negatives", step))
        return batch, torch.randn(teacher_features.shape, generator=generator_for(seed, "tekap feature noise", step))

    def _update(self, student: Tensor, teacher: Tensor, batch: ContrastBatch) -> None:
        if self.training:
            self.memory.update(student, teacher, batch)

"""What RichKD trains beside the student, its projections, and the terms that it adds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tmkd_plugin.clip_teacher import ClipOutput
from tmkd_plugin.contrast_memory import ContrastMemory, contrast_memory
from tmkd_plugin.contrastive import classes_of, embed, fused_embedding
from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import seeded_linear
from tmkd_plugin.losses import kd_loss
from tmkd_plugin.model_output import ModelOutput
from tmkd_plugin.richkd_settings import RichKDSettings


class RichKDHeads(nn.Module):
    """The projections of student, teacher and CLIP with the memory of the contrast, and the loss terms.

    Args:
        settings: Weights, temperatures and widths.
        logit_weight: The resolved weight of the added logit KL.
        widths: (student, teacher, CLIP): widths of their pooled features; None where no term needs them.
        seed: Initialisation is a function of it.
    """

    memory: ContrastMemory | None

    def __init__(
        self,
        settings: RichKDSettings,
        logit_weight: float,
        widths: tuple[int, int, int] | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.logit_weight = logit_weight
        self.seed = seed
        self.memory = None
        if widths is None:
            return
        width = settings.projection_width
        self.student_projection = seeded_linear(widths[0], width, seed, "student projection")
        self.teacher_projection = seeded_linear(widths[1], width, seed, "teacher projection")
        self.clip_projection = seeded_linear(widths[2], width, seed, "CLIP projection")
        self.memory = contrast_memory(settings, seed)

    def know_samples(self, sample_labels: Tensor) -> None:
        """Takes CRD's own memory bank, whose entries are the training samples; before the first step.

        Args:
            sample_labels: (ids,) int64 classes by sample id, -1 for an id that is not trained on.
        """
        if self.memory is not None:
            memory = contrast_memory(self.settings, self.seed, sample_labels)
            self.memory = memory.to(self.memory.student).train(self.training)

    def terms(
        self,
        student: ModelOutput,
        teacher: ModelOutput,
        clip: ClipOutput | None,
        labels: Tensor,
        ids: Tensor | None,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Computes the weighted terms that RichKD adds to the distiller's own; a term of weight 0 is not computed.

        Args:
            student: What the student said of the batch.
            teacher: What the teacher said of it, with the logits to learn from.
            clip: What CLIP said of it, where there is a contrast.
            labels: (B,) integers or (B, K) probabilities, whose most probable class counts.
            ids: (B,) int64, where the memory is a bank.
            generator: Draws the negatives.

        Returns:
            Scalars by name: ``logit_kl``, ``feature_contrast``.
        """
        settings, terms = self.settings, {}
        if self.logit_weight:
            terms["logit_kl"] = self.logit_weight * kd_loss(student.logits, teacher.logits, settings.temperature)
        if self.memory is not None and clip is not None:
            s = embed(self.student_projection, _present(student.pooled_features, "student"))
            t = embed(self.teacher_projection, _present(teacher.pooled_features, "teacher").detach())
            fused = fused_embedding(t, embed(self.clip_projection, clip.features), settings.feature_share)
            batch = self.memory.begin(classes_of(labels), ids, generator)
            student_side, teacher_side = self.memory.sides(s, fused, batch)
            terms["feature_contrast"] = settings.feature_weight * (student_side + teacher_side)
            if self.training:
                self.memory.update(s, fused, batch)
        return terms


def _present(features: Tensor | None, role: str) -> Tensor:
    if features is None:
        raise InputError(f"The {role} gave no pooled features in this step.")
    return features

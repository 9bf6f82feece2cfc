"""KD: knowledge distillation from softened logits (Hinton et al., 2015)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tmkd_plugin.baselines.checks import check_weights
from tmkd_plugin.distiller import Distiller, cross_entropy, total
from tmkd_plugin.losses import kd_loss
from tmkd_plugin.settings import Setting, check_number

__all__ = ["KD", "kd_loss"]


class KD(Distiller):
    """``ce_weight · CE + kd_weight · T² · KL``; terms ``"cross_entropy"`` and ``"logit_kl"``.

    Args:
        student: See :class:`Distiller`.
        teacher: See :class:`Distiller`.
        input_size: See :class:`Distiller`.
        temperature: See ``SETTINGS``, as for all that follow.
        ce_weight: Weight of the cross-entropy.
        kd_weight: Weight of the KL divergence; 0 leaves it out.
    """

    has_logit_kl = True
    LOGIT_KL_WEIGHT = "kd_weight"
    SETTINGS: ClassVar[dict[str, Setting]] = {
        "temperature": Setting(
            4.0,
            "official code (mdistiller engine/cfg.py; CIFAR)",
            "T > 0 that softens both distributions; 1 for ImageNet",
        ),
        "ce_weight": Setting(
            0.1, "official code (mdistiller engine/cfg.py; CIFAR)", "weight of the cross-entropy; 0.5 for ImageNet"
        ),
        "kd_weight": Setting(
            0.9, "official code (mdistiller engine/cfg.py; CIFAR)", "weight of T² · KL; 0.5 for ImageNet"
        ),
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        input_size: int | None = None,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
    ) -> None:
        check_number("temperature", temperature, above=0)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        super().__init__(student, teacher, input_size=input_size)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.has_logit_kl = kd_weight > 0

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.forward`."""
        student = self.read_student(images)
        teacher = self.read_teacher(images)
        terms = {"cross_entropy": self.ce_weight * cross_entropy(student.logits, labels)}
        if self.kd_weight:
            terms["logit_kl"] = self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature)
        return total(student.logits, terms)

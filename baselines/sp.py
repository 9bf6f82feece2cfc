"""SP: similarity-preserving knowledge distillation (Tung & Mori, ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from tmkd_plugin.baselines.checks import check_weights, present
from tmkd_plugin.baselines.tensors import paired_rows, unit_vectors, without_autocast
from tmkd_plugin.distiller import Distiller, cross_entropy, total
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.model_output import OutputReader
from tmkd_plugin.settings import Setting

SP_MAPS = ("pre_pool", "mdistiller")


def sp_loss(student_maps: Tensor | Sequence[Tensor], teacher_maps: Tensor | Sequence[Tensor]) -> Tensor:
    """Difference between how similar the samples of a batch are to the student and to the teacher, summed over layers.

    A layer's maps are flattened to F (B, C·h·w); G = F Fᵀ with each row divided by its L2 norm; the layer's loss is
    ``||G_t - G_s||² / B²``. Equal to mdistiller's ``distillers/SP.py`` and RepDistiller's ``Similarity``, gradient
    included, except at a sample whose map is all zero: its row of G passes no gradient (theirs multiplies it by 1e12).

    Args:
        student_maps: (B, C, h, w) or any (B, ...), or one such tensor for each layer.
        teacher_maps: The same number of tensors with the same B; channels and sides may differ. Constants.

    Returns:
        The loss, a scalar of at least float32.

    Raises:
        InputError: The numbers of layers or the batch sizes differ, or a layer is no batch of features.
    """
    students = [student_maps] if isinstance(student_maps, Tensor) else list(student_maps)
    teachers = [teacher_maps] if isinstance(teacher_maps, Tensor) else list(teacher_maps)
    if len(students) != len(teachers) or not students:
        raise InputError(
            f"SP compares layers one by one and needs as many of the teacher as of the student, at least one; given "
            f"{len(students)} of the student and {len(teachers)} of the teacher."
        )
    layers = [_layer_loss(student, teacher) for student, teacher in zip(students, teachers, strict=True)]
    return torch.stack(layers).sum()


def _layer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = paired_rows("SP", student, teacher)
    with without_autocast(student):
        return (_similarities(teacher) - _similarities(student)).square().mean()


def _similarities(rows: Tensor) -> Tensor:
    return unit_vectors(rows @ rows.T, dim=1)


class SP(Distiller):
    """``ce_weight · CE + sp_weight · sp_loss`` of the last feature maps; terms ``"cross_entropy"`` and ``"sp"``.

    Args:
        student: See :class:`Distiller`.
        teacher: See :class:`Distiller`.
        input_size: See :class:`Distiller`.
        ce_weight: See ``SETTINGS``, as for all that follow.
        sp_weight: Weight of the similarity loss.
        sp_map: Which feature map is compared.

    Raises:
        InputError: A network has no last feature map, or a value is out of its range.
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "ce_weight": Setting(1.0, "official code (mdistiller engine/cfg.py)", "weight of the cross-entropy"),
        "sp_weight": Setting(
            3000.0, "official code (mdistiller engine/cfg.py; RepDistiller's script)", "weight of the similarity loss"
        ),
        "sp_map": Setting(
            "pre_pool",
            "ours",
            "'pre_pool': the tensor that enters global pooling; 'mdistiller': what mdistiller takes, which differs for our "
            "WRN (before the last batch norm), MobileNetV2 and ShuffleNetV2 (before the last 1x1 convolution)",
        ),
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        input_size: int | None = None,
        ce_weight: float = 1.0,
        sp_weight: float = 3000.0,
        sp_map: str = "pre_pool",
    ) -> None:
        check_weights(ce_weight=ce_weight, sp_weight=sp_weight)
        if sp_map not in SP_MAPS:
            raise unknown_name("sp_map", sp_map, SP_MAPS)
        super().__init__(student, teacher, input_size=input_size)
        self.student_reader.require_feature_map("SP")
        self.teacher_reader.require_feature_map("SP")
        if sp_map == "mdistiller":
            _read_mdistillers_map(self.student_reader)
            _read_mdistillers_map(self.teacher_reader)
        self.ce_weight = ce_weight
        self.sp_weight = sp_weight

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.forward`."""
        student = self.read_student(images)
        teacher = self.read_teacher(images)
        similarity = sp_loss(
            present(student.feature_map, "the student's last feature map"),
            present(teacher.feature_map, "the teacher's last feature map"),
        )
        terms = {
            "cross_entropy": self.ce_weight * cross_entropy(student.logits, labels),
            "sp": self.sp_weight * similarity,
        }
        return total(student.logits, terms)


def _read_mdistillers_map(reader: OutputReader) -> None:
    """Makes the reader return mdistiller's ``feats[-1]`` where that is not the tensor that enters pooling."""
    from tmkd_plugin.zoo.mobilenet import MobileNetV2
    from tmkd_plugin.zoo.shufflenet import ShuffleNetV2
    from tmkd_plugin.zoo.wide_resnet import WideResNet

    network = getattr(reader.model, "_orig_mod", reader.model)
    stage: nn.Module
    if isinstance(network, WideResNet):
        stage = network.block3
    elif isinstance(network, ShuffleNetV2):
        stage = network.layer3
    elif isinstance(network, MobileNetV2):
        stage = network.blocks[-1]
    else:
        return
    reader.plan = replace(
        reader.plan,
        map_module=stage,
        map_is_input=False,
        map_is_channels_last=False,
        has_class_maps=False,
        no_class_maps_because="its reader returns mdistiller's map",
    )

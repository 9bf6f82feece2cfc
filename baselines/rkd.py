"""RKD: relational knowledge distillation, by distances and angles (Park et al., CVPR 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tmkd_plugin.baselines.checks import check_weights, present
from tmkd_plugin.baselines.tensors import paired_rows, unit_vectors, without_autocast
from tmkd_plugin.distiller import Distiller, cross_entropy, total
from tmkd_plugin.errors import InputError
from tmkd_plugin.settings import Setting, check_number

ANCHORS_PER_CHUNK = 16
"""Anchors whose angles are in memory together."""

_SOURCE = "official code (mdistiller engine/cfg.py; RepDistiller's defaults)"


def rkd_loss(
    student: Tensor,
    teacher: Tensor,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    squared: bool = False,
    eps: float = 1e-12,
) -> Tensor:
    """Huber loss between the relative distances of all pairs and the angles of all triples of a batch.

    ``w_D · mean_ij h(d_ij/μ_s - d'_ij/μ_t) + w_A · mean_ijk h(a_ijk - a'_ijk)``, means over all B² and B³ entries, h the
    Huber function with threshold 1, μ a network's own mean distance over the pairs that are apart. Equal to mdistiller's
    ``distillers/RKD.py``, RepDistiller's ``RKDLoss`` and lenscloth/RKD's ``metric/loss.py``, gradient included, except
    where a row of the student is repeated: a difference of zero passes no gradient (theirs multiplies it by 1e12).

    The angles are computed for 16 anchors at a time, forward and backward, so memory grows with B².

    Args:
        student: (B, ...) features, flattened to (B, D_s).
        teacher: (B, ...) features, flattened to (B, D_t); a constant.
        distance_weight: w_D.
        angle_weight: w_A; 0 leaves the angles out.
        squared: Compare squared distances.
        eps: Lower bound of a squared distance, > 0; below it a distance passes no gradient.

    Returns:
        The loss, a scalar of at least float32; 0 with zero gradients for a batch of one sample, which has no relations.

    Raises:
        InputError: The batch sizes differ, a side is no batch of features, or ``eps`` is not positive.
    """
    if not eps > 0:
        raise InputError(f"RKD's eps must be above 0 (the root of 0 has no gradient), but is {eps}.")
    student, teacher = paired_rows("RKD", student, teacher)
    with without_autocast(student):
        loss = distance_weight * _distance_loss(student, teacher, squared, eps)
        if angle_weight:
            loss = loss + angle_weight * _angle_loss(student, teacher)
    return loss


def _distance_loss(student: Tensor, teacher: Tensor, squared: bool, eps: float) -> Tensor:
    return F.smooth_l1_loss(_relative_distances(student, squared, eps), _relative_distances(teacher, squared, eps))


def _relative_distances(points: Tensor, squared: bool, eps: float) -> Tensor:
    """Distances of all pairs divided by their mean over the pairs that are apart: (B, B)."""
    squares = points.square().sum(dim=1)
    distances = (squares[:, None] + squares[None, :] - 2 * points @ points.T).clamp(min=eps)
    if not squared:
        distances = distances.sqrt()
    # A point's distance from itself is 0, not the bound: it must not count in the mean.
    distances = distances.masked_fill(torch.eye(len(points), dtype=torch.bool, device=points.device), 0)
    apart = (distances > 0).sum()
    mean = distances.sum() / apart.clamp(min=1)
    return distances / torch.where(apart > 0, mean, torch.ones_like(mean))


def _angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    size = len(student)
    if size <= ANCHORS_PER_CHUNK:
        return _huber_of_angles(student, teacher, 0, size) / size**3
    total = student.new_zeros(())
    for start in range(0, size, ANCHORS_PER_CHUNK):
        stop = min(start + ANCHORS_PER_CHUNK, size)
        # A chunk's tensors are made again for its own backward pass, so they never lie in memory together.
        total = total + checkpoint(
            _huber_of_angles, student, teacher, start, stop, use_reentrant=False, preserve_rng_state=False
        )
    return total / size**3


def _huber_of_angles(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    """Sums the Huber function over all triples whose corner is one of the anchors ``start:stop``."""
    return F.smooth_l1_loss(_angles(student, start, stop), _angles(teacher, start, stop), reduction="sum")


def _angles(points: Tensor, start: int, stop: int) -> Tensor:
    """Cosine of the angle at each anchor between any two points: (A, B, B)."""
    directions = unit_vectors(points[None, :, :] - points[start:stop, None, :], dim=2)
    return directions @ directions.transpose(1, 2)


class RKD(Distiller):
    """``ce_weight · CE + rkd_weight · rkd_loss`` of the pooled features; terms ``"cross_entropy"`` and ``"rkd"``.

    Args:
        student: See :class:`Distiller`.
        teacher: See :class:`Distiller`.
        input_size: See :class:`Distiller`.
        ce_weight: See ``SETTINGS``, as for all that follow.
        rkd_weight: Weight of the whole relational loss.
        distance_weight: Weight of the distances.
        angle_weight: Weight of the angles.
        squared: Whether distances are squared.
        eps: Lower bound of a squared distance.

    Raises:
        InputError: A network has no pooled features, or a value is out of its range.
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "ce_weight": Setting(1.0, _SOURCE, "weight of the cross-entropy"),
        "rkd_weight": Setting(1.0, _SOURCE, "weight of the whole relational loss"),
        "distance_weight": Setting(
            25.0,
            _SOURCE,
            "weight of the distances; 25 to 100 for classification (lenscloth/RKD issue 6), 1 in metric learning",
        ),
        "angle_weight": Setting(50.0, _SOURCE, "weight of the angles; 2 in metric learning; 0 saves their time"),
        "squared": Setting(False, _SOURCE, "compare squared distances"),
        "eps": Setting(1e-12, _SOURCE, "lower bound of a squared distance, > 0"),
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        input_size: int | None = None,
        ce_weight: float = 1.0,
        rkd_weight: float = 1.0,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        squared: bool = False,
        eps: float = 1e-12,
    ) -> None:
        check_weights(
            ce_weight=ce_weight, rkd_weight=rkd_weight, distance_weight=distance_weight, angle_weight=angle_weight
        )
        check_number("eps", eps, above=0)
        super().__init__(student, teacher, input_size=input_size)
        for reader in (self.student_reader, self.teacher_reader):
            if reader.plan.pooled_width is None:
                raise InputError(reader.no_pooled_features())
        self.ce_weight = ce_weight
        self.rkd_weight = rkd_weight
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.squared = squared
        self.eps = eps

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See :meth:`Distiller.forward`."""
        student = self.read_student(images)
        teacher = self.read_teacher(images)
        relations = rkd_loss(
            present(student.pooled_features, "the student's pooled features"),
            present(teacher.pooled_features, "the teacher's pooled features"),
            self.distance_weight,
            self.angle_weight,
            self.squared,
            self.eps,
        )
        terms = {
            "cross_entropy": self.ce_weight * cross_entropy(student.logits, labels),
            "rkd": self.rkd_weight * relations,
        }
        return total(student.logits, terms)

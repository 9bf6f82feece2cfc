"""What the losses of several methods share: checked rows, stable unit vectors, full precision."""

from __future__ import annotations

import torch
from torch import Tensor

from tmkd_plugin.errors import InputError
from tmkd_plugin.losses import at_least_float32

NORM_EPS = 1e-12
"""Lower bound of a norm that is divided by, as in ``torch.nn.functional.normalize``."""


def without_autocast(values: Tensor) -> torch.autocast:
    """Returns the context in which matrix products on ``values``' device keep their inputs' precision."""
    return torch.autocast(values.device.type, enabled=False)


def unit_vectors(values: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Divides vectors by their L2 norm, or by 1e-12 if that is larger.

    Equal to ``torch.nn.functional.normalize``, but a vector shorter than 1e-12 passes no gradient: there it would be
    multiplied by 1e12, which ends a training.

    Args:
        values: Floating tensor of any shape.
        dim: The dimension, or dimensions, that a vector takes up.

    Returns:
        A tensor of the same shape.
    """
    norms = torch.linalg.vector_norm(values, dim=dim, keepdim=True)
    directions = values / norms.clamp_min(NORM_EPS)
    return torch.where(norms > NORM_EPS, directions, directions.detach())


def paired_rows(method: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Flattens both sides to (B, D), in float32 at least; the teacher is a constant and gets no gradient.

    Args:
        method: The method's name, for messages.
        student: (B, ...).
        teacher: (B, ...), the same B; everything else may differ.

    Returns:
        (B, D_s) and (B, D_t).

    Raises:
        InputError: A side is not floating, has fewer than two dimensions or no sample, or the batch sizes differ.
    """
    for side, values in (("student", student), ("teacher", teacher)):
        if values.ndim < 2 or values.numel() == 0 or not values.is_floating_point():
            raise InputError(
                f"{method} compares floating features (B, ...) of at least one sample, but the {side}'s are "
                f"{tuple(values.shape)} of {values.dtype}."
            )
    if student.shape[0] != teacher.shape[0]:
        raise InputError(
            f"{method} compares the samples of one batch, but the student's features are {tuple(student.shape)} and "
            f"the teacher's {tuple(teacher.shape)}: the first dimensions must agree."
        )
    return at_least_float32(student).flatten(1), at_least_float32(teacher.detach()).flatten(1)

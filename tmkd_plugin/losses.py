"""The loss terms of TMKD (arXiv 2603.24208): feature KL (Eq 6-7), logit KL (Eq 8) and text contrast (Eq 9-11).

Every function is pure, returns a 0-d tensor and computes in float32 at least: half-precision inputs are raised, also
under autocast, while float64 stays float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tmkd_plugin.errors import InputError


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL divergence of the softened class distributions (Hinton et al.; Eq 8), T² included.

    ``T² · (1/B) · Σ_b Σ_k p_bk (log p_bk - log q_bk)`` with ``p = softmax(z_t/T)`` and ``q = softmax(z_s/T)``.
    Equal to mdistiller's ``distillers/KD.py`` and RepDistiller's ``DistillKL``.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        temperature: T > 0.

    Returns:
        The loss, a scalar of at least float32.

    Raises:
        InputError: The shapes differ or the temperature is not positive.
    """
    _check_pair("logits", student_logits, teacher_logits, temperature)
    return softened_kl(student_logits, teacher_logits, temperature) * temperature**2


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``KL(softmax(teacher/T) || softmax(student/T))``, mean over the batch, without the factor T²; (B, D) each."""
    log_p = F.log_softmax(at_least_float32(teacher) / temperature, dim=1)
    log_q = F.log_softmax(at_least_float32(student) / temperature, dim=1)
    p = log_p.exp()
    # 0 log 0 is 0, so classes that the teacher masks out (logit -inf) do no harm.
    return (p * (log_p.masked_fill(p == 0, 0) - log_q)).sum(dim=1).mean()


def perturbed_features(fused_features: Tensor, noise: Tensor, noise_scale: float) -> Tensor:
    """``F~ = F_fused + scale · ε`` (Eq 6); all (B, D), ε drawn from N(0, 1)."""
    return fused_features + noise_scale * noise


def feature_kl_loss(
    student_features: Tensor, teacher_features: Tensor, temperature: float, scale_by_temperature: bool = True
) -> Tensor:
    """KL divergence of the softmaxed feature vectors (Eq 7); gradient reaches both sides.

    Args:
        student_features: (B, D), the student's pooled features after the learnable mapping to the teacher's width.
        teacher_features: (B, D), the fused and perturbed teacher features F~ of Eq 6, *not* detached from the weights.
        temperature: The feature temperature, > 0.
        scale_by_temperature: Multiply by T², which keeps the size of the gradient independent of T.

    Returns:
        The loss, a scalar of at least float32.

    Raises:
        InputError: The shapes differ or the temperature is not positive.
    """
    _check_pair("features", student_features, teacher_features, temperature)
    loss = softened_kl(student_features, teacher_features, temperature)
    return loss * temperature**2 if scale_by_temperature else loss


def text_contrast_loss(
    student_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """InfoNCE of each student embedding against the text embeddings of all K classes (Eq 11).

    The negatives are the K-1 other classes, exactly: a memory bank of text embeddings holds no other vectors.
    Both sides are L2-normalised here (Eq 9 and 10).

    Args:
        student_embeddings: (B, D), projected student features.
        text_embeddings: (K, D), projected text embeddings, one a class.
        labels: (B,) integers or (B, K) probabilities.
        temperature: tau > 0.

    Returns:
        The loss, a scalar of at least float32.

    Raises:
        InputError: The widths differ or the temperature is not positive.
    """
    if student_embeddings.shape[-1] != text_embeddings.shape[-1]:
        raise InputError(
            f"The student embeddings {tuple(student_embeddings.shape)} and the text embeddings "
            f"{tuple(text_embeddings.shape)} must have the same width; project both first."
        )
    _check_temperature(temperature)
    s = F.normalize(at_least_float32(student_embeddings), dim=1)
    t = F.normalize(at_least_float32(text_embeddings), dim=1)
    with torch.autocast(s.device.type, enabled=False):
        similarities = s @ t.T / temperature
    if labels.is_floating_point():
        labels = labels.to(similarities.dtype)
    return F.cross_entropy(similarities, labels)


def at_least_float32(values: Tensor) -> Tensor:
    """Raises half precision to float32 and leaves float32 and float64 alone."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _check_pair(what: str, student: Tensor, teacher: Tensor, temperature: float) -> None:
    if student.shape != teacher.shape or student.ndim != 2:
        raise InputError(
            f"Student and teacher {what} must both be (B, D) and of one shape, but are {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}."
        )
    _check_temperature(temperature)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise InputError(f"A temperature must be above 0, but is {temperature}.")

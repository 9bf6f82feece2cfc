"""The loss of contrastive representation distillation (CRD, Tian et al.).

Noise-contrastive estimation tells the pair (student, teacher) of one image from pairs with images of other classes, whose
embeddings a memory holds. Equal to RepDistiller's ``crd/criterion.py``; everything is computed in float32 at least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.losses import at_least_float32

NCE_EPS = 1e-7
"""Added to the denominators of the estimation, as in the official code."""

LOWEST_TEMPERATURE = 0.015
"""The least tau: ``exp(1/tau)`` times the entries of any memory stays well within float32."""


@dataclass(frozen=True)
class Scores:
    """Scores ``M·v/tau`` of a batch, the logarithms of what CRD normalises.

    Attributes:
        positive: (B,), of each sample with its own entry.
        negatives: (B, J), with entries of other classes.
        valid: (B, J) bool, which of them count; None for all. Those that count stand for ``drawn`` draws among them.
        drawn: K, the number of negatives of a sample that the loss is made for.
    """

    positive: Tensor
    negatives: Tensor
    valid: Tensor | None
    drawn: int

    def mean_negative(self, values: Tensor) -> Tensor:
        """Returns the mean of (B, J) values over the negatives that count, (B,); 0 where there are none."""
        if self.valid is None:
            return values.mean(dim=1)
        return values.masked_fill(~self.valid, 0).sum(dim=1) / self.valid.sum(dim=1).clamp_min(1)

    def normaliser(self, entries: int) -> Tensor:
        """Returns Z, a 0-d tensor without gradient: the mean of ``exp(score)`` in the batch times the number of entries N."""
        with torch.no_grad():
            mean = (self.positive.exp() + self.drawn * self.mean_negative(self.negatives.exp())) / (self.drawn + 1)
            return mean.mean() * entries


def crd_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    contrast_index: Tensor,
    temperature: float = 0.07,
    normalisers: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """CRD's loss of one batch, the sum of its student and its teacher side.

    Each side compares with the *other* network's memory: ``h_bj = exp(M[i_bj]·v_b/tau)/Z`` and, with c = K/N,
    ``-(1/B) Σ_b [ log(h_b0/(h_b0+c)) + Σ_{j>=1} log(c/(h_bj+c)) ]``.

    Args:
        student_embeddings: (B, D), rows of length 1.
        teacher_embeddings: (B, D), rows of length 1; gradients reach both.
        student_memory: (N, D).
        teacher_memory: (N, D).
        contrast_index: (B, K+1) rows of the memories; column 0 is the sample's own.
        temperature: tau > 0.
        normalisers: (Z of the student side, Z of the teacher side), 0-d; None computes them from this batch, as CRD does
            in its first step.

    Returns:
        The loss, a scalar.

    Raises:
        InputError: A shape does not fit.
    """
    check_embeddings(student_embeddings, teacher_embeddings, student_memory, teacher_memory)
    if contrast_index.ndim != 2 or contrast_index.shape[0] != len(student_embeddings) or contrast_index.shape[1] < 2:
        raise InputError(
            f"contrast_index must be (B, K+1) with B = {len(student_embeddings)} and K >= 1, but is "
            f"{tuple(contrast_index.shape)}."
        )
    entries = len(student_memory)
    student = indexed_scores(student_embeddings, teacher_memory, contrast_index, temperature)
    teacher = indexed_scores(teacher_embeddings, student_memory, contrast_index, temperature)
    z_student, z_teacher = normalisers or (student.normaliser(entries), teacher.normaliser(entries))
    return nce_loss(student, z_student, entries) + nce_loss(teacher, z_teacher, entries)


def indexed_scores(embeddings: Tensor, memory: Tensor, contrast_index: Tensor, temperature: float) -> Scores:
    """Scores (B, D) embeddings with the rows (B, K+1) of a memory (N, D) that an index names."""
    embeddings = at_least_float32(embeddings)
    memory = memory.to(embeddings.dtype)
    with torch.autocast(embeddings.device.type, enabled=False):
        if len(memory) <= contrast_index.shape[1] * memory.shape[1]:
            # All products, of which some are picked, take less room than the picked rows themselves.
            products = (embeddings @ memory.T).gather(1, contrast_index)
        else:
            products = torch.einsum("bd,bkd->bk", embeddings, memory[contrast_index])
        scores = products / temperature
    return Scores(scores[:, 0], scores[:, 1:], None, contrast_index.shape[1] - 1)


def nce_loss(scores: Scores, normaliser: Tensor, entries: int) -> Tensor:
    """One side of CRD: noise-contrastive estimation with K uniform negatives out of N entries, mean over the batch."""
    share = scores.drawn / entries
    # log h, and log(h + c + eps): h itself may leave the range of float32 where tau is small.
    log_rest = torch.full_like(normaliser, math.log(share + NCE_EPS))
    positive = scores.positive - normaliser.log()
    negatives = scores.negatives - normaliser.log()
    log_positive = positive - torch.logaddexp(positive, log_rest)
    log_negative = math.log(share) - torch.logaddexp(negatives, log_rest)
    return -(log_positive + scores.drawn * scores.mean_negative(log_negative)).mean()


def classes_of(labels: Tensor) -> Tensor:
    """Returns (B,) int64 classes of labels (B,), or of (B, K) probabilities the most probable ones."""
    return labels if labels.ndim == 1 else labels.argmax(dim=1)


def fused_embedding(teacher: Tensor, clip: Tensor, weight: float) -> Tensor:
    """``normalise(w u_t + (1-w) u_c)`` of embeddings (B, D), which RichKD contrasts the student with."""
    return F.normalize(weight * teacher + (1 - weight) * clip, dim=1)


def embed(projection: nn.Linear, features: Tensor) -> Tensor:
    """Projects pooled features (B, C) to unit vectors (B, D)."""
    projected: Tensor = projection(features.to(projection.weight.dtype))
    return F.normalize(at_least_float32(projected), dim=1)


def check_embeddings(student: Tensor, teacher: Tensor, student_memory: Tensor, teacher_memory: Tensor) -> None:
    """Refuses embeddings and memories whose shapes do not fit each other."""
    same = student.shape == teacher.shape and student_memory.shape == teacher_memory.shape
    if not same or student.ndim != 2 or student_memory.ndim != 2 or student.shape[1] != student_memory.shape[1]:
        raise InputError(
            f"CRD compares embeddings (B, D) with memories (N, D), but the student's are {tuple(student.shape)}, the "
            f"teacher's {tuple(teacher.shape)}, and the memories {tuple(student_memory.shape)} and "
            f"{tuple(teacher_memory.shape)}."
        )
